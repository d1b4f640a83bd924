"""Bytes that each device of the learner and of a sampler holds.

What is made once is counted exactly: parameters, moments, copies. What a program holds while it
runs is estimated from its largest arrays; `topology` asks a compiler instead.
"""

import math
from typing import Any

import jax

from asympo_jax import models
from asympo_jax.models import MeshShape, ModelConfig
from asympo_jax.models.logprobs import tokens_at_once
from asympo_jax.plan.subject import Subject
from asympo_jax.sections import LearnerConfig

_FLOAT_BYTES = 4
# Of a snapshot on the devices: the one that is written, and the one that waits behind it.
_COPIES = 2

Sizes = dict[str, int]


def bytes_of(tree: Any, shape: MeshShape | None = None) -> int:
    """Bytes of a tree of shapes: of all, or of the largest part that a device of a mesh has."""
    if shape is None:
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    parts = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(place.shard_shape(x.shape), x.dtype),
        tree,
        models.shardings_of(shape.without_devices(), tree),
    )
    return bytes_of(parts)


def snapshot(subject: Subject) -> Any:
    """The shapes of what the learner sends with each version: parameters, or adapters alone."""
    return _rounded(subject, subject.state.params)


def policy(subject: Subject) -> Any:
    """The shapes of the parameters that a sampler has, adapters in their places."""
    state = subject.state
    base = state.base
    if base is None:
        return _rounded(subject, state.params)
    return jax.eval_shape(
        models.with_adapters, _rounded(subject, base), _rounded(subject, state.params)
    )


def _rounded(subject: Subject, tree: Any) -> Any:
    """Shapes in the type that samplers are sent."""
    dtype = subject.config.sampler.params_dtype
    return jax.eval_shape(lambda params: models.rounded(params, dtype), tree)


def learner_sizes(subject: Subject, learner: LearnerConfig | None = None) -> Sizes:
    """What each device of the learner holds at most.

    Args:
        subject: what is planned.
        learner: instead of the experiment's.
    """
    config = subject.config
    learner = learner or config.learner
    mesh, state = learner.mesh, subject.state
    rows = (learner.micro_batch or config.prompts_per_update * config.group_size) // (
        mesh.num_row_shards
    )
    return {
        "parameters": bytes_of(state.params, mesh) + bytes_of(state.base, mesh),
        "optimiser": bytes_of(state.opt_state, mesh),
        "gradient": bytes_of(state.params, mesh),
        "proximal and reference parameters": bytes_of((state.proximal, state.reference), mesh),
        f"copies for snapshots, {_COPIES}": _COPIES * _copy_bytes(subject, mesh),
        f"activations, remat {learner.remat}, estimate": _activations(subject, learner, rows),
        "logits and head, estimate": _logits(subject, learner, rows),
    }


def _copy_bytes(subject: Subject, mesh: MeshShape) -> int:
    """A copy for a snapshot: a part on each device, or all on one of each of several hosts."""
    is_gathered = subject.num_hosts > 1 and subject.config.snapshot_dir is None
    return bytes_of(snapshot(subject), None if is_gathered else mesh)


def _activations(subject: Subject, learner: LearnerConfig, rows: int) -> int:
    """Of a micro-batch of the longest responses, by what the gradient does not compute again."""
    model, engine, parts = subject.model, subject.engine, learner.tensor
    columns, prompt = engine.max_response_tokens, engine.max_prompt_tokens
    num_prompts = -(-rows // engine.group_size)
    tokens, number = rows * columns + num_prompts * prompt, _item_bytes(model)
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_width
    products = 2 * model.width + (heads + 2 * model.mlp_width) / parts
    others = (
        2 * model.width + (heads + model.num_heads * model.head_width + model.mlp_width) / parts
    )
    # Queries look at the prompt and, on average, at half of their row; weights are kept twice.
    looked_at = rows * columns * (prompt + columns / 2) + num_prompts * prompt * prompt
    scores = looked_at * model.num_heads / parts * (_FLOAT_BYTES + number)
    inputs = tokens * model.width * number
    block = tokens * (products + others) * number + scores
    kept = {"none": inputs + block, "dots": inputs + tokens * products * number, "full": inputs}
    # Beside what is kept: the block at work, and the gradients by its activations.
    return round(model.num_layers * kept[learner.remat] + 2 * block)


def _logits(subject: Subject, learner: LearnerConfig, rows: int) -> int:
    """Of a chunk: probabilities and the gradient by logits; the head as the products read it."""
    model = subject.model
    vocabulary = model.vocab_size // learner.tensor
    tokens = rows * subject.engine.max_response_tokens
    chunk = tokens_at_once(tokens, vocabulary, learner.logp_chunk)
    head = vocabulary * model.width * _item_bytes(model)
    if learner.mesh.num_devices > 1:
        # Its width is put together, and so is that of its gradient, and of the embedding.
        head += 3 * vocabulary * model.width * _FLOAT_BYTES
    return 2 * chunk * vocabulary * _FLOAT_BYTES + head


def sampler_sizes(subject: Subject, lanes: int = 0) -> Sizes:
    """What each device of a sampler holds at most, with its lanes or another number of them."""
    model, engine = subject.model, subject.engine
    sampler = subject.config.sampler
    num_lanes = -(-(lanes or engine.num_lanes) // sampler.num_copies)
    num_rows = num_lanes * engine.group_size
    num_heads = model.num_kv_heads // sampler.tensor
    position = 2 * model.num_layers * num_heads * model.head_width * _item_bytes(model)
    # It grows by a copy.
    num_held = 1 if max_columns(subject) == engine.num_columns else 2
    return {
        "parameters": bytes_of(policy(subject), MeshShape(tensor=sampler.tensor)),
        "keys and values of prompts": num_lanes * engine.max_prompt_tokens * position,
        "keys and values of responses": num_held * num_rows * max_columns(subject) * position,
        "logits, estimate": 2 * num_rows * model.vocab_size * _FLOAT_BYTES,
    }


def max_columns(subject: Subject) -> int:
    """Columns of the own cache of the longest responses, in whole segments."""
    engine = subject.engine
    return -(-engine.max_response_tokens // engine.num_columns) * engine.num_columns


def _item_bytes(model: ModelConfig) -> int:
    """Bytes of an activation."""
    return jax.numpy.dtype(model.dtype).itemsize
