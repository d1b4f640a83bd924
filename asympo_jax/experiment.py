"""What every role builds from a resolved config: task, model, engine, sampler, evaluation."""

import dataclasses
import pathlib

import jax

from asympo_jax.learning import TrainState, init_state, make_optimizer
from asympo_jax.models import ModelConfig
from asympo_jax.runtime.checkpoint import Checkpointer
from asympo_jax.runtime.sampler import Sampler
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.sampling import DrawParams, EngineConfig, Evaluator, draw_params
from asympo_jax.settings import ExperimentConfig
from asympo_jax.tasks import Task, make_task


@dataclasses.dataclass(frozen=True)
class Parts:
    """What every role builds from the config, the same in each.

    Attributes:
        task: prompts, rewards, tokenizer.
        model: the decoder's shape.
        engine: shapes of a lease.
    """

    task: Task
    model: ModelConfig
    engine: EngineConfig


def build_parts(config: ExperimentConfig) -> Parts:
    """The task, the model's shape and the engine's.

    Raises:
        ValueError: the task refuses its options, or has fewer prompts than the config asks for.
    """
    task = make_task(config.task_name, **config.task_options)
    if config.eval.num_prompts > task.num_eval:
        raise ValueError(
            f"eval.num_prompts={config.eval.num_prompts}: task {config.task_name!r} has "
            f"{task.num_eval} held-out prompts"
        )
    if config.pacing.prompts_per_update > task.num_train:
        raise ValueError(
            f"prompts_per_update={config.pacing.prompts_per_update}: task {config.task_name!r} has "
            f"{task.num_train} training prompts"
        )
    _check_lengths(config, task)
    if config.warmup.num_steps:
        task.demonstration(0)  # refuses a warm-up on a task that has none
    engine = EngineConfig(
        num_prompts=config.pacing.prompts_per_lease,
        group_size=config.group_size,
        max_prompt_tokens=config.sampler.max_prompt_tokens,
        max_response_tokens=config.sampler.max_response_tokens,
        segment=config.sampler.segment,
        stop_ids=task.tokenizer.stop_ids,
        record_logp="behaviour" in config.objective.needs or config.sampler.record_behaviour_logp,
    )
    model = ModelConfig(vocab_size=task.tokenizer.vocab_size, **config.model)
    return Parts(task=task, model=model, engine=engine)


def _check_lengths(config: ExperimentConfig, task: Task) -> None:
    """Refuses a prompt that does not fit, among the held-out ones in use and as many others."""
    room = config.sampler.max_prompt_tokens
    num_prompts = config.eval.num_prompts
    prompts = [task.eval_prompt(i) for i in range(num_prompts)]
    prompts += [task.train_prompt(i) for i in range(min(num_prompts, task.num_train))]
    for prompt in prompts:
        length = len(task.tokenizer.encode(prompt.text))
        if not 1 <= length <= room:
            raise ValueError(
                f"sampler.max_prompt_tokens={room}: prompt {prompt.text[:60]!r} has {length} "
                "tokens, must have from 1 up to that many"
            )


def make_sampler(config: ExperimentConfig, parts: Parts, store: SnapshotStore) -> Sampler:
    """The sampler of a config, reading snapshots from `store`."""
    return Sampler(
        task=parts.task,
        model=parts.model,
        engine=parts.engine,
        draw=_draw_params(config),
        pacing=config.pacing,
        seed=config.seed,
        read_snapshot=store.read,
    )


def make_evaluator(config: ExperimentConfig, parts: Parts) -> Evaluator:
    """The evaluation of a config."""
    return Evaluator(
        task=parts.task,
        model=parts.model,
        engine=parts.engine,
        num_prompts=config.eval.num_prompts,
        samples_per_prompt=config.eval.samples_per_prompt,
        draw=_draw_params(config),
    )


def load_state(config: ExperimentConfig, parts: Parts, workdir: pathlib.Path) -> TrainState:
    """The state in a run's newest checkpoint.

    Raises:
        ValueError: there is none.
    """
    checkpointer = Checkpointer(workdir, config.checkpoint.keep)
    if checkpointer.latest() is None:
        raise ValueError(f"workdir={workdir}: has no checkpoint")
    like = init_state(parts.model, make_optimizer(config.optimizer), jax.random.key(0))
    state = checkpointer.restore(like).state
    checkpointer.close()
    return state


def _draw_params(config: ExperimentConfig) -> DrawParams:
    """Temperature and cuts of a config."""
    sampler = config.sampler
    return draw_params(sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p)
