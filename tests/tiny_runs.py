"""Tiny runs of the real command in processes of their own, as a user starts them."""

import dataclasses
import fcntl
import json
import multiprocessing
import os
import pathlib
import runpy
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

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
    "reward.num_processes": 0,  # as the package's own tasks, which are cheap
    "checkpoint.every_updates": 0,
    "sampler.max_response_tokens": 6,
    "log.tensorboard": False,
    "log.rollouts_every_updates": 0,
}
TIMEOUT_S = 300


@dataclasses.dataclass(frozen=True)
class Finished:
    """A command that has ended; its code is negative if a signal ended it."""

    workdir: pathlib.Path
    code: int | None
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
    def trained(self) -> dict[int, list[int]]:
        """The tickets that each update trained on, of a run that writes all of them down."""
        found = {}
        for path in sorted((self.workdir / "rollouts").iterdir()):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[int(path.stem[7:])] = sorted({line["ticket"] for line in lines})
        return found

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
        """A training command; double underscores in names stand for dots, None for the default."""
        given = {name.replace("__", "."): value for name, value in fields.items()}
        config = {**TINY, "runtime.snapshot_dir": str(self.snapshots), **given}
        set_ = {name: value for name, value in config.items() if value is not None}
        flags = [f"--config.{name}={value}" for name, value in set_.items()]
        return [sys.executable, "-m", "asympo_jax.train", f"--workdir={workdir}", *flags]

    def train(
        self, workdir: pathlib.Path, before: Callable[[], None] | None = None, **fields: object
    ) -> Finished:
        """Runs a training command to its end.

        Args:
            workdir: of the run.
            before: called in its process, just before it begins.
            fields: as of `command`.
        """
        return self.finish(workdir, self.command(workdir, **fields), before)

    def finish(
        self,
        workdir: pathlib.Path,
        command: Sequence[str],
        before: Callable[[], None] | None = None,
    ) -> Finished:
        """Runs a command of the package to its end, in a fork of a process that imported it."""
        python, option, module, *arguments = command
        assert (python, option) == (sys.executable, "-m")
        with tempfile.TemporaryDirectory() as directory:
            outputs = [pathlib.Path(directory) / name for name in ("stdout", "stderr")]
            given = (module, arguments, self.environment, outputs, before)
            process = FORKS.Process(target=_run, args=given)
            process.start()
            process.join(TIMEOUT_S)
            if is_late := process.is_alive():
                process.kill()
                process.join()
            assert not is_late, outputs[1].read_text()
            return Finished(workdir, process.exitcode, *(path.read_text() for path in outputs))

    def finish_afresh(self, workdir: pathlib.Path, command: Sequence[str]) -> Finished:
        """Runs any command to its end as a user does, from Python's start to its end."""
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


def longer_run(runner: Runner, folder: pathlib.Path) -> dict[int, dict]:
    """Results of a run of two updates that was made longer by four, whose workdir is `folder/run`.

    Made once, whoever asks first; the others wait.
    """
    folder.mkdir(exist_ok=True)
    fields: dict[str, Any] = {"runtime__name": "sync", "eval__num_prompts": 40}
    fields |= {"optimizer__learning_rate": 0.05, "model__qk_norm": True}
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for num_updates in (2, 6):
            path = folder / f"{num_updates}.json"
            if not path.exists():
                run = runner.train(folder / "run", num_updates=num_updates, **fields)
                path.write_text(json.dumps(run.result))
    return {n: json.loads((folder / f"{n}.json").read_text()) for n in (2, 6)}


FORKS = multiprocessing.get_context("forkserver")
# All but the commands themselves; no device is touched, so that a fork finds no thread.
FORKS.set_forkserver_preload(["asympo_jax.command", "asympo_jax.training", "asympo_jax.evaluation"])


def _run(
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    outputs: list[pathlib.Path],
    before: Callable[[], None] | None,
) -> None:
    """A command, in the fork that it runs in."""
    os.environ.clear()
    os.environ.update(environment)
    # jax, which is imported already, has read the environment of another process.
    jax.config.update("jax_compilation_cache_dir", environment.get("JAX_COMPILATION_CACHE_DIR"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [module, *arguments]
    if before is not None:
        before()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def cut_back(run: Finished, workdir: pathlib.Path, update: int) -> None:
    """Copies a run as a kill would have left it, with no checkpoint after that of `update`."""
    shutil.copytree(run.workdir, workdir)
    (workdir / "result.json").unlink()
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > update:
            shutil.rmtree(path)


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


def metrics_lines(workdir: pathlib.Path) -> list[str]:
    """What a run has written of its metrics so far."""
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, process: subprocess.Popen) -> None:
    """Waits for a state of a running command; fails when the command ends before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)
