"""What every role builds from a resolved config: task, model, engine, sampler, evaluation."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asympo_jax import decoder, import_path, models
from asympo_jax.defaults import default_config
from asympo_jax.models import ModelConfig
from asympo_jax.runtime.admission import Admission
from asympo_jax.runtime.reward_pool import RewardPool, RewardSource
from asympo_jax.runtime.rewards import Grader
from asympo_jax.runtime.sampler import Sampler
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.sampling import DrawParams, EngineConfig, Evaluator, draw_params, make_place
from asympo_jax.sections import RewardConfig
from asympo_jax.settings import ExperimentConfig
from asympo_jax.tasks import Task, is_of_package, make_task, prompts_sha256
from asympo_jax.types import Prompt


@dataclasses.dataclass(frozen=True)
class Parts:
    """What every role builds from the config, the same in each.

    Attributes:
        task: prompts, rewards, tokenizer.
        grader: rewards as training sees them.
        correct: which responses are right, in the evaluation; None to ask the task.
        model: the decoder's shape.
        engine: shapes of a lease.
    """

    task: Task
    grader: Grader
    model: ModelConfig
    engine: EngineConfig
    correct: Callable[[Sequence[tuple[Prompt, str]]], list[bool]] | None

    @functools.cached_property
    def prompts_sha256(self) -> str:
        """Of the task's prompts; made where it is asked for, as some take milliseconds each."""
        return prompts_sha256(self.task)


def build_parts(config: ExperimentConfig) -> Parts:
    """The task, the model's shape and the engine's.

    Raises:
        ValueError: the task refuses its options, has fewer prompts than the config asks for, or
            the learner's devices cannot share the decoder.
    """
    # Before the task, whose tokenizer most often comes from the same directory.
    published = decoder.published_shape(config)
    task = make_task(config.task_name, **config.task_options)
    if config.eval.num_prompts > task.num_eval:
        raise ValueError(
            f"eval.num_prompts={config.eval.num_prompts}: task {config.task_name!r} has "
            f"{task.num_eval} held-out prompts"
        )
    num_sampled = config.pacing.prompts_per_update
    if num_sampled > task.num_train:
        field = (
            "prompts_per_update"
            if num_sampled == config.prompts_per_update
            else "candidates_per_update"
        )
        raise ValueError(
            f"{field}={num_sampled}: task {config.task_name!r} has "
            f"{task.num_train} training prompts"
        )
    _check_lengths(config, task)
    if config.warmup.num_steps:
        task.demonstration(0)  # refuses a warm-up on a task that has none
    engine = engine_of(config, task.tokenizer.stop_ids)
    model = decoder.shape_of(config, published, task.tokenizer)
    config.learner.mesh.check(model)
    models.MeshShape(tensor=config.sampler.tensor).check(model, "sampler")
    pool = _make_pool(config, task)
    return Parts(
        task=task,
        grader=_make_grader(config, task, pool),
        model=model,
        engine=engine,
        correct=None if pool is None else functools.partial(_are_correct, pool),
    )


def engine_of(config: ExperimentConfig, stop_ids: tuple[int, ...]) -> EngineConfig:
    """The shapes of a lease."""
    return EngineConfig(
        num_prompts=config.pacing.prompts_per_lease,
        group_size=config.group_size,
        max_prompt_tokens=config.sampler.max_prompt_tokens,
        max_response_tokens=config.sampler.max_response_tokens,
        segment=config.sampler.segment,
        stop_ids=stop_ids,
        lanes=config.sampler.lanes,
        record_logp="behaviour" in config.objective.needs or config.sampler.record_behaviour_logp,
    )


def _make_pool(config: ExperimentConfig, task: Task) -> RewardPool | None:
    """The processes that grade; None where that is done inline. They start with the first grading.

    Raises:
        ValueError: the task's rewards must not be computed inline, but the config asks for it.
    """
    settings = config.reward
    num_processes = settings.num_processes
    if num_processes is None:
        # What others wrote may hang or crash, and would take its sampler along.
        is_own = is_of_package(task) and settings.function is None
        num_processes = 0 if is_own and not task.grades_in_pool else 1
    if not num_processes and task.grades_in_pool:
        raise ValueError(
            f"reward.num_processes=0: task {config.task_name!r} grades what may hang, it must be "
            "at least 1"
        )
    if not num_processes and settings.isolate:
        raise ValueError(
            "reward.isolate=True with reward.num_processes=0: there is no process to copy, set "
            "reward.num_processes=1 or reward.isolate=False"
        )
    if not num_processes:
        _refuse_unused(settings)
        return None
    options, isolate = config.task_options, settings.isolate
    source = RewardSource(config.task_name, options, settings.function, isolate)
    return RewardPool(source, num_processes, settings.deadline_s, settings.max_failed_share)


