"""A run from the checked config to `result.json`: starts the roles, trains, stops the roles.

The order matters: this process is pinned to the learner's cores before jax starts its backend, and
the samplers start before the learner loads or compiles anything, so that all do so at once.
"""

import dataclasses
import pathlib
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import jax

from asympo_jax import experiment, workdirs
from asympo_jax.learning import (
    TrainState,
    init_state,
    make_optimizer,
    make_train_step,
    state_from_params,
)
from asympo_jax.progress import Progress
from asympo_jax.runtime import placement
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.checkpoint import Checkpointer
from asympo_jax.runtime.learner import Cadence, Learner, NonFinite
from asympo_jax.runtime.leases import Closed, Stalled
from asympo_jax.runtime.local import LocalSamplers
from asympo_jax.runtime.metrics import MetricsWriter
from asympo_jax.runtime.sampler import SamplerLoop
from asympo_jax.runtime.snapshots import SnapshotStore, make_snapshot_directory, parameters_sha256
from asympo_jax.settings import ExperimentConfig
from asympo_jax.tasks import RewardError
from asympo_jax.warmup_cache import warmed_up_params

_STOP_TIMEOUT_S = 20.0


class RunFailed(Exception):
    """A run that ended without its result; the message is one sentence of cause."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An experiment that was checked and may start.

    Attributes:
        config: the experiment.
        parts: what every role builds.
        workdir: its directory, ready.
        result: of a run that is already complete, else None.
    """

    config: ExperimentConfig
    parts: experiment.Parts
    workdir: pathlib.Path
    result: dict[str, Any] | None

    def run(self) -> dict[str, Any]:
        """Trains, or carries on, until `num_updates`; returns what `result.json` then holds.

        Raises:
            RunFailed: the run broke; the message names the first cause.
        """
        if self.result is not None:
            return self.result
        start = time.monotonic()
        all_cores = placement.available_cores()
        learner_cores, _ = placement.split_cores(all_cores)
        placement.pin(learner_cores)
        if self.config.learner.platform:
            jax.config.update("jax_platforms", self.config.learner.platform)
        run_id = uuid.uuid4().hex[:12]
        store = SnapshotStore(make_snapshot_directory(self.config.snapshot_dir, run_id), run_id)
        try:
            run = _Run(self.config, self.parts, self.workdir, store, run_id)
            return run.go(all_cores, start)
        finally:
            store.remove()


def prepare(config: ExperimentConfig, workdir: pathlib.Path) -> Prepared:
    """Checks everything that needs no device, and makes the workdir ready.

    Raises:
        ValueError: a config that does not fit the task or the workdir; nothing was started.
    """
    parts = experiment.build_parts(config)
    return Prepared(config, parts, workdir, workdirs.prepare(workdir, config))


