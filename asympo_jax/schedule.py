"""Order, lag and sizes that a config asks for, checked against each other."""

from typing import Any, get_args

import ml_collections

from asympo_jax.defaults import default_config
from asympo_jax.learning import StepConfig
from asympo_jax.objectives import Objective
from asympo_jax.runtime.tickets import Order, Pacing
from asympo_jax.sections import LearnerConfig

_OF_SAMPLER_PROCESSES = (
    ("runtime", "lease_s"),
    ("runtime", "max_restarts"),
    ("sampler", "visible_devices"),
    ("sampler", "memory_fraction"),
)


def pacing_of(config: ml_collections.ConfigDict) -> Pacing:
    """Order, lag and sizes of the run's tickets.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
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
    _check_runtime(config)
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


def _check_runtime(config: ml_collections.ConfigDict) -> None:
    """Refuses a runtime that there is not, and what has no effect where one process does it all."""
    if config.runtime.name not in ("local", "ray", "sync"):
        raise ValueError(f"runtime.name={config.runtime.name!r}: must be 'local', 'ray' or 'sync'")
    if config.runtime.name == "ray" and config.sampler.visible_devices:
        raise ValueError(
            f"sampler.visible_devices={config.sampler.visible_devices!r} with runtime.name='ray': "
            "Ray gives each sampler its devices, must be empty"
        )
    if config.runtime.name != "sync":
        return
    if config.order != "ticket":
        raise ValueError(
            f"order={config.order!r} with runtime.name='sync': one process always samples with the "
            "newest version, so no lag would be reached; use order='ticket'"
        )
    own = {field: config.sampler[field] for field in ("count", "cores", "devices")}
    if own != {"count": 1, "cores": 0, "devices": 1}:
        words = ", ".join(f"sampler.{field}={value}" for field, value in own.items())
        raise ValueError(
            f"{words} with runtime.name='sync': the one process samples itself, they must be 1, 0 "
            "and 1"
        )
    defaults: Any = default_config()
    for section, field in _OF_SAMPLER_PROCESSES:
        given: Any = config[section]
        value, unused = given[field], defaults[section][field]
        if value != unused:
            default = "unset" if unused is None else f"at {unused!r}"
            raise ValueError(
                f"{section}.{field}={value!r} with runtime.name='sync': there are no sampler "
                f"processes, leave it {default}"
            )


def _prompts_sampled(config: ml_collections.ConfigDict) -> int:
    """Prompts sampled for an update, of which `prompts_per_update` are trained on."""
    given = config.candidates_per_update
    return int(config.prompts_per_update if given is None else given)


def queue_capacity(config: ml_collections.ConfigDict) -> int:
    """The queue's bound in groups: given, or room for all that samplers may be ahead.

    Raises:
        ValueError: the one given is too small.
    """
    batch = _prompts_sampled(config)
    capacity = config.queue.capacity
    if capacity is not None and capacity < batch:
        raise ValueError(
            f"queue.capacity={capacity}: must be at least {batch}, the groups sampled for an "
            "update, for which the learner waits"
        )
    return max(1, config.lag) * batch if capacity is None else capacity


def max_leases(pacing: Pacing, capacity: int) -> int:
    """Leases that can be out at once, in a queue of so many groups."""
    num_groups = min(capacity, (pacing.max_lag + 1) * pacing.prompts_per_update)
    return num_groups // pacing.prompts_per_lease


def check_sampler_count(count: int, pacing: Pacing, capacity: int) -> None:
    """Refuses samplers that could never have a lease.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    size, num_leases = pacing.prompts_per_lease, max_leases(pacing, capacity)
    if count > num_leases:
        raise ValueError(
            f"sampler.count={count}: must be at most {num_leases}, the leases of "
            f"sampler.prompts_per_lease={size} prompts that can be out at once with lag="
            f"{pacing.lag} and a queue of {capacity} groups; smaller leases keep more samplers busy"
        )


def step_of(
    config: ml_collections.ConfigDict, objective: Objective, pacing: Pacing, learner: LearnerConfig
) -> StepConfig:
    """What the learner's step computes.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    num_responses = config.prompts_per_update * config.group_size
    micro_batch = learner.micro_batch
    if micro_batch and num_responses % micro_batch:
        raise ValueError(
            f"learner.micro_batch={micro_batch}: must be 0 or divide the {num_responses} responses "
            "of a batch (prompts_per_update * group_size)"
        )
    _check_row_shards(learner, micro_batch or num_responses)
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
        logp_chunk=learner.logp_chunk,
        # Proximal parameters lie between those that sampled and the current ones.
        proximal_every_updates=min(learner.proximal_every_updates, pacing.max_lag + 1),
        max_prompt_tokens=config.sampler.max_prompt_tokens,
        max_response_tokens=config.sampler.max_response_tokens,
        row_shards=learner.mesh.num_row_shards,
    )


def _check_row_shards(learner: LearnerConfig, num_rows: int) -> None:
    """Refuses a mesh of which some devices would have more rows of a micro-batch than others."""
    num_shards = learner.mesh.num_row_shards
    if num_rows % num_shards:
        of_what = (
            "learner.micro_batch" if learner.micro_batch else "prompts_per_update * group_size"
        )
        raise ValueError(
            f"learner.data={learner.data} with learner.fsdp={learner.fsdp}: their product "
            f"{num_shards} must divide the {num_rows} rows of a micro-batch ({of_what})"
        )
