"""Runs of several learner processes on this machine, each with its own part of the devices."""

import concurrent.futures
import functools
import os
import pathlib
import signal
import socket
import types
from collections.abc import Callable, Mapping

from tiny_runs import Finished, Runner, wait_until

# Two by two devices, which two processes have two each of.
MESH = {"learner__data": 2, "learner__fsdp": 2, "lag": 1}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def flags(count: int) -> list[list[str]]:
    """Of each process, where no cluster tells them."""
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    return [[address, f"--num_processes={count}", f"--process_id={i}"] for i in range(count)]


def slurm(count: int) -> list[dict[str, str]]:
    """The environment of each process of a step of a Slurm job."""
    # jax takes the last 4096 ports, and of those the job's number.
    return [
        {
            "SLURM_JOB_ID": str(4096 + os.getpid() % 4096),
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": str(count),
            "SLURM_STEP_NUM_NODES": str(count),
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": "0",
        }
        for i in range(count)
    ]


def run(
    runner: Runner,
    workdir: pathlib.Path,
    arguments: list[list[str]],
    befores: Mapping[int, Callable[[], None]] | None = None,
    **fields: object,
) -> list[Finished]:
    """Runs a training command as several processes to their ends.

    Args:
        runner: starts them.
        workdir: of the run.
        arguments: of each process, besides those of all.
        befores: what is called in some of them before they begin.
        fields: of the config.
    """
    command, befores = runner.command(workdir, **MESH, **fields), befores or {}
    with concurrent.futures.ThreadPoolExecutor(len(arguments)) as pool:
        ends = [
            pool.submit(runner.finish, workdir, [*command, *own], befores.get(i))
            for i, own in enumerate(arguments)
        ]
        return [end.result() for end in ends]


def in_environment(variables: Mapping[str, str]) -> Callable[[], None]:
    """Sets variables in the process that calls it."""
    return functools.partial(_set_environment, dict(variables))


def _set_environment(variables: Mapping[str, str]) -> None:
    os.environ.update(variables)


def signalled(number: signal.Signals, update: int) -> Callable[[], None]:
    """Makes a process that follows signal itself at the batch of an update."""
    return functools.partial(_signal_at, number, update)


def _signal_at(number: signal.Signals, update: int) -> None:
    from asympo_jax import following

    _at_batch(following, update, lambda: os.kill(os.getpid(), number))


def asked(update: int) -> Callable[[], None]:
    """Makes process 0 wait at the batch of an update until it is asked to end."""
    return functools.partial(_wait_at, update)


def killed(update: int) -> Callable[[], None]:
    """Makes process 0 kill itself at the batch of an update."""
    return functools.partial(_kill_at, update)


def _kill_at(update: int) -> None:
    from asympo_jax.runtime import learner

    _at_batch(learner, update, lambda: os.kill(os.getpid(), signal.SIGKILL))


def _wait_at(update: int) -> None:
    from asympo_jax import interrupts
    from asympo_jax.runtime import learner

    _at_batch(learner, update, lambda: wait_until(interrupts.is_asked))


def _at_batch(module: types.ModuleType, update: int, act: Callable[[], object]) -> None:
    """Acts at the call of `make_batch` for an update, the first of an attempt being 1."""
    make_batch, calls = module.make_batch, []

    def make(*arguments):
        calls.append(None)
        if len(calls) == update:
            act()
        return make_batch(*arguments)

    module.make_batch = make  # pyright: ignore[reportAttributeAccessIssue]
