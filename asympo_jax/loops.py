"""The learner's loop of a run, put together from its config."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax

from asympo_jax import experiment, interrupts
from asympo_jax.learning import (
    Packed,
    TrainState,
    make_optimizer,
    make_sign_gradients,
    make_train_step,
)
from asympo_jax.progress import Answer, Progress, say
from asympo_jax.runtime import wire
from asympo_jax.runtime.batches import BatchRecorder
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.compilation import Compilations, make_step_watch
from asympo_jax.runtime.evaluations import EvaluationLog
from asympo_jax.runtime.learner import Cadence, Learner
from asympo_jax.runtime.lockstep import Lockstep
from asympo_jax.runtime.metrics import MetricsWriter
from asympo_jax.runtime.pipeline import PipelineMeter
from asympo_jax.runtime.publisher import Publisher
from asympo_jax.runtime.reward_alarm import RewardAlarm
from asympo_jax.runtime.sampler import SamplerLoop
from asympo_jax.runtime.saving import SaveCadence
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.runtime.wandb_log import WandbLog
from asympo_jax.settings import ExperimentConfig
from asympo_jax.tokenizers import Tokenizer
from asympo_jax.types import Group
from asympo_jax.warmup_cache import num_positions

_STEP = "jit(update_step)"  # what jax calls the learner's step


def cadence_of(config: ExperimentConfig) -> Cadence:
    """What happens how often."""
    return Cadence(
        evaluate=config.eval.every_updates,
        rollouts=config.log.rollouts_every_updates,
        rollouts_groups=config.log.rollouts_groups,
        gradients=config.log.gradients_every_updates,
    )


def make_writer(config: ExperimentConfig, workdir: pathlib.Path, resumed_at: int) -> MetricsWriter:
    """Where the metrics of a run go."""
    project = config.log.wandb_project
    wandb_log = None if project is None else WandbLog(project, workdir, config.source)
    return MetricsWriter(workdir, resumed_at, config.log.tensorboard, say, wandb_log)


def make_publisher(
    config: ExperimentConfig,
    store: SnapshotStore,
    workdir: pathlib.Path,
    broker: Broker,
    resumed_at: int,
    skipped: int,
) -> Publisher:
    """The publisher of a run, which records batches, too; `skipped` in a row were before it."""
    recorded, max_skipped = config.log.record_batches, config.learner.max_skipped_updates
    # Of the skipped updates that end a run all batches are there.
    keep = max(recorded, max_skipped + 1)
    recorder = BatchRecorder(workdir, resumed_at, every=recorded > 0, keep=keep, tell=say)
    record = recorder.record
    return Publisher(store, broker, config.stall_s, max_skipped, record, skipped=skipped)


_ALONE = Lockstep()


def make_learner(
    config: ExperimentConfig,
    parts: experiment.Parts,
    store: SnapshotStore,
    broker: Broker,
    publisher: Publisher,
    writer: MetricsWriter,
    progress: Progress,
    log: EvaluationLog,
    compilations: Compilations,
    save: Callable[[TrainState], None],
    check_saved: Callable[[], None] = lambda: None,
    mesh: jax.sharding.Mesh | None = None,
    lockstep: Lockstep = _ALONE,
) -> Learner:
    """The learner's loop with everything that it needs; where there is one process, it samples.

    `check_saved` is called after each update: a checkpoint that could not be written is told then,
    and not when the next one is due. The step runs on `mesh`; without one, on one device. What it
    is given is announced to other processes by `lockstep`.
    """
    step, sign_gradients = make_programs(config, parts, mesh)
    in_process = config.runtime_name == "sync"
    cadence = SaveCadence(config.checkpoint.every_updates, config.checkpoint.every_s)

    def is_save_due(version: int) -> bool:
        check_saved()
        return cadence.is_due(version)

    def show(update: int, metrics: dict[str, float], groups: Sequence[Group]) -> None:
        interrupts.raise_if_received()
        progress.update(update, metrics, lambda: _last_answer(groups, parts.task.tokenizer))

    def announce(groups: Sequence[Group], is_halved: bool) -> None:
        if not lockstep.is_alone:
            fields = [wire.group_fields(group) for group in groups]
            lockstep.announce("update", groups=fields, is_halved=is_halved)

    return Learner(
        step=step,
        sign_gradients=sign_gradients,
        broker=broker,
        store=store,
        pacing=config.pacing,
        prompts_per_update=config.prompts_per_update,
        group_size=config.group_size,
        num_positions=num_positions(config),
        tokenizer=parts.task.tokenizer,
        alarm=RewardAlarm(config.reward.max_failed_share, parts.task.tokenizer),
        publisher=publisher,
        meter=PipelineMeter(
            1 if in_process else config.sampler.count,
            num_filling=0 if in_process else config.pacing.max_lag + 1,
        ),
        in_step=in_process,
        stall_s=config.stall_s,
        cadence=cadence_of(config),
        writer=writer,
        sample=_make_sample(config, parts, store, broker) if in_process else lambda: None,
        evaluations=log,
        is_save_due=is_save_due,
        save=save,
        show=show,
        announce=announce,
        compiled=make_step_watch(compilations, _STEP, say),
    )


def make_programs(
    config: ExperimentConfig, parts: experiment.Parts, mesh: jax.sharding.Mesh | None
) -> tuple[Packed, Packed]:
    """The learner's step, and what gives the halves of a gradient, on a mesh or one device."""
    model = dataclasses.replace(parts.model, remat=config.learner.remat, mesh=mesh)
    optimizer = make_optimizer(config.optimizer)
    step = make_train_step(model, config.objective, optimizer, config.step)
    return step, make_sign_gradients(model, config.objective, config.step)


def _last_answer(groups: Sequence[Group], tokenizer: Tokenizer) -> Answer | None:
    """One of the responses that an update trained on, to be shown."""
    if not groups:
        return None
    group = groups[-1]
    response = group.response_GT[0, : group.length_G[0]].tolist()
    prompt = tokenizer.decode(group.prompt_S.tolist())
    return prompt, tokenizer.decode(response), float(group.reward_G[0])


def _make_sample(
    config: ExperimentConfig, parts: experiment.Parts, store: SnapshotStore, broker: Broker
) -> Callable[[], None]:
    """Samples the groups of one update in this process."""
    loop = SamplerLoop(experiment.make_sampler(config, parts, store), broker)

    def sample() -> None:
        while not broker.has_batch():  # some of it may be there in a resumed run
            loop.work_one()

    return sample
