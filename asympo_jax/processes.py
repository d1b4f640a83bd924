"""The processes of a run besides the learner's: how they are started, told and put to work."""

import argparse
import dataclasses
import os
import pathlib
import select
import signal
import sys
import threading
import time
from typing import Protocol

from asympo_jax import devices, experiment
from asympo_jax.config import from_plain, read_json, resolve
from asympo_jax.progress import say
from asympo_jax.runtime import placement
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.compilation import keep_compiled
from asympo_jax.runtime.evaluator import EvaluatorProcess
from asympo_jax.runtime.leases import Holder
from asympo_jax.runtime.local import LocalProcess
from asympo_jax.runtime.private_directories import remove_if_unused
from asympo_jax.runtime.sampler import SamplerLoop
from asympo_jax.runtime.serving import Client
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.runtime.supervisor import Supervisor
from asympo_jax.settings import ExperimentConfig
from asympo_jax.tasks import RewardError

_TRIES, _TRY_S = 4, 0.05  # to remove snapshots, and the time between
_GONE_S = 2.0  # from the end of a pipe to the end of a process that does not end by itself


class Samplers(Protocol):
    """Samplers at work."""

    def stop(self, timeout_s: float) -> None:
        """See `Supervisor.stop`."""
        ...


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Starts the processes of one attempt at a run.

    Attributes:
        config: the experiment.
        workdir: of the run, with its config.json.
        store: snapshots of the attempt.
        run_id: identity of the attempt.
        cores: of all samplers and the evaluator together.
        prompts_sha256: of the task's prompts, as the learner found them.
    """

    config: ExperimentConfig
    workdir: pathlib.Path
    store: SnapshotStore
    run_id: str
    cores: list[int]
    prompts_sha256: str

    def start_samplers(self, broker: Broker, max_frame_bytes: int) -> Samplers:
        """The samplers, which lease from the broker; a submission has a bound.

        Raises:
            RunFailed: they are actors of Ray, and its cluster is refused.
        """
        if self.config.runtime_name == "ray":
            from asympo_jax import actors  # which imports this module

            given = (self.config, self.store, self.run_id, self.cores, self.prompts_sha256)
            return actors.start_samplers(*given, broker, max_frame_bytes)
        sampler = self.config.sampler
        environments = [
            placement.role_environment(
                sampler.platform, its_own, sampler.devices, sampler.memory_fraction
            )
            for its_own in devices.of_samplers(sampler)
        ]
        command = self._command("asympo_jax.sample")
        lease_s = self.config.lease_s
        say(f"starting {sampler.count} sampler{'s' * (sampler.count > 1)} on {sampler.platform}")

        def start(holder: Holder) -> LocalProcess:
            environment = environments[holder[0]]
            return LocalProcess(holder, broker, command, environment, max_frame_bytes, lease_s)

        return Supervisor(broker, start, sampler.count, self.config.max_restarts, say)

    def start_evaluator(self) -> EvaluatorProcess:
        """The process that evaluates snapshots."""
        evaluation = self.config.eval
        environment = placement.role_environment(
            evaluation.platform, devices.of_one(evaluation), self.config.sampler.tensor
        )
        command = self._command("asympo_jax.evaluate_snapshots")
        return EvaluatorProcess(command, environment, evaluation.deadline_s)

    def _command(self, program: str) -> list[str]:
        """The command of a program."""
        return [
            sys.executable,
            "-m",
            program,
            f"--config={self.workdir / 'config.json'}",
            f"--snapshots={self.store.directory}",
            f"--num_parts={self.store.num_parts}",
            f"--run_id={self.run_id}",
            f"--cores={','.join(map(str, self.cores))}",
            f"--prompts_sha256={self.prompts_sha256}",
        ]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a process of a run was started with.

    Attributes:
        config: the experiment.
        store: snapshots to read.
        cores: of all samplers and the evaluator together.
        index: number of a sampler.
        fd: file descriptor of its pipe; of a sampler, that for leases.
        submit_fd: file descriptor of a sampler's pipe for submissions.
        prompts_sha256: of the task's prompts, as the learner found them.
    """

    config: ExperimentConfig
    store: SnapshotStore
    cores: list[int]
    index: int
    fd: int
    submit_fd: int
    prompts_sha256: str

    def build_parts(self) -> experiment.Parts:
        """What every role builds, of the learner's prompts.

        Raises:
            ValueError: as `experiment.build_parts`, or the prompts are others here.
        """
        parts = experiment.build_parts(self.config)
        if parts.prompts_sha256 != self.prompts_sha256:
            raise ValueError(
                f"task.name={self.config.task_name!r}: its prompts here are not the learner's; its "
                "data were changed after the run was started, or it does not make the same prompts "
                "in every process"
            )
        return parts


