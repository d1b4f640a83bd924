"""The experiment's config: an editable ConfigDict that `resolve` turns into frozen dataclasses.

Everything that can be wrong with a config is refused here, before any device is touched. This file
is itself the config file of `train` if none is named.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, get_args

import ml_collections

from asympo_jax import objectives
from asympo_jax.defaults import default_config
from asympo_jax.learning import OptimizerConfig, StepConfig, WarmupConfig
from asympo_jax.models import ModelConfig
from asympo_jax.runtime.tickets import Order, Pacing
from asympo_jax.sections import (
    CheckpointConfig,
    EvalConfig,
    LearnerConfig,
    LogConfig,
    RewardConfig,
    SamplerConfig,
)
from asympo_jax.settings import ExperimentConfig

# Of integers that are worked through one by one before anything else would stop them.
_LARGEST = {
    "group_size": 2**16,
    "model.num_layers": 1000,
    "sampler.count": 1024,
    "warmup.num_steps": 10**6,
}


def get_config(json_path: str | None = None) -> ml_collections.ConfigDict:
    """The default config, or the one that a run left in `json_path` (its `config.json`)."""
    return default_config() if json_path is None else from_plain(read_json(json_path))


def read_json(path: str | pathlib.Path) -> dict[str, Any]:
    """The plain config in a file.

    Raises:
        ValueError: the file cannot be read or holds no JSON object.
    """
    try:
        data = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {type(data).__name__}")
    return data


def from_plain(data: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The default config with the values of plain data; options of one's own may be added.

    Raises:
        ValueError: an unknown section or field, or a value of a wrong type.
    """
    config = default_config()
    for name, value in data.items():
        if name not in config:
            raise ValueError(f"config field {name!r} does not exist, allowed are {sorted(config)}")
        section = config[name]
        values = value if isinstance(section, ml_collections.ConfigDict) else {name: value}
        target = section if isinstance(section, ml_collections.ConfigDict) else config
        if not isinstance(values, Mapping):
            raise ValueError(f"config section {name!r} must be an object, got {value!r}")
        for field, field_value in values.items():
            if field_value is None:
                continue
            if isinstance(field_value, bool) and not isinstance(target.get(field), bool | None):
                raise ValueError(
                    f"config field '{name}.{field}': must be a number or text, got {field_value}"
                )
            if field not in target and name not in ("objective", "task"):
                raise ValueError(f"config field '{name}.{field}' does not exist")
            with target.unlocked():
                try:
                    target[field] = field_value
                except TypeError as error:
                    raise ValueError(f"config field '{name}.{field}': {error}") from error
    return config


def resolve(config: ml_collections.ConfigDict) -> ExperimentConfig:
    """The experiment that a config describes.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    _check_sections(config)
    objective = _objective(config)
    task_options = _set_fields(config.task)
    task_name = task_options.pop("name")
    pacing = _pacing(config)
    sampler = SamplerConfig(
        **{**config.sampler.to_dict(), "prompts_per_lease": pacing.prompts_per_lease}
    )
    ModelConfig(vocab_size=1, **config.model.to_dict())  # refuses a wrong shape now
    source = config.to_dict()
    warmup = config.warmup.to_dict()
    warmup_dir, warmup_seed = warmup.pop("dir"), warmup.pop("seed")
    return ExperimentConfig(
        seed=config.seed,
        prompts_per_update=config.prompts_per_update,
        group_size=config.group_size,
        pacing=pacing,
        queue_capacity=_queue_capacity(config),
        objective=objective,
        step=_step(config, objective, pacing),
        task_name=task_name,
        task_options=task_options,
        reward=_reward(config),
        model=config.model.to_dict(),
        optimizer=OptimizerConfig(**config.optimizer.to_dict()),
        learner=LearnerConfig(**config.learner.to_dict()),
        sampler=sampler,
        warmup=WarmupConfig(**warmup),
        warmup_dir=warmup_dir,
        init_seed=config.seed if warmup_seed is None else warmup_seed,
        eval=EvalConfig(**config.eval.to_dict()),
        checkpoint=CheckpointConfig(**config.checkpoint.to_dict()),
        log=LogConfig(**config.log.to_dict()),
        runtime_name=config.runtime.name,
        stall_s=config.runtime.stall_s,
        snapshot_dir=config.runtime.snapshot_dir,
        source=source,
    )


def _check_sections(config: ml_collections.ConfigDict) -> None:
    """Refuses a config that lacks a section or a field, and integers beyond 32 bits."""
    for name, default in default_config().items():
        if name not in config:
            raise ValueError(f"{name}: is missing, asympo_jax/defaults.py has it")
        section = config[name]
        if not isinstance(default, ml_collections.ConfigDict):
            _check_integer(name, section)
            continue
        if not isinstance(section, ml_collections.ConfigDict):
            raise ValueError(f"config section {name!r} must have fields, got {section!r}")
        for field in default:
            if field not in section:
                raise ValueError(f"{name}.{field}: is missing, asympo_jax/defaults.py has it")
            _check_integer(f"{name}.{field}", section[field])


def _check_integer(field: str, value: Any) -> None:
    """Refuses an integer that no array can count to, or that no machine could work through."""
    largest = _LARGEST.get(field, 2**32 - 1)
    if isinstance(value, int) and abs(value) > largest:
        raise ValueError(f"{field}={value}: must be at most {largest}")


def _objective(config: ml_collections.ConfigDict) -> objectives.Objective:
    """The objective with its options."""
    options = _set_fields(config.objective)
    name = options.pop("name")
    objective = objectives.make(name, **options)
    has_its_own = name not in objectives.names() and "aggregation" not in options
    if objective.aggregation == "constant" and "constant" not in options and not has_its_own:
        longest = float(config.sampler.max_response_tokens)
        return dataclasses.replace(objective, constant=longest)
    return objective


def _set_fields(section: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields of a section that are set."""
    return {name: value for name, value in section.to_dict().items() if value is not None}


