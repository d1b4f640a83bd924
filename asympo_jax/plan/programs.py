"""The programs of a run, traced without values: the learner's step and the sampler's decoding."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from asympo_jax import learning, models
from asympo_jax.models.sharding import AXES, heads_sharding
from asympo_jax.plan import memory
from asympo_jax.plan.subject import Subject
from asympo_jax.sampling import draw_params
from asympo_jax.sampling.lanes import Fixed, Requests, decode, prefill
from asympo_jax.types import Batch


def longest_batch(subject: Subject) -> Batch:
    """An update's batch, every prompt and response as long as allowed."""
    config, engine = subject.config, subject.engine
    num_prompts, num_positions = (
        config.prompts_per_update,
        engine.max_prompt_tokens + engine.max_response_tokens,
    )
    shape = (num_prompts * config.group_size, num_positions)
    return Batch(
        tokens_BT=np.zeros(shape, np.int32),
        drawn_BT=np.broadcast_to(np.arange(num_positions) >= engine.max_prompt_tokens, shape),
        reward_PG=np.zeros((num_prompts, config.group_size), np.float32),
        behaviour_logp_BT=np.zeros(shape, np.float32) if engine.record_logp else None,
    )


def traced_step(subject: Subject, mesh: Mesh | None, place: Sharding | None = None) -> Any:
    """The very step that the learner runs, for the longest batch.

    Args:
        subject: what is planned.
        mesh: its devices; None for one.
        place: that device; None for whichever there is.
    """
    config = subject.config
    model = dataclasses.replace(subject.model, remat=config.learner.remat, mesh=mesh)
    optimizer = learning.make_optimizer(config.optimizer)
    step = learning.make_train_step(model, config.objective, optimizer, config.step)
    state = subject.state
    packed = learning.pack(config.step.packing, longest_batch(subject))
    if mesh is None:
        inputs = _at(place, (state, packed))
    else:
        places = models.shardings_of(mesh, state), learning.shardings_of_packed(mesh, packed)
        inputs = jax.tree.map(_shaped, (state, packed), places)
    return step.on_packed.trace(*inputs)


def traced_decode(subject: Subject, devices: Sequence[Any] = ()) -> Any:
    """A decode segment of a copy of the parameters, all lanes at work and the cache at its largest.

    Args:
        subject: what is planned.
        devices: of which the first have the copy; empty for one, whichever there is.
    """
    engine, sampler = subject.engine, subject.config.sampler
    num_lanes = -(-engine.num_lanes // sampler.num_copies)
    mesh = None
    if devices and sampler.tensor > 1:
        mesh = Mesh(np.array(devices[: sampler.tensor])[None, None], AXES)
    fixed = Fixed(
        model=dataclasses.replace(subject.model, mesh=mesh),
        group_size=engine.group_size,
        max_response_tokens=engine.max_response_tokens,
        stop_ids=engine.stop_ids,
        record_logp=engine.record_logp,
    )
    requests = Requests(
        prompt_PS=np.zeros((num_lanes, engine.max_prompt_tokens), np.int32),
        length_P=np.ones(num_lanes, np.int32),
        key_PG2=np.zeros((num_lanes, engine.group_size, 2), np.uint32),
        limit_PG=np.ones((num_lanes, engine.group_size), np.int32),
    )
    params = memory.policy(subject)
    draw = jax.eval_shape(
        lambda: draw_params(sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p)
    )
    num_columns = memory.max_columns(subject)
    lanes = jax.eval_shape(
        lambda params, draw: prefill(fixed, num_columns, params, draw, requests), params, draw
    )
    inputs = params, draw, lanes, jax.ShapeDtypeStruct((), jnp.int32)
    if mesh is None:
        inputs = _at(SingleDeviceSharding(devices[0]) if devices else None, inputs)
    else:
        everywhere = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), inputs)
        heads = jax.tree.map(lambda _: heads_sharding(mesh), (lanes.prompt, lanes.own))
        its = dataclasses.replace(everywhere[2], prompt=heads[0], own=heads[1])
        places = models.shardings_of(mesh, params), everywhere[1], its, everywhere[3]
        inputs = jax.tree.map(_shaped, inputs, places)
    return decode.trace(fixed, *inputs)


def _at(place: Sharding | None, tree: Any) -> Any:
    """The shapes of a tree, all on one device."""
    return jax.tree.map(lambda x: _shaped(x, place), tree)


def _shaped(x: Any, place: Sharding | None) -> jax.ShapeDtypeStruct:
    """The shape of an array, of arrays without values, too."""
    return jax.ShapeDtypeStruct(np.shape(x), jnp.dtype(x.dtype), sharding=place)
