"""What must hold of a soaked run at every moment, as functions from what is found to violations.

A violation is a sentence that begins with the promise that is broken; an empty list is good news.
"""

import dataclasses
import json
import math
import pathlib
import re
import signal
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import proc

from asympo_jax.runtime.snapshots import SnapshotRefused, read_params

# Of values that an update must have again when it is done again.
_SAME = ("loss", "grad/norm", "params/norm", "tickets/trained", "tickets/failed")
_GROWING = ("issued", "trained", "filtered", "failed")
_MAX_RESIDENT_BYTES = 2 * 2**30
_MAX_DESCRIPTORS = 256
_MAX_PROCESSES = 24


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What the config of a run allows.

    Attributes:
        prompts: tickets an update.
        group_size: responses a ticket.
        lag: largest one.
        checkpoints: complete ones at once.
        snapshots: at once.
        batches: recorded ones at once.
    """

    prompts: int
    group_size: int
    lag: int
    checkpoints: int
    snapshots: int
    batches: int

    @property
    def live(self) -> int:
        """Tickets that may be on their way after an update, in ticket order."""
        return (self.lag + 1) * self.prompts


def check_line(
    line: Mapping[str, Any], before: Mapping[str, Any] | None, bounds: Bounds
) -> list[str]:
    """P2, P3 and P6 of an update's line of metrics; `before` is that of the update before."""
    update, found = line["update"], []
    issued, trained, filtered, failed = (line[f"tickets/{name}"] for name in _GROWING)
    live = issued - trained - filtered - failed
    if not 0 <= live <= bounds.live:
        found.append(f"P2 update {update}: {live:g} tickets are live, not 0 to {bounds.live}")
    if trained + filtered + failed != update * bounds.prompts:
        found.append(
            f"P2 update {update}: {trained:g} tickets are trained, {filtered:g} filtered and "
            f"{failed:g} failed, together not {update * bounds.prompts}"
        )
    for name in _GROWING:
        now, then = line[f"tickets/{name}"], (before or {}).get(f"tickets/{name}", 0)
        if now < then:
            found.append(f"P2 update {update}: tickets/{name} fell from {then:g} to {now:g}")
    if not line["lag/max"] <= bounds.lag:
        found.append(f"P3 update {update}: lag/max is {line['lag/max']:g}, not {bounds.lag}")
    if line["params/norm"] is None:
        found.append(f"P6 update {update}: params/norm is not finite")
    return found


def check_rollouts(
    update: int, lines: Sequence[Mapping[str, Any]], num_trained: int, bounds: Bounds
) -> list[str]:
    """P2 and P3 of what an update says it trained on, which is all that it trained on."""
    found = []
    slot = range((update - 1) * bounds.prompts, update * bounds.prompts)
    tickets = [line["ticket"] for line in lines]
    for ticket in sorted(set(tickets)):
        if ticket not in slot:
            found.append(f"P2 update {update}: trained ticket {ticket}, which is not its own")
        if tickets.count(ticket) != bounds.group_size:
            times = tickets.count(ticket)
            found.append(f"P2 update {update}: {times} responses of ticket {ticket}")
    if len(set(tickets)) != num_trained:
        found.append(
            f"P2 update {update}: {len(set(tickets))} tickets were written down, {num_trained} "
            "trained"
        )
    version = max(0, update - 1 - bounds.lag)
    for line in lines:
        if line["version"] != version or line["lag"] != update - 1 - version:
            found.append(
                f"P3 update {update}: ticket {line['ticket']} is of version {line['version']} with "
                f"lag {line['lag']}, not {version}"
            )
    return found


class Journal:
    """The lines of updates in a `metrics.jsonl` that grows, and is written anew by an attempt.

    Args:
        path: of the file.
        bounds: of the run.

    Attributes:
        updates: the newest update in the file.
        kept: updates that are not done again by the attempt at work.
        num_read: updates that were done, those that were done again included.
        beginning: how often the file was written anew.
        num_trained: by update.
    """

    def __init__(self, path: pathlib.Path, bounds: Bounds):
        """Nothing is read yet."""
        self._path, self._bounds = path, bounds
        self._inode, self._offset = -1, 0
        self._before: dict[str, Any] | None = None
        self._seen: dict[int, list[Any]] = {}
        self._skipped: set[int] = set()
        self.updates = self.num_read = self.kept = self.beginning = 0
        self.num_trained: dict[int, int] = {}

    @property
    def num_skipped(self) -> int:
        """Updates that were skipped."""
        return len(self._skipped)

    def read(self) -> list[str]:
        """Reads what is new; returns violations of P2, P3, P5 and P6."""
        try:
            with self._path.open("rb") as file:
                inode = self._path.stat().st_ino
                if inode != self._inode:
                    self._inode, self._offset, self._before, self.updates = inode, 0, None, 0
                    self.beginning += 1
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole, newline, _ = text.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        found = []
        for words in whole.splitlines():
            line = json.loads(words)
            if "tickets/issued" in line:  # else of an evaluation
                found += self._take(line)
        return found

    @property
    def last(self) -> Mapping[str, Any]:
        """The newest line."""
        return self._before or {}

    def _take(self, line: dict[str, Any]) -> list[str]:
        """Violations of a line, of which it takes note."""
        update, found = line["update"], []
        if update != self.updates + 1:
            found.append(f"P5 update {update} follows update {self.updates} in metrics.jsonl")
        found += check_line(line, self._before, self._bounds)
        same = [line[name] for name in _SAME]
        if self._seen.setdefault(update, same) != same:
            found.append(f"P5 update {update} was done again with {same}, not {self._seen[update]}")
        is_next = self._before is not None or update == 1
        trained_before = self._before["tickets/trained"] if self._before else 0
        if is_next:
            self.num_trained[update] = int(line["tickets/trained"] - trained_before)
        if line["update/skipped"]:
            self._skipped.add(update)
        self._before, self.updates = line, update
        self.num_read += update > self.kept
        return found


