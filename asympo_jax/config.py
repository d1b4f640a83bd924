"""The experiment's config: an editable ConfigDict that `resolve` turns into frozen dataclasses.

Everything that can be wrong with a config is refused here, before any device is touched. This file
is itself the config file of `train` if none is named.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from asympo_jax import devices, objectives, schedule
from asympo_jax.defaults import default_config
from asympo_jax.learning import OptimizerConfig, WarmupConfig
from asympo_jax.models import PRESETS, LoraConfig, ModelConfig
from asympo_jax.objectives.trial import try_out
from asympo_jax.outputs import CheckpointConfig, LogConfig
from asympo_jax.sections import (
    EvalConfig,
    LearnerConfig,
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
    pacing, capacity = schedule.pacing_of(config), schedule.queue_capacity(config)
    sampler = SamplerConfig(
        **{**config.sampler.to_dict(), "prompts_per_lease": pacing.prompts_per_lease}
    )
    schedule.check_sampler_count(sampler.count, pacing, capacity)
    learner = LearnerConfig(**config.learner.to_dict())
    evaluation = _evaluation(config)
    if config.runtime.name == "sync":
        devices.check_learner(learner)
    else:
        # Ray gives its actors theirs.
        devices.check(learner, sampler, evaluation, are_here=config.runtime.name == "local")
    model = config.model.to_dict()
    hf_dir, preset = model.pop("hf_dir"), model.pop("preset")
    ModelConfig(vocab_size=1, **model)  # refuses a wrong shape now
    _check_source(config, model)
    stall_s, lease_s = config.runtime.stall_s, config.runtime.lease_s
    step = schedule.step_of(config, objective, pacing, learner)
    if config.objective.name not in objectives.names():
        _try_out(config, objective)
    source = config.to_dict()
    warmup = config.warmup.to_dict()
    warmup_dir, warmup_seed = warmup.pop("dir"), warmup.pop("seed")
    return ExperimentConfig(
        seed=config.seed,
        prompts_per_update=config.prompts_per_update,
        group_size=config.group_size,
        pacing=pacing,
        queue_capacity=capacity,
        objective=objective,
        step=step,
        task_name=task_name,
        task_options=task_options,
        reward=_reward(config),
        model=model,
        preset=preset,
        hf_dir=hf_dir,
        lora=LoraConfig(**config.lora.to_dict()),
        optimizer=OptimizerConfig(**config.optimizer.to_dict()),
        learner=learner,
        sampler=sampler,
        warmup=WarmupConfig(**warmup),
        warmup_dir=warmup_dir,
        init_seed=config.seed if warmup_seed is None else warmup_seed,
        eval=evaluation,
        checkpoint=CheckpointConfig(**config.checkpoint.to_dict()),
        log=LogConfig(**config.log.to_dict()),
        runtime_name=config.runtime.name,
        stall_s=stall_s,
        lease_s=stall_s / 2 if lease_s is None else lease_s,
        max_restarts=config.runtime.max_restarts,
        snapshot_dir=config.runtime.snapshot_dir,
        compilation_cache=config.runtime.compilation_cache,
        source=source,
    )


def _check_source(config: ml_collections.ConfigDict, model: Mapping[str, Any]) -> None:
    """Refuses what a preset, or a model that is loaded, leaves without effect."""
    defaults: Any = default_config()
    preset, hf_dir = config.model.preset, config.model.hf_dir
    if preset and preset not in PRESETS:
        raise ValueError(f"model.preset={preset!r}: must be one of {sorted(PRESETS)}, or empty")
    source = f"model.preset={preset!r}: it" if preset else None
    if hf_dir is not None:
        source = f"model.hf_dir={hf_dir!r}: the config.json there"
    for field, value in model.items() if source else ():
        if field != "dtype" and value != defaults.model[field]:
            raise ValueError(
                f"model.{field}={value!r} with {source} says the shape, leave model.{field} at its "
                "default"
            )
    if hf_dir is not None and config.warmup.num_steps:
        raise ValueError(
            f"warmup.num_steps={config.warmup.num_steps} with model.hf_dir={hf_dir!r}: a model "
            "that is loaded is not warmed up, must be 0"
        )


def _evaluation(config: ml_collections.ConfigDict) -> EvalConfig:
    """The evaluation, which has a process on the first sampler's devices unless that is said."""
    given = config.eval.to_dict()
    if given["process"] is None:
        given["process"] = config.runtime.name != "sync"
    elif given["process"] and config.runtime.name == "sync":
        raise ValueError(
            "eval.process=True with runtime.name='sync': there is one process, must be False"
        )
    for field in ("platform", "visible_devices"):
        if given[field] is not None and not given["process"]:
            raise ValueError(
                f"eval.{field}={given[field]!r} with eval.process=False: the learner evaluates "
                "where it runs, leave it unset"
            )
    platform: Any = config.sampler.platform if given["platform"] is None else given["platform"]
    if given["visible_devices"] is None:
        # A GPU may have two processes, a TPU chip may not.
        is_shared = platform == config.sampler.platform == "cuda"
        names = config.sampler.visible_devices.split(",")[: config.sampler.tensor]
        given["visible_devices"] = ",".join(names) if is_shared else ""
    given["platform"] = platform
    return EvalConfig(**given)


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


def _try_out(config: ml_collections.ConfigDict, objective: objectives.Objective) -> None:
    """Refuses an objective of the user's own that no batch of this size can be trained with."""
    recorded: tuple[objectives.Need, ...] = (
        ("behaviour",) if config.sampler.record_behaviour_logp else ()
    )
    num_responses = config.prompts_per_update * config.group_size
    sampler, group_size = config.sampler, config.group_size
    num_tokens = sampler.max_prompt_tokens + sampler.max_response_tokens
    try_out(config.objective.name, objective, num_responses, num_tokens, group_size, recorded)


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
