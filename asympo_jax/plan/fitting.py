"""What does not fit into the memory of a device, and what would make it fit, in sentences."""

import dataclasses
import math
import re
from collections.abc import Iterator

from asympo_jax.plan import memory
from asympo_jax.plan.estimate import bytes_words
from asympo_jax.plan.subject import Subject
from asympo_jax.sections import LearnerConfig

_UNITS = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}
_SMALL_CHUNK = 512
_MAX_DEVICES = 1024


def device_memory(text: str) -> int:
    """Bytes that a text like 16GiB says.

    Raises:
        ValueError: it says none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text)
    if match is None or match[2] not in _UNITS or not float(match[1]):
        raise ValueError(
            f"--device_memory={text}: must be a positive number and a unit of {list(_UNITS)}, "
            "such as 16GiB"
        )
    return round(float(match[1]) * _UNITS[match[2]])


def sentences(subject: Subject, available: int) -> list[str]:
    """One for the learner and one for a sampler: whether they fit, else what would help.

    Args:
        subject: what is planned.
        available: bytes of a device of either.
    """
    return [_of_learner(subject, available), _of_sampler(subject, available)]


def _of_learner(subject: Subject, available: int) -> str:
    """Whether the learner fits."""
    size = sum(memory.learner_sizes(subject).values())
    if size <= available:
        return _fits("learner", size, available)
    config = subject.config
    if subject.num_hosts > 1 and config.snapshot_dir is None:
        shared = dataclasses.replace(config, snapshot_dir="DIR")
        needed = sum(memory.learner_sizes(dataclasses.replace(subject, config=shared)).values())
        if needed <= available:
            would = _would("--config.runtime.snapshot_dir=DIR, which all hosts share,", needed)
            return f"{_too_large('learner', size, available)}; {would}"
    learner = learner_that_fits(subject, available)
    if learner is not None:
        needed = sum(memory.learner_sizes(subject, learner).values())
        changed = _flags("learner", config.learner, learner)
        return f"{_too_large('learner', size, available)}; {_would(changed, needed)}"
    lora = "" if config.lora.rank else "; --config.lora.rank=16 holds no moments of the decoder"
    return (
        f"{_too_large('learner', size, available)}, nor does it with learner.fsdp of up to "
        f"{_MAX_DEVICES}, learner.remat=full and smaller micro-batches{lora}"
    )


def learner_that_fits(subject: Subject, available: int) -> LearnerConfig | None:
    """The first learner that fits, by estimate: the experiment's own, else one that holds less."""
    for learner in (subject.config.learner, *_alternatives(subject)):
        if sum(memory.learner_sizes(subject, learner).values()) <= available:
            return learner
    return None


def _alternatives(subject: Subject) -> Iterator[LearnerConfig]:
    """Learners that hold less: the same devices with more work, then more devices."""
    config, learner = subject.config, subject.config.learner
    num_rows = config.prompts_per_update * config.group_size
    fsdp = learner.fsdp
    while learner.data * fsdp * learner.tensor <= _MAX_DEVICES:
        shards = learner.data * fsdp
        if num_rows % shards == 0 and subject.model.width % fsdp == 0:
            # As few rows as were asked for, where the devices can share them.
            asked = math.lcm(learner.micro_batch or num_rows, shards)
            rows = asked if num_rows % asked == 0 else num_rows
            wider = dataclasses.replace(learner, fsdp=fsdp, micro_batch=rows)
            yield wider
            saving = dataclasses.replace(wider, remat="full")
            yield saving
            small = dataclasses.replace(saving, micro_batch=shards)
            yield small
            chunk = min(learner.logp_chunk or _SMALL_CHUNK, _SMALL_CHUNK)
            yield dataclasses.replace(small, logp_chunk=chunk)
        fsdp *= 2


def _of_sampler(subject: Subject, available: int) -> str:
    """Whether a sampler fits."""
    size = sum(memory.sampler_sizes(subject).values())
    if size <= available:
        return _fits("sampler", size, available)
    num_lanes = lanes_that_fit(subject, available)
    if num_lanes is not None:
        needed = sum(memory.sampler_sizes(subject, num_lanes).values())
        change = f"--config.sampler.lanes={num_lanes}"
        return f"{_too_large('sampler', size, available)}; {_would(change, needed)}"
    return (
        f"{_too_large('sampler', size, available)}, nor does it with one lane; "
        "sampler.params_dtype, group_size and sampler.max_response_tokens make it smaller"
    )


def lanes_that_fit(subject: Subject, available: int) -> int | None:
    """The lanes with which a sampler fits, by estimate: the experiment's own, or fewer."""
    num_lanes = subject.engine.num_lanes
    while num_lanes:
        if sum(memory.sampler_sizes(subject, num_lanes).values()) <= available:
            return num_lanes
        num_lanes //= 2
    return None


def _flags(section: str, old: LearnerConfig, new: LearnerConfig) -> str:
    """The flags that make one section of a config another."""
    names = (field.name for field in dataclasses.fields(old))
    changed = {
        name: getattr(new, name) for name in names if getattr(new, name) != getattr(old, name)
    }
    return " ".join(f"--config.{section}.{name}={value}" for name, value in changed.items())


def _fits(role: str, size: int, available: int) -> str:
    """A sentence on what fits."""
    return f"the {role} fits: {bytes_words(size)} of {bytes_words(available)} a device, by estimate"


def _too_large(role: str, size: int, available: int) -> str:
    """The beginning of a sentence on what does not fit."""
    return f"the {role} does not fit: {bytes_words(size)} of {bytes_words(available)} a device"


def _would(flags: str, needed: int) -> str:
    """The end of that sentence."""
    return f"{flags} would, with {bytes_words(needed)} by estimate"