def check_end(code: int, faults: Collection[str], tail: Sequence[str]) -> list[str]:
    """P9 of how a learner ended, for what was done to it."""
    # A signal before the command has handlers ends it as a shell says: 128 and its number.
    code = 128 - code if code in (-signal.SIGTERM, -signal.SIGINT) else code
    last = tail[-1] if tail else ""
    words = f"exit code {code} after {', '.join(sorted(faults)) or 'nothing'}, last line {last!r}"
    allowed = [ENDS[fault] for fault in faults]
    if not any(code in codes for codes, _ in allowed):
        return [f"P9 {words}: docs/faults.md does not allow that"]
    if code != 1:
        return []
    if not last.startswith("error: "):
        return [f"P9 {words}: is no sentence of cause"]
    if not any(code in codes and re.search(cause, last) for codes, cause in allowed):
        return [f"P9 {words}: names another cause"]
    return []


# Fault -> exit codes that it may have, and what the cause names with code 1.
ENDS: Mapping[str, tuple[Collection[int], str]] = {
    "sampler killed": ({1}, "none is left"),
    "sampler stopped": ({1}, "none is left"),
    "sampler paused": ((), ""),
    "evaluator killed": ({1}, "the evaluator ended with signal 9"),
    "learner killed": ({-signal.SIGKILL}, ""),
    "learner terminated": ({75, 143}, ""),
    "learner terminated twice": ({75, 143}, ""),
    "learner interrupted": ({130}, ""),
    "snapshot spoiled": ({1}, r"\.safetensors"),
    "disk full": ({1}, "cannot be written|File too large"),
}


def check_snapshots(
    directory: pathlib.Path, spoiled: Collection[pathlib.Path], bounds: Bounds
) -> list[str]:
    """P6 and P7 of what is published: as many as may be, all of them whole and finite."""
    paths = sorted(directory.glob("*/v*.safetensors"))
    found = []
    if len(paths) > bounds.snapshots:
        found.append(f"P7 there are {len(paths)} snapshots, not {bounds.snapshots} at most")
    for path in set(paths) - set(spoiled):
        try:
            params, _ = read_params(path)
        except SnapshotRefused as refused:
            if path.exists():
                found.append(f"P6 {refused}")
            continue
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            found.append(f"P6 {path}: is not finite")
    return found


def check_files(workdir: pathlib.Path, checkpoints: int, bounds: Bounds) -> list[str]:
    """P7 of what a run keeps on disk."""
    batches = len(list((workdir / "batches").glob("update_*")))
    found = []
    for name, count, most in (
        ("checkpoints", checkpoints, bounds.checkpoints),
        ("batches", batches, bounds.batches),
    ):
        if count > most:
            found.append(f"P7 there are {count} {name}, not {most} at most")
    return found


def check_processes(processes: Sequence[proc.Process]) -> list[str]:
    """P7 and P8 of the processes of a run."""
    found = []
    if len(processes) > _MAX_PROCESSES:
        found.append(f"P7 there are {len(processes)} processes: {[p.role for p in processes]}")
    listening = proc.listening_sockets()
    for process in processes:
        name = f"{process.role} ({process.pid})"
        if process.resident_bytes > _MAX_RESIDENT_BYTES:
            found.append(f"P7 {name} has {process.resident_bytes / 2**20:.0f} MB of memory")
        if process.num_descriptors > _MAX_DESCRIPTORS:
            found.append(f"P7 {name} has {process.num_descriptors} descriptors")
        if proc.sockets_of(process.pid) & listening:
            found.append(f"P8 {name} listens")
    return found


def slope(series: Iterable[Sequence[tuple[float, float]]]) -> float:
    """Slope of (x, y) series by least squares, one for all, an intercept for each; NaN without."""
    above, below = 0.0, 0.0
    for points in series:
        x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
        if len(x):
            above += float(((x - x.mean()) * y).sum())
            below += float(((x - x.mean()) ** 2).sum())
    return above / below if below else math.nan