@dataclasses.dataclass
class _Run:
    """One attempt at a run, from the first snapshot to the result."""

    config: ExperimentConfig
    parts: experiment.Parts
    workdir: pathlib.Path
    store: SnapshotStore
    run_id: str

    def go(self, all_cores: list[int], start: float) -> dict[str, Any]:
        """Starts the roles, runs the learner, stops the roles, writes the result."""
        config = self.config
        checkpointer = Checkpointer(self.workdir, config.checkpoint.keep)
        ledger = checkpointer.ledger()
        broker = Broker(config.pacing, config.queue_capacity, ledger)
        samplers = self._start_samplers(broker, all_cores)
        progress = Progress(config.pacing.num_updates)
        try:
            state = self._first_state(checkpointer)
            writer = MetricsWriter(self.workdir, int(state.update), config.log.tensorboard)
            broker.open(int(state.update))
            evaluate = self._evaluation()
            learner = self._learner(broker, checkpointer, writer, progress, evaluate)
            if int(state.update) == 0:
                before = evaluate(state.params)
                writer.write(0, before)
                progress.start(before)
            state = learner.run(state)
            after = evaluate(state.params)
            self._save(checkpointer, broker, state)
            writer.close()
        except (Closed, Stalled, NonFinite, RewardError) as failure:
            broker.close(str(failure))
            raise RunFailed(str(failure)) from failure
        finally:
            broker.close()
            if samplers is not None:
                samplers.stop(_STOP_TIMEOUT_S)
            checkpointer.close()
            progress.stop()
        result = {
            "objective": config.objective.name,
            "parameters_sha256": parameters_sha256(state.params),
            **after,
            "updates": int(state.update),
            "wall_s": round(time.monotonic() - start, 3),
        }
        workdirs.write_result(self.workdir, result)
        return result

    def _start_samplers(self, broker: Broker, all_cores: list[int]) -> LocalSamplers | None:
        """Sampler processes, or None where this process samples itself."""
        config = self.config
        if config.runtime_name == "sync":
            return None
        _, shared = placement.split_cores(all_cores)
        command = [
            sys.executable,
            "-m",
            "asympo_jax.sample",
            f"--config={self.workdir / 'config.json'}",
            f"--snapshots={self.store.directory}",
            f"--run_id={self.run_id}",
            f"--cores={','.join(map(str, shared))}",
        ]
        environment = placement.sampler_environment(
            config.sampler.platform, config.sampler.visible_devices
        )
        return LocalSamplers(broker, command, environment, config.sampler.count)

    def _first_state(self, checkpointer: Checkpointer) -> TrainState:
        """The state to go on from; its snapshot, and those of its lag window, are written."""
        config, parts = self.config, self.parts
        optimizer = make_optimizer(config.optimizer)
        if checkpointer.latest() is not None:
            like = init_state(parts.model, optimizer, jax.random.key(config.seed))
            restored = checkpointer.restore(like)
            for version, params in restored.snapshots.items():
                self.store.write(version, params)
            return restored.state
        directory = workdirs.warmup_directory(config, self.workdir)
        state = state_from_params(warmed_up_params(config, parts, directory), optimizer)
        self.store.write(0, state.params)
        return state

    def _evaluation(self):
        """Parameters -> metrics of an evaluation."""
        evaluator = experiment.make_evaluator(self.config, self.parts)

        def evaluate(params: Any) -> dict[str, float]:
            return {"eval/accuracy": evaluator.sampled(params).mean}

        return evaluate

    def _save(self, checkpointer: Checkpointer, broker: Broker, state: TrainState) -> None:
        """A checkpoint of everything that goes on."""
        checkpointer.save(state, broker.ledger_json(), self.run_id, self.store)

    def _learner(self, broker, checkpointer, writer, progress, evaluate) -> Learner:
        """The learner's loop with everything that it needs."""
        config, parts = self.config, self.parts
        in_process = config.runtime_name == "sync"
        return Learner(
            step=make_train_step(
                parts.model, config.objective, make_optimizer(config.optimizer), config.step
            ),
            broker=broker,
            store=self.store,
            pacing=config.pacing,
            group_size=config.group_size,
            num_positions=config.sampler.max_prompt_tokens + config.sampler.max_response_tokens,
            tokenizer=parts.task.tokenizer,
            num_samplers=1 if in_process else config.sampler.count,
            stall_s=config.stall_s,
            cadence=Cadence(
                evaluate=config.eval.every_updates,
                checkpoint=config.checkpoint.every_updates,
                rollouts=config.log.rollouts_every_updates,
                rollouts_groups=config.log.rollouts_groups,
            ),
            workdir=self.workdir,
            writer=writer,
            sample=self._synchronous_sampling(broker) if in_process else lambda: None,
            evaluate=evaluate,
            save=lambda state: self._save(checkpointer, broker, state),
            show=progress.update,
        )

    def _synchronous_sampling(self, broker: Broker) -> Callable[[], None]:
        """Samples the groups of one update in this process."""
        sampler = experiment.make_sampler(self.config, self.parts, self.store)
        loop = SamplerLoop(sampler, broker)
        pacing = self.config.pacing

        def sample() -> None:
            for _ in range(pacing.prompts_per_update // pacing.prompts_per_lease):
                loop.work_one()

        return sample