def _reward(config: ml_collections.ConfigDict) -> RewardConfig:
    """The reward's changes, checked against the longest response."""
    reward = RewardConfig(**config.reward.to_dict())
    longest = config.sampler.max_response_tokens
    if reward.overlong_buffer > longest:
        raise ValueError(
            f"reward.overlong_buffer={reward.overlong_buffer}: must be at most "
            f"sampler.max_response_tokens={longest}"
        )
    return reward


def _pacing(config: ml_collections.ConfigDict) -> Pacing:
    """Order, lag and sizes, checked against each other."""
    for field in ("num_updates", "prompts_per_update", "group_size", "refresh_every_updates"):
        value: Any = config[field]
        if value < 1:
            raise ValueError(f"{field}={value}: must be at least 1")
    for field, seed in (("seed", config.seed), ("warmup.seed", config.warmup.seed or 0)):
        if not 0 <= seed < 2**32:
            raise ValueError(f"{field}={seed}: must be from 0 to 2**32 - 1")
    if config.lag < 0:
        raise ValueError(f"lag={config.lag}: must not be negative; 0 is the synchronous loop")
    if config.order not in get_args(Order):
        raise ValueError(f"order={config.order!r}: must be one of {list(get_args(Order))}")
    if config.runtime.name not in ("local", "sync"):
        raise ValueError(f"runtime.name={config.runtime.name!r}: must be 'local' or 'sync'")
    if config.runtime.name == "sync" and config.order != "ticket":
        raise ValueError(
            f"order={config.order!r} with runtime.name='sync': one process always samples with the "
            "newest version, so no lag would be reached; use order='ticket'"
        )
    if config.runtime.name == "sync" and (config.sampler.count, config.sampler.cores) != (1, 0):
        raise ValueError(
            f"sampler.count={config.sampler.count}, sampler.cores={config.sampler.cores} with "
            "runtime.name='sync': the one process samples itself, they must be 1 and 0"
        )
    if config.refresh_every_updates > 1 and config.order != "ticket":
        raise ValueError(
            f"refresh_every_updates={config.refresh_every_updates} with order={config.order!r}: "
            "samplers are held back only in order='ticket', must be 1"
        )
    num_sampled = _prompts_sampled(config)
    if num_sampled < config.prompts_per_update:
        raise ValueError(
            f"candidates_per_update={num_sampled}: must be at least "
            f"prompts_per_update={config.prompts_per_update}"
        )
    given = config.sampler.prompts_per_lease
    prompts_per_lease = num_sampled if given is None else int(given)
    if prompts_per_lease < 1 or num_sampled % prompts_per_lease:
        raise ValueError(
            f"sampler.prompts_per_lease={prompts_per_lease}: must divide the {num_sampled} prompts "
            "sampled for an update (candidates_per_update, else prompts_per_update)"
        )
    return Pacing(
        order=config.order,
        lag=config.lag,
        num_updates=config.num_updates,
        prompts_per_update=num_sampled,
        prompts_per_lease=prompts_per_lease,
        refresh_every_updates=config.refresh_every_updates,
    )


def _prompts_sampled(config: ml_collections.ConfigDict) -> int:
    """Prompts sampled for an update, of which `prompts_per_update` are trained on."""
    given = config.candidates_per_update
    return int(config.prompts_per_update if given is None else given)


def _queue_capacity(config: ml_collections.ConfigDict) -> int:
    """The queue's bound: given, or room for all that samplers may be ahead."""
    needed = max(1, config.lag) * _prompts_sampled(config)
    capacity = config.queue.capacity
    if capacity is not None and capacity < needed:
        raise ValueError(
            f"queue.capacity={capacity}: can't hold lag={config.lag}; samplers can be that far "
            f"ahead only if it has room for {needed} groups, max(1, lag) * prompts_per_update"
        )
    return needed if capacity is None else capacity


def _step(
    config: ml_collections.ConfigDict, objective: objectives.Objective, pacing: Pacing
) -> StepConfig:
    """What the learner's step computes."""
    num_responses = config.prompts_per_update * config.group_size
    micro_batch = config.learner.micro_batch
    if micro_batch and num_responses % micro_batch:
        raise ValueError(
            f"learner.micro_batch={micro_batch}: must be 0 or divide the {num_responses} responses "
            "of a batch (prompts_per_update * group_size)"
        )
    center = config.advantage.center or objective.center
    scale = config.advantage.scale or objective.scale
    for name, value, allowed in (
        ("center", center, ("mean", "leave_one_out", "none")),
        ("scale", scale, ("std", "none")),
    ):
        if value not in allowed:
            raise ValueError(f"advantage.{name}={value!r}: must be one of {list(allowed)}")
    if config.group_size == 1 and (center, scale) != ("none", "none"):
        raise ValueError(
            f"group_size=1: the advantages of objective {objective.name!r} compare the responses "
            f"of a group (center={center!r}, scale={scale!r}), so it must be at least 2"
        )
    batch_size = config.warmup.batch_size
    if config.warmup.num_steps and micro_batch and batch_size % micro_batch:
        raise ValueError(
            f"learner.micro_batch={micro_batch}: must be 0 or divide warmup.batch_size={batch_size}"
        )
    return StepConfig(
        group_size=config.group_size,
        temperature=config.sampler.temperature,
        center=center,
        scale=scale,
        micro_batch=micro_batch,
        logp_chunk=config.learner.logp_chunk,
        # Proximal parameters lie between those that sampled and the current ones.
        proximal_every_updates=min(config.learner.proximal_every_updates, pacing.max_lag + 1),
    )
