"""A plan as lines of a name, a value and a unit, by arithmetic alone."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from asympo_jax import schedule
from asympo_jax.models import counts
from asympo_jax.plan import memory
from asympo_jax.plan.subject import Subject
from asympo_jax.runtime import wire
from asympo_jax.runtime.leases import Lease
from asympo_jax.types import Group

Value = int | float | str
_RUN_ID_LETTERS = 12


@dataclasses.dataclass(frozen=True)
class Line:
    """One thing that a plan says.

    Attributes:
        section: what it is said of.
        name: what is counted.
        value: of it.
        unit: of the value; empty for a text.
    """

    section: str
    name: str
    value: Value
    unit: str = ""


def lines_of(subject: Subject) -> list[Line]:
    """The plan of an experiment."""
    mesh = subject.config.learner.mesh
    where = (
        "learner, one device"
        if mesh.num_devices == 1
        else f"learner, each of {mesh.num_devices} devices (data {mesh.data} · fsdp {mesh.fsdp} · "
        f"tensor {mesh.tensor})"
    )
    num_devices = subject.config.sampler.devices
    of_sampler = "one device" if num_devices == 1 else f"each of {num_devices} devices"
    return [
        *_of_run(subject),
        *_with_total(where, memory.learner_sizes(subject)),
        *_with_total(f"sampler, {of_sampler}", memory.sampler_sizes(subject)),
        *_work(subject),
        *_between(subject),
    ]


def _of_run(subject: Subject) -> Iterator[Line]:
    """What the experiment is, in short."""
    config, model, engine = subject.config, subject.model, subject.engine
    pacing = config.pacing
    params = jax.tree.leaves(subject.state.params)
    trained = sum(math.prod(x.shape) for x in params)
    texts = {
        "objective": config.objective.name,
        "task": config.task_name,
        "decoder": f"{model.num_layers} layers of width {model.width}, {model.num_heads} heads and "
        f"{model.num_kv_heads} of keys and values of {model.head_width}, MLP {model.mlp_width}, "
        f"vocabulary {model.vocab_size}, {model.dtype}",
    }
    yield from (Line("run", name, value) for name, value in texts.items())
    counted = {
        "length": (pacing.num_updates, "updates"),
        "responses of an update": (config.prompts_per_update * config.group_size, "responses"),
        "longest prompt": (engine.max_prompt_tokens, "tokens"),
        "longest response": (engine.max_response_tokens, "tokens"),
        "parameters, all": (counts.num_parameters(model), "numbers"),
        "parameters or adapters, trained": (trained, "numbers"),
    }
    yield from (Line("run", name, value, unit) for name, (value, unit) in counted.items())


def _with_total(section: str, sizes: memory.Sizes) -> Iterator[Line]:
    """Sizes and their sum."""
    yield from (Line(section, name, size, "bytes") for name, size in sizes.items() if size)
    yield Line(section, "together", sum(sizes.values()), "bytes")


def update_flops(subject: Subject) -> float:
    """FLOPs of an update in which every prompt and response is as long as allowed."""
    config, engine = subject.config, subject.engine
    lengths = counts.Lengths(
        config.prompts_per_update,
        config.group_size,
        engine.max_prompt_tokens,
        engine.max_response_tokens,
    )
    # Forward, the gradient by inputs and, of what is trained, by weights.
    num_passes = 2 if config.lora.rank else 3
    num_passes += config.learner.remat == "full"
    num_passes += config.objective.scope == "batch"
    num_passes += sum(need in config.objective.needs for need in ("proximal", "reference"))
    return num_passes * counts.forward_flops(subject.model, lengths)


def response_flops(subject: Subject) -> float:
    """FLOPs of the longest response, with its share of the prompt."""
    engine = subject.engine
    lengths = counts.Lengths(
        1, engine.group_size, engine.max_prompt_tokens, engine.max_response_tokens
    )
    return counts.forward_flops(subject.model, lengths) / engine.group_size


def _work(subject: Subject) -> Iterator[Line]:
    """FLOPs of the longest update and response."""
    yield Line("work, longest", "update", update_flops(subject), "FLOPs")
    yield Line("work, longest", "sampled response", response_flops(subject), "FLOPs")


def frame_bytes(subject: Subject) -> int:
    """Bytes of the message in which a sampler hands in a lease of the longest responses."""
    engine = subject.engine
    shape = (engine.group_size, engine.max_response_tokens)
    is_pooled = subject.config.reward.num_processes != 0
    group = Group(
        ticket=subject.config.pacing.num_tickets,
        version=subject.config.pacing.num_updates,
        prompt_S=np.zeros(engine.max_prompt_tokens, np.int32),
        response_GT=np.zeros(shape, np.int32),
        length_G=np.full(shape[0], shape[1], np.int32),
        stop_G=np.zeros(shape[0], np.int8),
        reward_G=np.zeros(shape[0], np.float32),
        behaviour_logp_GT=np.zeros(shape, np.float32) if engine.record_logp else None,
        failure_G=np.zeros(shape[0], np.int8) if is_pooled else None,
    )
    lease = Lease(group.ticket, 0, group.version, "0" * _RUN_ID_LETTERS)
    message: dict[str, Any] = {
        "type": "submit",
        "lease": wire.lease_fields(lease),
        "groups": [wire.group_fields(group)],
        "busy_s": 0.0,
        "read_s": 0.0,
    }
    one = len(wire.encode(message))
    message["groups"] *= 2
    return one + (engine.num_prompts - 1) * (len(wire.encode(message)) - one)


def _between(subject: Subject) -> Iterator[Line]:
    """What goes from one side to the other, and how much of it may wait."""
    config, pacing = subject.config, subject.config.pacing
    section, snapshot_bytes = "between them", memory.bytes_of(memory.snapshot(subject))
    yield Line(section, "snapshot", snapshot_bytes, "bytes")
    if config.lora.rank:
        both = memory.bytes_of(memory.policy(subject))
        yield Line(section, "base of the adapters, once", both - snapshot_bytes, "bytes")
    yield Line(section, "a lease's longest responses, at most", frame_bytes(subject), "bytes")
    yield Line(section, "lag, at most", pacing.max_lag, "updates")
    num_leases = schedule.max_leases(pacing, config.queue_capacity)
    yield Line(section, "leases out, at most", num_leases, "leases")
    yield Line(section, "prompts of a lease", pacing.prompts_per_lease, "prompts")
    waiting = "groups waiting or on their way, at most"
    yield Line(section, waiting, config.queue_capacity, "groups")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan that is complete.

    Attributes:
        config: resolved, as plain data.
        lines: what it says.
        notes: sentences below.
    """

    config: Mapping[str, Any]
    lines: list[Line]
    notes: list[str]

    def as_json(self) -> str:
        """All of it, for programs."""
        return json.dumps(dataclasses.asdict(self)) + "\n"

    def as_text(self) -> str:
        """What matters, for a person."""
        width, section, text = max(len(line.name) for line in self.lines), None, []
        for line in self.lines:
            if line.section != section:
                section = line.section
                text.append(section)
            text.append(f"  {line.name:{width}}  {_words(line)}")
        text += [f"{note}." for note in self.notes]
        return "\n".join(text) + "\n"


def _words(line: Line) -> str:
    """A value with its unit."""
    match line.unit:
        case "":
            return str(line.value)
        case "bytes":
            return bytes_words(line.value)
        case "FLOPs":
            return f"{float(line.value):.3g} FLOPs"
    return f"{line.value:,} {line.unit}"


def bytes_words(size: Any) -> str:
    """A number of bytes in the unit that suits it."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} bytes"
