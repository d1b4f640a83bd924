"""A run from the checked config to `result.json`: starts the roles, trains, stops the roles.

The order matters: this process is pinned to the learner's cores before jax starts its backend, and
the samplers start before the learner loads or compiles anything, so that all do so at once.
"""

import contextlib
import dataclasses
import pathlib
import time
import uuid
from typing import IO, Any

import jax

from asympo_jax import beginning, environment, experiment, interrupts, live, workdirs
from asympo_jax.endings import Diverged, RunFailed, failures
from asympo_jax.hosts import ALONE, Hosts
from asympo_jax.initial import check_initial
from asympo_jax.learning import TrainState
from asympo_jax.loops import cadence_of, make_learner, make_publisher, make_writer
from asympo_jax.processes import Launcher
from asympo_jax.progress import say, say_left_out
from asympo_jax.runtime import placement
from asympo_jax.runtime.admission import Admission
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.checkpoint import CheckpointRefused
from asympo_jax.runtime.compilation import Compilations
from asympo_jax.runtime.evaluations import (
    EvaluationLog,
    Evaluations,
    EvaluationsHere,
    EvaluatorEnded,
)
from asympo_jax.runtime.leases import Closed, Refused, Stalled
from asympo_jax.runtime.pipeline import PipelineMeter
from asympo_jax.runtime.publisher import NonFinite
from asympo_jax.runtime.snapshots import SnapshotRefused, SnapshotStore, parameters_sha256
from asympo_jax.settings import ExperimentConfig
from asympo_jax.tasks import RewardError