def sample(given: Arguments, client: Client) -> bool:
    """The work of a sampler until the run ends; False if it has no device, or a reward fails."""
    sampler = given.config.sampler
    # XLA sizes its thread pool when the first array is made: pin before.
    placement.pin(placement.sampler_cores(given.cores, given.index, sampler.cores))
    keep_compiled(given.config.compilation_cache)
    try:
        placement.start_backend("sampler.platform", sampler.platform)
        parts = given.build_parts()
        loop = SamplerLoop(experiment.make_sampler(given.config, parts, given.store), client)
        loop.run(client.fail)
    except placement.NoDevice as error:
        client.fail(str(error))
        return False
    except RewardError as error:  # a fault of what others wrote, whose words say all
        client.fail(f"RewardError: {error}")
        return False
    except Exception as error:
        client.fail(f"{type(error).__name__}: {error}")
        raise
    return True


def end_with_learner(given: Arguments) -> None:
    """From now on this process ends soon after the learner, whatever it is at work on.

    Signals are the learner's alone to answer, although a scheduler sends them to every process.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave_to_learner)  # SIG_IGN would be inherited by what this starts
    arguments = (given.fd, given.store.directory)
    threading.Thread(target=_end_after, args=arguments, name="learner", daemon=True).start()


def _leave_to_learner(number: int, frame: object) -> None:
    """A handler that does nothing."""


def _end_after(fd: int, snapshots: pathlib.Path) -> None:
    """Waits for the other end of a pipe to be closed; removes what a killed learner left."""
    pipe = select.poll()
    pipe.register(fd, 0)
    pipe.poll()
    time.sleep(_GONE_S)
    remove_if_unused(snapshots)
    os._exit(1)


def remove_left_behind(snapshots: pathlib.Path) -> None:
    """Removes what a killed learner left, when a process ends by itself.

    The pipe of a learner that was killed may be closed a moment before its lock is free.
    """
    for _ in range(_TRIES):
        if remove_if_unused(snapshots):
            return
        time.sleep(_TRY_S)


def read_arguments(description: str | None) -> Arguments:
    """Reads what a `Launcher` put on the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="config.json of the run")
    parser.add_argument("--snapshots", required=True, help="directory of the snapshots")
    parser.add_argument("--num_parts", type=int, default=1, help="files of a snapshot")
    parser.add_argument("--run_id", required=True, help="identity of the run")
    parser.add_argument("--cores", required=True, help="cores of all together, comma-separated")
    parser.add_argument("--index", type=int, default=0, help="number of this sampler")
    parser.add_argument("--fd", required=True, type=int, help="file descriptor of the pipe")
    parser.add_argument("--submit_fd", type=int, default=-1, help="of a sampler's second pipe")
    parser.add_argument("--prompts_sha256", required=True, help="of the learner's prompts")
    arguments = parser.parse_args()
    return Arguments(
        config=resolve(from_plain(read_json(arguments.config))),
        store=SnapshotStore(arguments.snapshots, arguments.run_id, num_parts=arguments.num_parts),
        cores=[int(core) for core in arguments.cores.split(",")],
        index=arguments.index,
        fd=arguments.fd,
        submit_fd=arguments.submit_fd,
        prompts_sha256=arguments.prompts_sha256,
    )
