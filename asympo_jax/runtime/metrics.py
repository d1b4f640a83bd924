"""Metrics and rollouts: JSON lines always, TensorBoard events and Weights & Biases if asked.

`update` is the x-axis of everything.
"""

import collections
import json
import math
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from asympo_jax.runtime.events import EventWriter
from asympo_jax.runtime.files import Lines, replace
from asympo_jax.runtime.leases import HandedIn
from asympo_jax.runtime.time_of_day import TimeOfDay
from asympo_jax.runtime.wandb_log import WandbLog
from asympo_jax.tokenizers import Tokenizer
from asympo_jax.types import Group, StopReason

T = TypeVar("T")


class MetricsRefused(ValueError):
    """A file of metrics that cannot be read."""


class MetricsWriter:
    """Writes metrics and readable samples into a run's directory; what fails there ends no run.

    A failure is told once of each file, counted, and the lines of metrics are tried again with the
    next one.

    Args:
        workdir: the run's directory.
        resumed_at: the update from which the run carries on; later lines of an earlier attempt are
            dropped, so every update and every evaluation stands there once.
        tensorboard: whether to write events, too.
        warn: called with a sentence, for people.
        wandb_log: gets the metrics, too; None for nobody.

    Attributes:
        evaluated: updates whose evaluations are in the lines that were kept.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        resumed_at: int,
        tensorboard: bool,
        warn: Callable[[str], object] = warnings.warn,
        wandb_log: WandbLog | None = None,
    ):
        """Drops what is written again."""
        self._workdir = workdir
        self._warn = warn
        self._wandb = wandb_log
        self._warned: set[str] = set()
        self._num_failures = 0
        path = workdir / "metrics.jsonl"
        kept = self._attempt("metrics.jsonl", lambda: _keep_until(path, resumed_at)) or []
        self.evaluated = {line["update"] for line in kept if "eval/accuracy" in line}
        self._lines = Lines(path)
        self._times = Lines(workdir / "timeline.jsonl")
        # So that the times of several attempts at a run come after each other.
        self._time_of_day = TimeOfDay()
        self._events = EventWriter(workdir / "tensorboard", resumed_at + 1) if tensorboard else None

    def write(
        self,
        update: int,
        metrics: Mapping[str, float],
        histograms: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """One line: the metrics after `update` updates. Values that are not finite become null.

        Args:
            update: number of updates done.
            metrics: name -> value.
            histograms: name -> values, of which the line has the counts.
        """
        values = {name: float(value) for name, value in metrics.items()}
        counts = {
            name: {str(value): count for value, count in sorted(collections.Counter(all_).items())}
            for name, all_ in (histograms or {}).items()
        }
        line = json.dumps({"update": update, **as_written(values), **counts})
        self._attempt("metrics.jsonl", lambda: self._lines.append(line))
        events = self._events
        if events is not None:
            self._attempt("tensorboard", lambda: events.write(update, values, histograms or {}))
        wandb_log = self._wandb
        if wandb_log is not None:
            self._attempt("wandb", lambda: wandb_log.write(update, values))

    def write_rollouts(self, update: int, groups: Sequence[Group], tokenizer: Tokenizer) -> None:
        """Readable samples, a JSON line a response: prompt, response, reward, lag, why it stopped.

        Args:
            update: number of updates done, the last of which trained on the groups.
            groups: to be written.
            tokenizer: ids to text.
        """
        path = self._workdir / "rollouts" / f"update_{update:08d}.jsonl"
        lines = _rollouts(groups, update - 1, tokenizer)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

        def write() -> None:
            path.parent.mkdir(exist_ok=True)
            replace(path, text)

        self._attempt("rollouts", write)

    def write_times(
        self,
        update: int,
        spans: Mapping[str, tuple[float, float]],
        handed_in: Sequence[HandedIn],
    ) -> None:
        """A line of `timeline.jsonl`: who was at work when, in seconds since 1970.

        Args:
            update: number of updates done.
            spans: what the learner did -> start and end, monotonic seconds.
            handed_in: by samplers since the line before.
        """
        leases = [
            [
                one.holder[0] if one.holder else 0,
                one.lease.number,
                one.lease.version,
                *self._of_day(one.finished - one.busy_s, one.finished),
            ]
            for one in handed_in
        ]
        learner = {name: self._of_day(*span) for name, span in spans.items()}
        line = json.dumps({"update": update, **learner, "leases": leases})
        self._attempt("timeline.jsonl", lambda: self._times.append(line))

    def metrics(self) -> dict[str, float]:
        """`log/failures`: how often something could not be written so far."""
        return {"log/failures": self._num_failures}

    def close(self) -> None:
        """Writes what waits, if that can be done, and closes the files."""
        self._attempt("metrics.jsonl", self._lines.close)
        self._attempt("timeline.jsonl", self._times.close)
        lost = self._lines.num_lost + self._lines.num_waiting
        if lost:
            self._warn(f"{self._workdir / 'metrics.jsonl'}: {lost} lines are lost")
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.close()

    def _of_day(self, *times: float) -> list[float]:
        """Monotonic seconds as times of day."""
        return [self._time_of_day.at(one) for one in times]

    def _attempt(self, name: str, write: Callable[[], T]) -> T | None:
        """What `write` returns; None where the disk is in the way."""
        try:
            return write()
        except (OSError, MetricsRefused) as error:
            self._num_failures += 1
            if name not in self._warned:
                self._warned.add(name)
                self._warn(
                    f"{self._workdir / name}: cannot be written ({error}); training goes on, and "
                    "log/failures counts how often"
                )
            return None


def _keep_until(path: pathlib.Path, resumed_at: int) -> list[dict[str, Any]]:
    """Drops the lines of later updates from a file; returns those that it keeps.

    Raises:
        MetricsRefused: the file is damaged; it is out of the way, under another name.
        OSError: it cannot be written.
    """
    if not path.exists():
        return []
    try:
        found = read_metrics(path)
    except MetricsRefused as error:
        os.replace(path, path.with_name("metrics.damaged.jsonl"))
        raise MetricsRefused(f"{error}, so it is kept as metrics.damaged.jsonl") from error
    # A run that starts again from nothing writes its update 0 again, too.
    kept = [line for line in found if resumed_at and line["update"] <= resumed_at]
    replace(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def as_written(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as a line has them: seven digits, None for what is not finite."""
    return {n: float(f"{v:.7g}") if math.isfinite(v) else None for n, v in metrics.items()}


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """What a `metrics.jsonl` says of each update, in order of updates.

    An evaluation comes in later than its update and has a line of its own; the lines of an update
    are put together. A last line cut short by a crash is left out.

    Raises:
        MetricsRefused: another line is no JSON object with an `update`.
    """
    lines: dict[int, dict[str, Any]] = {}
    texts = path.read_text(errors="replace").splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            update = int(line["update"])
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            if number == len(texts):
                break
            raise MetricsRefused(
                f"{path} line {number}: is no metrics line ({error!r:.80})"
            ) from error
        lines.setdefault(update, {}).update(line)
    return [lines[update] for update in sorted(lines)]


def _rollouts(
    groups: Sequence[Group], version: int, tokenizer: Tokenizer
) -> Iterator[dict[str, Any]]:
    """A response each, of groups that the update of a version trained on."""
    for group in groups:
        prompt = tokenizer.decode(group.prompt_S.tolist())
        for member, length in enumerate(group.length_G):
            yield {
                "ticket": group.ticket,
                "version": group.version,
                "lag": version - group.version,
                "prompt": prompt,
                "response": tokenizer.decode(group.response_GT[member, :length].tolist()),
                "reward": round(float(group.reward_G[member]), 6),
                "tokens": int(length),
                "stop": StopReason(group.stop_G[member]).name.lower(),
            }
