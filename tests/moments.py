"""Whole runs in forks of a process that has imported them, which signal themselves at a moment.

A moment is a file operation of the learner's process, so that no test sleeps to hit one.
"""

import dataclasses
import functools
import os
import pathlib
import re
import select
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tiny_runs import Finished, Runner

_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "subprocess.Popen"}
_COMMIT = re.compile(r"/checkpoints/\d+$")
_PARTIAL = re.compile(r"/checkpoints/\d+\.orbax-checkpoint-tmp[^/]*/")


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a run gets which signals from itself.

    Attributes:
        name: `before`, `during` or `after` a commit of a checkpoint, `update` between an update and
            its checkpoint, `start` of a sampler, `lock` of the directory of snapshots, or
            `operation`, any that touches the run's files.
        count: the how manieth it is, from 1.
        signals: sent one after the other.
    """

    name: str
    count: int
    signals: Sequence[int]


def run(runner: Runner, workdir: pathlib.Path, moment: Moment | None = None, **fields) -> Finished:
    """Runs a training command to its end, whatever that is."""
    if moment is None:
        return runner.train(workdir, **fields)
    places = [str(workdir), str(runner.snapshots)]
    return runner.train(workdir, functools.partial(_arm, moment, places), **fields)


def _arm(moment: Moment, places: list[str]) -> None:
    """Makes this process signal itself."""
    from asympo_jax import interrupts

    left, committed = moment.count, False
    interrupts._SAME_S = 0.0  # the second signal follows at once, and is meant
    interrupts.END_S = 60.0  # beside other tests a run may be slow to save

    def signal_self() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            for number in moment.signals:
                os.kill(os.getpid(), number)
                while number == signal.SIGTERM and not interrupts.is_asked():
                    select.select([], [], [], 0.01)  # else the next one would be the same one

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal committed
        if left <= 0 or event not in _OPERATIONS:
            return
        if committed:
            committed = False
            signal_self()
        paths = [str(a) for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
        is_written = event == "open" and str(arguments[1]).startswith("w")
        if _is_it(moment.name, event, is_written, paths, places):
            if moment.name == "after":
                committed = True
            else:
                signal_self()

    if moment.name == "update":
        _before_saves(signal_self)
    else:
        sys.addaudithook(hear)


def _is_it(name: str, event: str, is_written: bool, paths: list[str], places: list[str]) -> bool:
    """Whether an operation is one of a kind of moment."""
    match name:
        case "before" | "after":
            return event == "os.rename" and bool(_COMMIT.search(paths[-1]))
        case "lock":
            return event == "open" and any(path.startswith(places[1]) for path in paths)
        case "during":
            return is_written and bool(_PARTIAL.search(paths[0]))
        case "start":
            return event == "subprocess.Popen" and paths[0] != "git"
        case _:
            return any(path.startswith(place) for path in paths for place in places)


def _before_saves(call: Callable[[], None]) -> None:
    """Calls whenever an update is done and its checkpoint not begun."""
    from asympo_jax.runtime.checkpoint import Checkpointer

    save = Checkpointer.save

    def saving(*args, **kwargs):
        call()
        return save(*args, **kwargs)

    Checkpointer.save = saving
