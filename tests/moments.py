"""Whole runs in forks of a process that has imported them, which signal themselves at a moment.

A moment is a file operation of the learner's process, so that no test sleeps to hit one.
"""

import dataclasses
import json
import os
import pathlib
import re
import runpy
import select
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from tiny_runs import FORKS, TIMEOUT_S, TINY, Runner

_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "subprocess.Popen"}
_COMMIT = re.compile(r"/checkpoints/\d+$")
_PARTIAL = re.compile(r"/checkpoints/\d+\.orbax-checkpoint-tmp[^/]*/")


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a run gets which signals from itself.

    Attributes:
        name: `before`, `during` or `after` a commit of a checkpoint, `update` between an update and
            its checkpoint, `start` of a sampler, or `operation`, any that touches the run's files.
        count: the how manieth it is, from 1.
        signals: sent one after the other.
    """

    name: str
    count: int
    signals: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    workdir: pathlib.Path
    code: int | None
    stderr: str

    @property
    def sha(self) -> str:
        return json.loads((self.workdir / "result.json").read_text())["parameters_sha256"]

    @property
    def trained(self) -> dict[int, list[int]]:
        """The tickets that each update trained on, of a run that writes all of them down."""
        found = {}
        for path in sorted((self.workdir / "rollouts").iterdir()):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[int(path.stem[7:])] = sorted({line["ticket"] for line in lines})
        return found


def run(runner: Runner, workdir: pathlib.Path, moment: Moment | None = None, **fields) -> Ended:
    """Runs a training command to its end, whatever that is."""
    stderr = workdir.with_suffix(".stderr")
    given = {name.replace("__", "."): value for name, value in fields.items()}
    config = {**TINY, "runtime.snapshot_dir": str(runner.snapshots), **given}
    flags = [f"--workdir={workdir}", *(f"--config.{name}={config[name]}" for name in config)]
    arguments = (runner.environment, stderr, flags, moment, [str(workdir), str(runner.snapshots)])
    process = FORKS.Process(target=_train, args=arguments)
    process.start()
    process.join(TIMEOUT_S)
    return Ended(workdir, process.exitcode, stderr.read_text())


def _train(
    environment: dict[str, str],
    stderr: pathlib.Path,
    flags: list[str],
    moment: Moment | None,
    places: list[str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for option in ("compilation_cache_dir", "persistent_cache_min_compile_time_secs"):
        value = environment[f"JAX_{option.upper()}"]
        jax.config.update(f"jax_{option}", value if option.endswith("dir") else float(value))
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["train", *flags]
    if moment is not None:
        _arm(moment, places)
    runpy.run_module("asympo_jax.train", run_name="__main__", alter_sys=True)


def _arm(moment: Moment, places: list[str]) -> None:
    """Makes this process signal itself."""
    from asympo_jax import interrupts

    left, committed = moment.count, False
    interrupts._SAME_S = 0.0  # the second signal follows at once, and is meant

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
        case "during":
            return is_written and bool(_PARTIAL.search(paths[0]))
        case "start":
            return event == "subprocess.Popen"
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
