"""A run that is watched: started again whenever it ends, checked every few seconds, and counted."""

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import time
from collections.abc import Callable

import proc
import soak_checks
import soak_counts
import soak_faults
from soak_run import CONFIG, Attempt, Places, checkpoints, newest_checkpoint

_STEP_S, _CHECK_S, _SHOW_S = 0.2, 3.0, 15.0
_STUCK_S = 120.0  # without an update
_GONE_S = 12.0  # from the end of a learner to that of all its processes
_STOP_S = 60.0
_EVAL_WAITING, _KEPT_CHECKPOINTS, _AT_WORK = 4, 2, 3  # two are defaults; updates not yet pruned
BOUNDS = soak_checks.Bounds(
    prompts=int(CONFIG["prompts_per_update"]),
    group_size=int(CONFIG["group_size"]),
    lag=int(CONFIG["lag"]),
    checkpoints=_KEPT_CHECKPOINTS + 2,  # the newest before the oldest is removed, and that
    snapshots=int(CONFIG["lag"]) + 1 + _AT_WORK + _EVAL_WAITING + 1,
    batches=int(CONFIG["learner.max_skipped_updates"]) + 2,
)


class Soak:
    """Attempts at a run, and all that was seen of them.

    Args:
        places: of the run; its directory does not exist.
        fields: of the config of all attempts.

    Attributes:
        attempt: the one at work, or the last one.
        places: of the run.
        spoiled: snapshots that are not as they were written.
        excused: updates whose rollouts may not be there.
        counts: what is only counted.
        journal: its metrics.
        violations: sentences.
        is_stuck: whether no update came for too long.
        rollouts: hash of what was trained on, by update.
    """

    def __init__(self, places: Places, fields: dict[str, object]):
        """Starts the first attempt."""
        self.places = places
        self.spoiled: set[pathlib.Path] = set()
        self.excused: set[int] = set()
        self.counts = soak_counts.Counts()
        self.journal = soak_checks.Journal(places.workdir / "metrics.jsonl", BOUNDS)
        self.violations: list[str] = []
        self.is_stuck = False
        self.rollouts: dict[int, str] = {}
        self._fields = fields
        self._is_last = False
        self._newest = self._written_until = self._read_before = 0
        self._started = self._progressed = self._shown = self._checked = time.monotonic()
        self._start()

    def watch(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Goes on with the checks for so long, or until something holds; whether it does.

        An attempt that ended is followed by the next one, unless it is the last.
        """
        deadline = time.monotonic() + seconds
        while not (is_so := until()) and not self.is_stuck and time.monotonic() < deadline:
            if self.attempt.process.poll() is not None and not self._is_last:
                self._end()
                self._start()
            if time.monotonic() - self._checked > _CHECK_S:
                self._check()
            time.sleep(max(0.0, min(_STEP_S, deadline - time.monotonic())))
        return is_so

    def stop(self) -> None:
        """Ends the run by SIGTERM."""
        self._is_last = True
        self.attempt.faults.add("learner terminated")
        self.attempt.process.send_signal(signal.SIGTERM)
        self._see_out(_STOP_S)

    def prolong(self, num_updates: int) -> None:
        """Starts it again, to end after so many updates."""
        self._fields = {**self._fields, "num_updates": num_updates}
        self._start()

    def finish(self, seconds: float) -> None:
        """Sees the run to the end of its updates, and checks that all is there."""
        self._is_last = True
        self._see_out(seconds)
        self._check()
        self._check_rollouts(self.journal.updates)
        last, num_updates = self.journal.last, self._fields["num_updates"]
        if self.journal.updates != num_updates:
            self.violate(f"P5 the run has {self.journal.updates} updates, not {num_updates}")
        if last and last["tickets/issued"] != self.journal.updates * BOUNDS.prompts:
            self.violate(f"P2 {last['tickets/issued']:g} tickets are issued at the end")
        if self.sha is None:
            self.violate("P9 there is no result.json")

    def close(self) -> None:
        """Leaves no process behind."""
        self._kill_all()
        self.attempt.close()

    def violate(self, words: str) -> None:
        """Writes down a violation."""
        self.violations.append(words)
        self._say(f"VIOLATION {words}")

    def updates(self) -> int:
        """The newest update of this attempt, 0 before its first one."""
        self._check()
        return self.journal.updates if self._is_under_way else 0

    @property
    def sha(self) -> str | None:
        """Hash of the last parameters, None without."""
        path = self.places.workdir / "result.json"
        return json.loads(path.read_text())["parameters_sha256"] if path.exists() else None

    @property
    def _is_under_way(self) -> bool:
        """Whether this attempt has done an update."""
        return self.journal.num_read > self._read_before

    def _start(self) -> None:
        """Starts the next attempt."""
        self.attempt = Attempt(self.places, self._fields)
        self.journal.kept, self._read_before = self.attempt.before, self.journal.num_read
        self.counts.start()

    def _end(self) -> None:
        """Checks what an attempt that ended leaves behind."""
        attempt, code = self.attempt, self.attempt.process.wait()
        soak_faults.release(attempt)
        deadline = time.monotonic() + _GONE_S
        # Nobody cleans up after a learner that is killed before it has started any sampler.
        is_young = code == -signal.SIGKILL and not self.updates()
        while (left := self._left(is_young)) and time.monotonic() < deadline:
            time.sleep(_STEP_S)
        for words in left:
            self.violate(f"P9 {_GONE_S:.0f} s after an end there is {words}")
        self._kill_all()
        attempt.close()
        self.counts.ends[code] += 1
        self._check()
        if not (self._is_last and code == 0):
            for words in soak_checks.check_end(code, attempt.faults, attempt.tail):
                self.violate(words)

    def _left(self, is_young: bool) -> list[str]:
        """What there still is of an attempt."""
        snapshots = [] if is_young else [path.name for path in self.places.snapshots.iterdir()]
        return [f"{p.role} ({p.pid})" for p in self.attempt.processes()] + snapshots

    def _kill_all(self) -> None:
        """Kills what there still is, the learner first, that it starts nothing."""
        self.attempt.process.kill()
        while processes := self.attempt.processes():
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    def _see_out(self, seconds: float) -> None:
        """Waits for the last end."""
        attempt = self.attempt
        self.watch(seconds, lambda: attempt.process.poll() is not None)
        if attempt.process.poll() is None:
            self.violate(f"P1 no end after {seconds:.0f} s; {self._describe()}")
            return
        self._end()

    def _check(self) -> None:
        """All that can be checked at any time."""
        now, num_read, beginning = time.monotonic(), self.journal.num_read, self.journal.beginning
        for words in self.journal.read():
            self.violate(words)
        if self.journal.beginning != beginning:  # what follows is done again
            self._written_until = min(self._written_until, self.attempt.before)
        if self.journal.num_read > num_read:
            self._progressed = now
            self.counts.progress(self._checked, self.journal.last)
        elif now - self._progressed > _STUCK_S and not self.is_stuck:
            self.is_stuck = True
            self.violate(f"P1 no update for {_STUCK_S:.0f} s; {self._describe()}")
        self._check_rollouts(self.journal.updates - 1)
        self._check_checkpoints()
        processes = self.attempt.processes()
        for words in (
            *soak_checks.check_snapshots(self.places.snapshots, self.spoiled, BOUNDS),
            *soak_checks.check_files(
                self.places.workdir, len(checkpoints(self.places.workdir)), BOUNDS
            ),
            *soak_checks.check_processes(processes),
        ):
            self.violate(words)
        if self._is_under_way:  # a start takes as long as the machine lets it
            self.counts.measure(processes, now)
        self._checked = now
        if now - self._shown > _SHOW_S:
            self._shown = now
            counts = self.counts
            self._say(
                f"update {self.journal.updates} · attempt {counts.num_attempts} · "
                f"{counts.num_survived} of {counts.num_faults} faults survived · "
                f"{len(self.violations)} violations"
            )

    def _check_rollouts(self, last: int) -> None:
        """Those of updates that were not checked in this attempt, up to one."""
        for update in range(self._written_until + 1, last + 1):
            path = self.places.workdir / "rollouts" / f"update_{update:08d}.jsonl"
            if not path.exists():
                if update not in self.excused:
                    self.violate(f"P2 update {update}: nobody knows what it trained on")
                continue
            text = path.read_bytes()
            digest = hashlib.sha256(text).hexdigest()
            if self.rollouts.setdefault(update, digest) != digest:
                self.violate(f"P5 update {update} was done again on other responses")
            lines = [json.loads(line) for line in text.splitlines()]
            num_trained = self.journal.num_trained.get(update, 0)
            for words in soak_checks.check_rollouts(update, lines, num_trained, BOUNDS):
                self.violate(words)
        self._written_until = max(self._written_until, last)

    def _check_checkpoints(self) -> None:
        """P4 and P5: the newest one is never older than before, and is what is carried on."""
        newest, attempt = newest_checkpoint(self.places.workdir), self.attempt
        if newest < self._newest:
            self.violate(f"P4 the newest checkpoint is {newest}, after {self._newest}")
        self._newest = max(self._newest, newest)
        if attempt.resumed not in (None, attempt.before):
            self.violate(
                f"P5 an attempt carried on from {attempt.resumed}, not from {attempt.before}"
            )
            attempt.resumed = None  # said once

    def _describe(self) -> str:
        """What the processes wait for, and what was said last."""
        waits = [f"{p.role}: {proc.waits_for(p.pid)}" for p in self.attempt.processes()]
        return "; ".join([*waits, *list(self.attempt.tail)[-5:]])

    def _say(self, words: str) -> None:
        """A line on how it goes."""
        print(f"{time.monotonic() - self._started:7.0f} s  {words}", flush=True)


def differences(one: Soak, other: Soak) -> list[str]:
    """P5 of a run and of one that was left alone: violations."""
    found = []
    if one.sha != other.sha:
        found.append(f"P5 parameters_sha256 is {one.sha}, {other.sha} in the reference")
    updates = sorted(one.rollouts.keys() & other.rollouts.keys())
    different = [u for u in updates if one.rollouts[u] != other.rollouts[u]]
    if different or one.journal.num_trained != other.journal.num_trained:
        found.append(f"P5 updates trained on something else in the reference: {different[:10]}")
    return found