_STOP_TIMEOUT_S = 8.0
_ACCURACIES = ("eval/accuracy", "eval/accuracy_greedy")
# What ends a run; anything else is a fault of this program, and its traceback says where.
_CAUSES = (
    Closed,
    Refused,
    Stalled,
    EvaluatorEnded,
    RewardError,
    SnapshotRefused,
    CheckpointRefused,
    OSError,  # a full disk, a directory that is gone
)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An experiment that was checked and may start.

    Attributes:
        config: the experiment.
        parts: what every role builds.
        workdir: its directory, ready.
        result: of a run that is already complete, else None.
        lock: held on the workdir as long as this lives.
    """

    config: ExperimentConfig
    parts: experiment.Parts
    workdir: pathlib.Path
    result: dict[str, Any] | None
    lock: IO[str]

    def run(self, hosts: Hosts = ALONE) -> dict[str, Any]:
        """Trains, or carries on, until `num_updates`; returns what `result.json` then holds.

        Args:
            hosts: this process, the first one, among those that train.

        Raises:
            RunFailed: the run broke; the message names the first cause.
            Diverged: its numbers are not finite.
        """
        if self.result is not None:
            return self.result
        start = time.monotonic()
        all_cores = placement.available_cores()
        learner_cores, _ = placement.split_cores(all_cores)
        placement.pin(learner_cores)
        run_id = uuid.uuid4().hex[:12]
        beginning.announce(self.config, self.workdir, run_id, hosts.lockstep)
        mesh = beginning.start_learner(self.config, hosts.count)
        environment.record(self.workdir, environment.describe(placement.device_kinds()), say)
        with contextlib.ExitStack() as stack:
            with failures(OSError):
                directory = beginning.enter_directory(stack, self.config.snapshot_dir, run_id)
            store = beginning.make_store(self.config, directory, run_id, hosts)
            run = _Run(self.config, self.parts, self.workdir, store, run_id, mesh, hosts)
            try:
                with failures(*_CAUSES):
                    result = run.train(all_cores)
            except NonFinite as failure:
                raise Diverged(str(failure)) from failure
        result["wall_s"] = round(time.monotonic() - start, 3)
        try:
            workdirs.write_result(self.workdir, result)
        except OSError as failure:
            raise RunFailed(f"{failure}; the same command writes the result") from failure
        return result


def prepare(config: ExperimentConfig, workdir: pathlib.Path) -> Prepared:
    """Checks everything that needs no device, makes the workdir ready and locks it.

    Raises:
        ValueError: a config that does not fit the task or the workdir; nothing was started.
        RunFailed: the workdir is in use, or cannot be written now; nothing was started.
    """
    parts = experiment.build_parts(config)
    prompts = parts.prompts_sha256  # refuses prompts that are none
    check_initial(config)
    config.check_installed()
    say_left_out(parts.task)
    workdirs.check_writable("workdir", workdir)
    workdirs.check(workdir, config, prompts)  # before the lock leaves a file in another's directory
    if config.warmup.num_steps:
        workdirs.check_writable("warmup.dir", workdirs.warmup_directory(config, workdir))
    if config.snapshot_dir is not None:
        workdirs.check_writable("runtime.snapshot_dir", pathlib.Path(config.snapshot_dir))
    if config.compilation_cache:
        workdirs.check_writable("runtime.compilation_cache", pathlib.Path(config.compilation_cache))
    _advise(workdir)
    lock = workdirs.lock(workdir)
    try:
        return Prepared(config, parts, workdir, workdirs.prepare(workdir, config, prompts), lock)
    except Exception:
        lock.close()
        raise


def _advise(workdir: pathlib.Path) -> None:
    """Says what to do after an end at once: there is a checkpoint to carry on from, or none."""
    has_saved = bool(workdirs.checkpoint_updates(workdir))
    interrupts.advise(interrupts.CARRIES_ON if has_saved else interrupts.BEGINS_ANEW)


@dataclasses.dataclass
class _Run:
    """One attempt at a run, from the first snapshot to the last update."""

    config: ExperimentConfig
    parts: experiment.Parts
    workdir: pathlib.Path
    store: SnapshotStore
    run_id: str
    mesh: jax.sharding.Mesh | None = None
    hosts: Hosts = ALONE

    @property
    def admission(self) -> Admission:
        """What the groups of the run must be."""
        return experiment.make_admission(self.parts)

    def train(self, all_cores: list[int]) -> dict[str, Any]:
        """Starts the roles, runs the learner, stops the roles; returns what it came to."""
        config, compilations = self.config, Compilations()
        # Left in the reverse order: the broker is closed first, then those who wait for it end.
        with contextlib.ExitStack() as stack:
            checkpointer = beginning.open_checkpoints(config, self.workdir, self.hosts.count)
            stack.callback(checkpointer.close)
            broker = Broker(
                config.pacing,
                config.queue_capacity,
                *checkpointer.tickets(),
                run_id=self.run_id,
                admission=self.admission,
                lease_s=config.lease_s,
            )
            evaluations = self._start_processes(stack, broker, all_cores)
            stack.callback(broker.close)
            state, skipped = beginning.take_up(
                config, self.parts, self.workdir, self.store, checkpointer,
                broker.raise_if_closed, self.mesh, self.hosts.lockstep,
            )  # fmt: skip
            writer = make_writer(config, self.workdir, int(state.update))
            stack.callback(writer.close)
            broker.open(int(state.update))
            progress = stack.enter_context(live.progress(config, int(state.update)))
            bounds = (config.eval.max_waiting, config.eval.deadline_s)
            log = EvaluationLog(evaluations, writer, progress.evaluated, say, *bounds)
            self._request_first(log, state)
            log.collect()
            publisher = make_publisher(
                config, self.store, self.workdir, broker, int(state.update), skipped
            )

            def save(state: TrainState) -> None:
                # A checkpoint of everything that goes on.
                needed = config.pacing.versions_to_resume(int(state.update))
                needed.update(evaluations.outstanding())
                given = (*broker.unsettled(), self.run_id, self.store, needed)
                self.hosts.lockstep.announce("save")
                checkpointer.save(state, *given, publisher.skipped)

            def check_saved() -> None:
                checkpointer.check()
                # Of which the manager knows since it has begun, and the directory when it is whole.
                is_begun = checkpointer.latest() is not None
                if is_begun and interrupts.advice() == interrupts.BEGINS_ANEW:
                    _advise(self.workdir)

            stack.callback(publisher.close, _STOP_TIMEOUT_S)
            learner = make_learner(
                config, self.parts, self.store, broker, publisher, writer, progress, log,
                compilations, save, check_saved, self.mesh, self.hosts.lockstep,
            )  # fmt: skip
            with interrupts.asking(broker.close, config.checkpoint.grace_s):
                state = learner.run(state)
                save(state)
                checkpointer.wait()
            return self._finish(log, learner.meter, state)

    def _finish(self, log: EvaluationLog, meter: PipelineMeter, state: TrainState) -> dict:
        """What the run came to, once its last evaluation has come in; all is saved before.

        Raises:
            Stopped: it was asked to end, in training or now; Interrupted if by Ctrl-C.
        """
        update = int(state.update)
        try:
            interrupts.raise_if_asked()
            after = log.last(update, state.policy, interrupts.raise_if_received)
        except (interrupts.Terminated, KeyboardInterrupt) as asked:
            ending = interrupts.ending_of(asked)
            raise ending(
                f"{ending.verb} after update {update} of {self.config.pacing.num_updates}, "
                "which is saved; the same command carries on"
            ) from asked
        self.hosts.lockstep.announce("hash")
        result = {
            "objective": self.config.objective.name,
            "parameters_sha256": parameters_sha256(state.params),
            **{name: after[name] for name in _ACCURACIES},
            "updates": update,
        }
        shares = meter.whole()
        if shares is None:
            return result
        say(shares.bottleneck())
        return result | {"pipeline/ideal_fraction": round(shares.ideal_fraction, 4)}

    def _start_processes(
        self, stack: contextlib.ExitStack, broker: Broker, all_cores: list[int]
    ) -> Evaluations:
        """Samplers, unless this process samples itself; returns where to ask for evaluations."""
        config = self.config
        _, shared = placement.split_cores(all_cores)
        launcher = Launcher(
            config, self.workdir, self.store, self.run_id, shared, self.parts.prompts_sha256
        )
        if config.runtime_name != "sync":
            max_bytes = self.admission.max_frame_bytes(config.pacing.prompts_per_lease)
            samplers = launcher.start_samplers(broker, max_bytes)
            stack.callback(samplers.stop, _STOP_TIMEOUT_S)
        if not config.eval.process:
            read = self.store.read_policy if self.hosts.count > 1 else None
            return EvaluationsHere(experiment.make_evaluate(config, self.parts), read)
        evaluator = launcher.start_evaluator()
        stack.callback(evaluator.stop)
        return evaluator

    def _request_first(self, log: EvaluationLog, state: TrainState) -> None:
        """Asks for the evaluation before training, or for those that a resumed run still lacks."""
        update = int(state.update)
        if update == 0:
            log.request(0, state.policy)
            return
        # The newest first: those that do not fit are the older ones. The last one comes by itself.
        known = log.writer.evaluated
        for version in reversed(self.store.versions()):
            due = version == 0 or cadence_of(self.config).is_evaluated(version)
            if due and version not in known and version < self.config.pacing.num_updates:
                # With the base that the state has: the store would read another onto the device.
                log.request(version, state.decoder(self.store.read(version)))
