"""The run that is soaked: the training command on a tiny model, and one attempt at it."""

import collections
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import uuid
from typing import Any

import proc

ROOT = pathlib.Path(__file__).parents[1]
LEASE_S = 15.0  # a grading that hangs and the start of another grading process fit in
SAMPLERS = 2
CONFIG: dict[str, Any] = {
    "task.name": "arithmetic",
    "reward.function": "soak_parts:reward",
    "reward.num_processes": 1,
    "reward.deadline_s": 5.0,
    "objective.name": "soak_parts:objective",
    "optimizer.learning_rate": 1e-5,
    "learner.max_skipped_updates": 8,
    "prompts_per_update": 4,
    "group_size": 4,
    "lag": 2,
    "order": "ticket",
    "warmup.num_steps": 0,
    "model.num_layers": 1,
    "model.width": 16,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_width": 8,
    "model.mlp_width": 16,
    "sampler.prompts_per_lease": 2,
    "sampler.max_response_tokens": 6,
    "eval.num_prompts": 8,
    "eval.every_updates": 50,
    "checkpoint.every_updates": 20,
    "log.tensorboard": False,
    "log.rollouts_every_updates": 1,
    "log.rollouts_groups": 4,
}
LOCAL = {
    "sampler.count": SAMPLERS,
    "eval.process": True,
    "runtime.lease_s": LEASE_S,
    "runtime.max_restarts": 1_000_000,
}
ALONE = {"runtime.name": "sync"}
_TAIL_LINES = 40
_RESUMED = re.compile(r"carries on from the checkpoint of update (\d+)")


@dataclasses.dataclass(frozen=True)
class Places:
    """Where a run puts what.

    Attributes:
        workdir: of the run.
        snapshots: directory for its snapshots, which nothing else uses.
        programs: compiled ones.
    """

    workdir: pathlib.Path
    snapshots: pathlib.Path
    programs: pathlib.Path


class Attempt:
    """One start of the training command.

    Args:
        places: of the run.
        fields: of its config, besides those of `CONFIG`.

    Attributes:
        process: the learner's.
        started: monotonic seconds.
        tail: last lines on standard error.
        resumed: the update that it said it carries on from, None before.
        before: newest complete checkpoint before it.
        faults: kinds of what was done to it.
    """

    def __init__(self, places: Places, fields: dict[str, object]):
        """Starts it."""
        self._mark = f"SOAKED_RUN={uuid.uuid4().hex}"
        self.started = time.monotonic()
        self.tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self.resumed: int | None = None
        self.faults: set[str] = set()
        self.before = newest_checkpoint(places.workdir)
        config = {
            **CONFIG,
            "runtime.snapshot_dir": places.snapshots,
            "runtime.compilation_cache": places.programs,
            **fields,
        }
        flags = [f"--config.{name}={value}" for name, value in config.items()]
        # A pipe, as what cannot write to a file must still be able to say so.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "asympo_jax.train", f"--workdir={places.workdir}", *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self._environment(),
            start_new_session=True,  # Ctrl-C is for the soak alone
        )
        self._log = places.workdir.with_suffix(".stderr").open("a")
        self._reader = threading.Thread(target=self._read, name="stderr", daemon=True)
        self._reader.start()

    def processes(self, role: str | None = None) -> list[proc.Process]:
        """Its live processes, all or those of a role."""
        return [p for p in proc.marked(self._mark) if role in (None, p.role)]

    def close(self) -> None:
        """Reads what is left on standard error, once all processes have ended."""
        self.process.wait()
        self._reader.join(5.0)
        if self.process.stderr is not None and not self._reader.is_alive():
            self.process.stderr.close()
        self._log.close()

    def _environment(self) -> dict[str, str]:
        """That of this process, with the mark and the paths of what it imports."""
        paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
        name, value = self._mark.split("=")
        given = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_PLATFORMS": "cpu"}
        return {**os.environ, **given, name: value}

    def _read(self) -> None:
        """Keeps what is written to standard error."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.tail.append(line.rstrip("\n"))
            self._log.write(line)
            self._log.flush()
            found = _RESUMED.search(line)
            if found:
                self.resumed = int(found[1])


def newest_checkpoint(workdir: pathlib.Path) -> int:
    """Update of the newest complete checkpoint, 0 without any."""
    return max((int(path.name) for path in checkpoints(workdir)), default=0)


def checkpoints(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The complete checkpoints; those that are not have longer names."""
    folder = workdir / "checkpoints"
    return [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