def _refuse_unused(settings: RewardConfig) -> None:
    """Refuses what only grading processes use, where there are none."""
    unused = default_config().reward
    for field in ("deadline_s", "max_failed_share"):
        value = getattr(settings, field)
        if value != unused[field]:
            raise ValueError(
                f"reward.{field}={value}: a sampler that grades itself does not use it; set "
                f"reward.num_processes=1 or leave it at {unused[field]}"
            )


def _are_correct(pool: RewardPool, pairs: Sequence[tuple[Prompt, str]]) -> list[bool]:
    """Which responses are right; one that could not be graded, for whatever reason, is not.

    Raises:
        RewardError: too few responses could be graded.
    """
    return [one.value >= 1.0 for one in pool.grade("correct", pairs)]


def _make_grader(config: ExperimentConfig, task: Task, pool: RewardPool | None) -> Grader:
    """The task's reward or the user's own, with the penalty of overlong responses."""
    settings = config.reward
    return Grader(
        pool=pool,
        reward=task.reward
        if settings.function is None
        else import_path.load("reward.function", settings.function, "a function", callable),
        max_response_tokens=config.sampler.max_response_tokens,
        overlong_buffer=settings.overlong_buffer,
        overlong_penalty=settings.overlong_penalty,
    )


def _check_lengths(config: ExperimentConfig, task: Task) -> None:
    """Refuses a prompt that does not fit, among the held-out ones in use and as many others."""
    room = config.sampler.max_prompt_tokens
    kept = config.task_options.get("max_prompt_tokens", 0)
    if isinstance(kept, int) and kept > room:
        raise ValueError(
            f"task.max_prompt_tokens={kept}: must be at most sampler.max_prompt_tokens={room}, the "
            "samplers' room for a prompt"
        )
    num_prompts = config.eval.num_prompts
    prompts = [task.eval_prompt(i) for i in range(num_prompts)]
    prompts += [task.train_prompt(i) for i in range(min(num_prompts, task.num_train))]
    for prompt in prompts:
        length = len(task.tokenizer.encode_prompt(prompt.text))
        if not 1 <= length <= room:
            raise ValueError(
                f"sampler.max_prompt_tokens={room}: prompt {prompt.text[:60]!r} has {length} "
                "tokens, must have from 1 up to that many"
            )


def make_sampler(config: ExperimentConfig, parts: Parts, store: SnapshotStore) -> Sampler:
    """The sampler of a config, reading snapshots from `store` onto its devices."""
    place = make_place(config.sampler.devices, config.sampler.tensor)
    return Sampler(
        task=parts.task,
        grader=parts.grader,
        model=parts.model,
        engine=parts.engine,
        draw=_draw_params(config),
        pacing=config.pacing,
        seed=config.seed,
        read_snapshot=functools.partial(store.read_policy, place=place),
    )


def make_admission(parts: Parts) -> Admission:
    """What the groups of the samplers of these parts must be."""
    return Admission(
        group_size=parts.engine.group_size,
        vocab_size=parts.model.vocab_size,
        max_prompt_tokens=parts.engine.max_prompt_tokens,
        max_response_tokens=parts.engine.max_response_tokens,
        has_logp=parts.engine.record_logp,
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
        correct=parts.correct,
        max_rows=config.eval.max_rows,
    )


def as_sampled(config: ExperimentConfig, params: Any) -> Any:
    """Parameters as samplers have them, rounded to `sampler.params_dtype`."""
    return models.rounded(params, config.sampler.params_dtype)


def make_evaluate(
    config: ExperimentConfig, parts: Parts
) -> Callable[[Any, bool], dict[str, float]]:
    """(Parameters, whether greedily, too) -> metrics of an evaluation."""
    evaluator, pool = make_evaluator(config, parts), parts.grader.pool

    def evaluate(params: Any, greedily: bool) -> dict[str, float]:
        # On the device once: the engine would send what is on the host at every call.
        params = as_sampled(config, params)
        if config.sampler.tensor == 1:  # else a process has read them onto its devices
            if config.learner.mesh.num_devices > 1:
                # Evaluation is the work of one device, as that of a sampler is.
                params = jax.tree.map(np.asarray, params)
            params = jax.tree.map(jnp.asarray, params)
        failed_before = 0 if pool is None else pool.num_failed
        found = {"eval/accuracy": evaluator.sampled(params).mean}
        if greedily:
            found["eval/accuracy_greedy"] = evaluator.greedy(params).mean
        if pool is not None:
            found["eval/ungraded"] = float(pool.num_failed - failed_before)
        return found

    return evaluate


def _draw_params(config: ExperimentConfig) -> DrawParams:
    """Temperature and cuts of a config."""
    sampler = config.sampler
    return draw_params(sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p)
