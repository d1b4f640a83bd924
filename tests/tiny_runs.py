"""Tiny runs of the real command in processes of their own, as a user starts them."""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import runpy
import select
import subprocess
import sys
import time
from collections.abc import Callable

from asympo_jax.runtime.metrics import read_metrics

# A model of a few hundred parameters on one-digit sums: seconds, of which most is compilation.
TINY = {
    "task.name": "tasks_for_tests:Digits",
    "num_updates": 6,
    "prompts_per_update": 4,
    "group_size": 4,
    "lag": 2,
    "warmup.num_steps": 0,
    "model.num_layers": 1,
    "model.width": 16,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_width": 8,
    "model.mlp_width": 16,
    "eval.num_prompts": 8,
    "eval.every_updates": 0,
    "eval.process": False,
    "checkpoint.every_updates": 0,
    "sampler.max_response_tokens": 6,
    "log.tensorboard": False,
    "log.rollouts_every_updates": 0,
}
TIMEOUT_S = 300


@dataclasses.dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    workdir: pathlib.Path
    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict:
        assert self.code == 0, self.stderr
        return json.loads((self.workdir / "result.json").read_text())

    @property
    def sha(self) -> str:
        return self.result["parameters_sha256"]

    @property
    def metrics(self) -> list[dict]:
        return read_metrics(self.workdir / "metrics.jsonl")

    @property
    def error(self) -> str:
        """The one sentence on what is wrong."""
        return self.stderr.strip().splitlines()[-1]


class Runner:
    """Starts commands that share one cache of compiled programs.

    Args:
        cache: directory of that cache.
        snapshots: directory for the snapshots of all runs, to see what is left behind.
    """

    def __init__(self, cache: pathlib.Path, snapshots: pathlib.Path):
        self.snapshots = snapshots
        self.environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        self.environment["PYTHONPATH"] = str(pathlib.Path(__file__).parent)
        # Eight simulated devices are for this process alone.
        flags = (flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
        self.environment["XLA_FLAGS"] = " ".join(flags)

    def command(self, workdir: pathlib.Path, **fields: object) -> list[str]:
        """A training command; double underscores in names stand for dots."""
        given = {name.replace("__", "."): value for name, value in fields.items()}
        config = {**TINY, "runtime.snapshot_dir": str(self.snapshots), **given}
        flags = [f"--config.{name}={value}" for name, value in config.items()]
        return [sys.executable, "-m", "asympo_jax.train", f"--workdir={workdir}", *flags]

    def train(self, workdir: pathlib.Path, **fields: object) -> Finished:
        """Runs a training command to its end."""
        return self.finish(workdir, self.command(workdir, **fields))

    def finish(self, workdir: pathlib.Path, command: list[str]) -> Finished:
        """Runs a command to its end."""
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=self.environment
        )
        return Finished(workdir, done.returncode, done.stdout, done.stderr)

    def start(self, workdir: pathlib.Path, **fields: object) -> subprocess.Popen[str]:
        """Starts a training command."""
        return subprocess.Popen(
            self.command(workdir, **fields),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )


FORKS = multiprocessing.get_context("forkserver")
# All but the command itself; no device is touched, so that a fork finds no thread.
FORKS.set_forkserver_preload(["asympo_jax.command", "asympo_jax.training"])


def refused(workdir: pathlib.Path, *flags: str) -> tuple[int | None, str]:
    """Exit code and stderr of a training command that ends before it uses a device.

    It runs in a fork of a process that has imported what takes seconds to import.
    """
    stderr = workdir.with_suffix(".stderr")
    arguments = (stderr, [f"--workdir={workdir}", *flags])
    process = FORKS.Process(target=_train, args=arguments, daemon=True)
    process.start()
    process.join(TIMEOUT_S)
    return process.exitcode, stderr.read_text()


def _train(stderr: pathlib.Path, flags: list[str]) -> None:
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    sys.argv = ["train", *flags]
    runpy.run_module("asympo_jax.train", run_name="__main__", alter_sys=True)


def processes_about(path: pathlib.Path) -> list[int]:
    """Live processes whose command line names `path`."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            continue
        if entry.name.isdigit() and str(path).encode() in command and state != "Z":
            found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool]) -> bool:
    """Waits for a state that no process tells of; False if it never comes."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition() and time.monotonic() < deadline:
        select.select([], [], [], 0.05)
    return condition()
