"""The monkey: what it does to a run, in which order, and how."""

import contextlib
import os
import pathlib
import random
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Protocol

import proc
import soak_run

MEAN_PAUSE_S = 6.0
# A deck of faults is shuffled and played, then shuffled again: every kind comes, those that end an
# attempt about once in a minute.
DECK = {
    "sampler killed": 16,
    "sampler stopped": 6,
    "sampler paused": 12,
    "evaluator killed": 3,
    "learner killed": 1,
    "learner terminated": 1,
    "learner terminated twice": 1,
    "learner interrupted": 1,
    "snapshot spoiled": 1,
    "disk full": 1,
}
_OVERDUE_S = 2 * soak_run.LEASE_S + 10
_END_S = 60.0  # for a learner that was told to end; its grace and the end of its samplers
_PAUSE_S, _FULL_S, _BETWEEN_S = 1.0, 2.0, 0.2
_SPOILED_BYTES = 16


class Soaked(Protocol):
    """What the monkey sees of the soak.

    Attributes:
        attempt: the one at work.
        places: of the run.
        spoiled: snapshots that are not as they were written.
        excused: updates whose rollouts may not be there.
    """

    attempt: soak_run.Attempt
    places: soak_run.Places
    spoiled: set[pathlib.Path]
    excused: set[int]

    def watch(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Goes on with the checks for so long, or until something holds; whether it does."""
        ...

    def violate(self, words: str) -> None:
        """Writes down a violation."""
        ...

    def updates(self) -> int:
        """The newest update of this attempt, 0 before its first one."""
        ...


def plan(seed: int) -> Iterator[tuple[float, str]]:
    """Seconds to the next fault and its kind, without end."""
    rng = random.Random(seed)
    while True:
        deck = [kind for kind, count in DECK.items() for _ in range(count)]
        rng.shuffle(deck)
        for kind in deck:
            yield rng.expovariate(1.0 / MEAN_PAUSE_S), kind


def inject(kind: str, soak: Soaked, rng: random.Random) -> bool:
    """Does it, and sees it through; False where there is no victim."""
    attempt = soak.attempt
    with contextlib.suppress(ProcessLookupError):
        match kind.split():
            case ["learner", *words]:
                return _signal_learner(" ".join(words), soak)
            case ["snapshot", _]:
                return _spoil(soak)
            case ["disk", _]:
                return _fill(soak)
            case [victim, how]:
                role = {"sampler": "sample", "evaluator": "evaluate_snapshots"}[victim]
                pids = sorted(p.pid for p in attempt.processes(role))
                if not pids:
                    return False
                attempt.faults.add(kind)
                return {"killed": _kill, "stopped": _stop, "paused": _pause}[how](
                    rng.choice(pids), soak
                )
    return False


def release(attempt: soak_run.Attempt) -> None:
    """Lets go on what was stopped, and files grow again."""
    for process in attempt.processes():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGCONT)
            _let_grow(process.pid)


def _kill(pid: int, soak: Soaked) -> bool:
    os.kill(pid, signal.SIGKILL)
    return True


def _stop(pid: int, soak: Soaked) -> bool:
    """Stops a sampler until it is killed, as its lease is overdue."""
    os.kill(pid, signal.SIGSTOP)
    soak.watch(_OVERDUE_S, lambda: not proc.is_alive(pid))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)  # it had no lease
    return True


def _pause(pid: int, soak: Soaked) -> bool:
    """Stops a sampler for a moment."""
    os.kill(pid, signal.SIGSTOP)
    soak.watch(_PAUSE_S)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return True


def _signal_learner(how: str, soak: Soaked) -> bool:
    """Sends signals to the learner and waits for the next attempt."""
    attempt = soak.attempt
    attempt.faults.add(f"learner {how}")
    number = {
        "killed": signal.SIGKILL,
        "interrupted": signal.SIGINT,
    }.get(how, signal.SIGTERM)
    attempt.process.send_signal(number)
    if how.endswith("twice"):
        soak.watch(_BETWEEN_S)
        attempt.process.send_signal(number)  # nothing where it has ended
    if not soak.watch(_END_S, lambda: soak.attempt is not attempt):
        soak.violate(f"P9 the learner was {how} and is there after {_END_S:.0f} s")
        attempt.faults.add("learner killed")
        attempt.process.kill()
    return True


def _spoil(soak: Soaked) -> bool:
    """Changes the last numbers of the newest snapshot where they are."""
    paths = sorted(soak.places.snapshots.glob("*/v*.safetensors"))
    if not paths:
        return False
    with contextlib.suppress(OSError), paths[-1].open("r+b") as file:
        file.seek(-_SPOILED_BYTES, os.SEEK_END)
        numbers = file.read()
        file.seek(-_SPOILED_BYTES, os.SEEK_END)
        soak.spoiled.add(paths[-1])
        soak.attempt.faults.add("snapshot spoiled")
        file.write(bytes(255 - byte for byte in numbers))
        return True
    return False


def _fill(soak: Soaked) -> bool:
    """Files of the learner cannot grow for a moment; a stand-in for a full disk.

    Not in its start, where a run whose directory cannot be written to is refused.
    """
    attempt, first = soak.attempt, soak.updates()
    if not first:
        return False
    attempt.faults.add("disk full")
    pid = attempt.process.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    soak.watch(_FULL_S, lambda: soak.attempt is not attempt)
    for process in attempt.processes():
        with contextlib.suppress(ProcessLookupError):
            _let_grow(process.pid)
    # Rollouts that could not be written then are not written later.
    soak.excused |= set(range(first - 1, max(first, soak.updates()) + 4))
    return True


def _let_grow(pid: int) -> None:
    """Takes the limit on files away."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    if resource.prlimit(pid, resource.RLIMIT_FSIZE)[0] == 0:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
