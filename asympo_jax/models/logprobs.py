"""Log-probabilities of given tokens without the logits of all positions.

The head runs over chunks of tokens: a chunk's logits, [C, V], live only while it is worked on, in
the forward pass and again in the backward pass, which recomputes them from the saved normaliser.
Memory is O(C·V + N) instead of O(N·V). Where all tokens fit into a chunk nothing is computed twice.

On a mesh each device works on chunks of its own tokens and has its own part of the vocabulary; sums
over the vocabulary are completed between devices. Left to itself XLA would split the loop over
chunks of all tokens, and gather them.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from asympo_jax.models.sharding import ROWS, VOCABULARY

# Logits held at once where no number of tokens is given, in elements: of a chunk, and of all tokens
# where they are one, which saves computing them twice.
_LOGITS_AT_ONCE, _LOGITS_IN_ALL = 2**25, 2**26
_MIN_CHUNK, _MAX_CHUNK = 128, 1024


def token_logp(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    tokens_BT: Int[Array, "B T"],
    temperature: float = 1.0,
    chunk: int = 0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """`logp_BT[b, t] = log softmax(h[b, t − 1] · headᵀ / temperature)[tokens[b, t]]`, and entropy.

    Args:
        hidden_BTD: hidden states before the head.
        head_VD: the output head.
        tokens_BT: tokens to score, aligned as in `types`: column 0 is not scored and gets 0.
        temperature: divides the logits; that of the sampler.
        chunk: as of `target_logp`.

    Returns:
        As `target_logp`.
    """
    pair = target_logp(hidden_BTD[:, :-1], head_VD, tokens_BT[:, 1:], temperature, chunk)
    logp_BT, entropy_BT = (jnp.pad(x, ((0, 0), (1, 0))) for x in pair)
    return logp_BT, entropy_BT


def target_logp(
    hidden: Float[Array, "*axes D"],
    head_VD: Float[Array, "V D"],
    target: Int[Array, "*axes"],
    temperature: float = 1.0,
    chunk: int = 0,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "*axes"], Float[Array, "*axes"]]:
    """`log softmax(hidden · headᵀ / temperature)[target]`, and entropy.

    Args:
        hidden: hidden states before the head; on a mesh its devices share out the first axis.
        head_VD: the output head.
        target: the token whose log-prob is asked for at each.
        temperature: divides the logits; that of the sampler.
        chunk: tokens whose logits a device holds at once; 0 for 2²⁵ logits (128 MiB), or for all if
            they are at most 2²⁶, but from 128 to 1024 tokens.
        mesh: the devices that share the tokens and the vocabulary; None for one.

    Returns:
        Log-probs and the entropy (nats) of the distributions that they come from, float32. Only the
        log-probs carry a gradient.
    """
    width, vocab_size, num_shards = hidden.shape[-1], head_VD.shape[0], 1
    if mesh is not None:
        vocab_size //= mesh.shape[VOCABULARY]
        num_shards = math.prod(mesh.shape[axis] for axis in ROWS)
    num_tokens = math.prod(target.shape) // num_shards
    most = tokens_at_once(num_tokens, vocab_size, chunk)
    num_chunks = max(1, -(-num_tokens // most))
    # As many chunks, all alike, with the least padding.
    chunk = max(1, -(-num_tokens // num_chunks))
    padding = -num_tokens % chunk
    hidden_ND = _padded(hidden.reshape(-1, width), num_shards, padding)
    target_N = _padded(target.reshape(-1), num_shards, padding)
    pair: Any = _chunked_logp(chunk, 1.0 / temperature, mesh, hidden_ND, head_VD, target_N)
    logp, entropy = (_unpadded(x_N, num_shards, num_tokens).reshape(target.shape) for x_N in pair)
    return logp, jax.lax.stop_gradient(entropy)


def tokens_at_once(num_tokens: int, vocab_size: int, chunk: int = 0) -> int:
    """The most tokens whose logits a device holds at once, of those that it has; see above."""
    at_once = _LOGITS_IN_ALL if num_tokens * vocab_size <= _LOGITS_IN_ALL else _LOGITS_AT_ONCE
    by_memory = min(max(at_once // vocab_size, _MIN_CHUNK), _MAX_CHUNK)
    return max(1, min(chunk or by_memory, num_tokens))


def _padded(x: Array, num_shards: int, padding: int) -> Array:
    """Zeros after what each device has of the first axis."""
    others = ((0, 0),) * (x.ndim - 1)
    if num_shards == 1:
        return jnp.pad(x, ((0, padding), *others))
    by_shard = x.reshape(num_shards, -1, *x.shape[1:])
    return jnp.pad(by_shard, ((0, 0), (0, padding), *others)).reshape(-1, *x.shape[1:])


def _unpadded(x_N: Array, num_shards: int, num_tokens: int) -> Array:
    """Without what `_padded` put there."""
    return x_N[:num_tokens] if num_shards == 1 else x_N.reshape(num_shards, -1)[:, :num_tokens]


def _scaled_logits(hidden_CD: Array, head_VD: Array, scale: float) -> Array:
    """Float32 logits of a chunk, divided by the temperature."""
    head_VD = head_VD.astype(hidden_CD.dtype)
    return jnp.einsum("cd,vd->cv", hidden_CD, head_VD, preferred_element_type=jnp.float32) * scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked_logp(
    chunk: int, scale: float, mesh: Mesh | None, hidden_ND: Array, head_VD: Array, target_N: Array
) -> tuple[Array, Array]:
    """Log-probs and entropies of N targets; `chunk` divides those of a device."""
    pair, _ = _forward(chunk, scale, mesh, hidden_ND, head_VD, target_N)
    return pair


# Arrays by token, the head and its gradient, and logits, on a mesh.
_TOKENS, _HEAD, _LOGITS = (
    PartitionSpec(*axes) for axes in ((ROWS,), (VOCABULARY,), (ROWS, VOCABULARY))
)
_SAVED = (_TOKENS, _HEAD, _TOKENS, _TOKENS, _LOGITS)


def _forward(
    chunk: int, scale: float, mesh: Mesh | None, hidden_ND: Array, head_VD: Array, target_N: Array
) -> tuple[tuple[Array, Array], tuple[Array | None, ...]]:
    """Forward pass; saves the normaliser of each token, and the probabilities of a single chunk."""
    local: Any = functools.partial(_local_forward, chunk, scale, mesh is not None)
    if mesh is not None:
        outs = (_TOKENS, _TOKENS, _TOKENS, _LOGITS)
        local = jax.shard_map(
            local, mesh=mesh, in_specs=_SAVED[:3], out_specs=outs, check_vma=False
        )
    logp_N, entropy_N, normaliser_N, probs_NV = local(hidden_ND, head_VD, target_N)
    return (logp_N, entropy_N), (hidden_ND, head_VD, target_N, normaliser_N, probs_NV)


def _backward(
    chunk: int, scale: float, mesh: Mesh | None, saved: tuple[Array | None, ...], gradients: Any
) -> Any:
    """Backward pass: dlogits = (onehot − softmax) · g, one chunk at a time."""
    local: Any = functools.partial(_local_backward, chunk, scale, mesh is not None)
    if mesh is not None:
        ins, outs = (_SAVED, _TOKENS), (_TOKENS, _HEAD)
        local = jax.shard_map(local, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False)
    logp_gradient_N, _ = gradients  # the entropy carries none
    return (*local(saved, logp_gradient_N), None)


def _local_forward(
    chunk: int, scale: float, is_part: bool, hidden_ND: Array, head_VD: Array, target_N: Array
) -> tuple[Array, Array, Array, Array | None]:
    """Log-probs, entropies, normalisers, and the probabilities of a single chunk.

    The vocabulary is the whole one, or the part of this device.
    """

    def one_chunk(inputs: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        hidden_CD, target_C = inputs
        logits_CV = _scaled_logits(hidden_CD, head_VD, scale)
        chosen_C = _chosen(logits_CV, target_C, is_part)
        # Both sums in one pass over the logits.
        largest_C1 = logits_CV.max(axis=1, keepdims=True)
        if is_part:
            largest_C1 = jax.lax.pmax(largest_C1, VOCABULARY)
        weight_CV = jnp.exp(logits_CV - largest_C1)
        total_C = _completed(weight_CV.sum(axis=1), is_part)
        mean_logit_C = _completed((weight_CV * logits_CV).sum(axis=1), is_part) / total_C
        normaliser_C = largest_C1[:, 0] + jnp.log(total_C)
        logp_C, entropy_C = chosen_C - normaliser_C, normaliser_C - mean_logit_C
        return logp_C, entropy_C, normaliser_C, weight_CV / total_C[:, None]

    if chunk == len(target_N):
        # They were all held anyway: kept, they need not be computed twice.
        return one_chunk((hidden_ND, target_N))
    chunks = (hidden_ND.reshape(-1, chunk, hidden_ND.shape[1]), target_N.reshape(-1, chunk))
    logp, entropy, normaliser = jax.lax.map(lambda inputs: one_chunk(inputs)[:3], chunks)
    normaliser_N = normaliser.reshape(-1)
    return logp.reshape(-1), entropy.reshape(-1), normaliser_N, None


def _local_backward(
    chunk: int,
    scale: float,
    is_part: bool,
    saved: tuple[Array, Array, Array, Array, Array | None],
    logp_gradient_N: Array,
) -> tuple[Array, Array]:
    """Gradients by the hidden states and by the head, of this device's part of the vocabulary."""
    hidden_ND, head_VD, target_N, normaliser_N, probs_NV = saved

    def one_chunk(probs_CV: Array, hidden_CD: Array, target_C: Array, gradient_C: Array):
        # All 0 where the target is of another part.
        number_C = _numbers(target_C, head_VD.shape[0], is_part)
        onehot_CV = jax.nn.one_hot(number_C, head_VD.shape[0], dtype=probs_CV.dtype)
        dlogits_CV = (onehot_CV - probs_CV) * (gradient_C[:, None] * scale)
        dlogits_CV = dlogits_CV.astype(hidden_CD.dtype)
        hidden_gradient_CD = dlogits_CV @ head_VD.astype(hidden_CD.dtype)
        head_gradient_VD = jnp.einsum(
            "cv,cd->vd", dlogits_CV, hidden_CD, preferred_element_type=jnp.float32
        )
        return head_gradient_VD, _completed(hidden_gradient_CD, is_part)

    def add_chunk(head_gradient_VD: Array, inputs: tuple[Array, Array, Array, Array]):
        hidden_CD, target_C, normaliser_C, gradient_C = inputs
        probs_CV = jnp.exp(_scaled_logits(hidden_CD, head_VD, scale) - normaliser_C[:, None])
        more_VD, hidden_gradient_CD = one_chunk(probs_CV, hidden_CD, target_C, gradient_C)
        return head_gradient_VD + more_VD, hidden_gradient_CD

    if probs_NV is not None:  # a single chunk
        head_gradient_VD, hidden_gradient = one_chunk(
            probs_NV, hidden_ND, target_N, logp_gradient_N
        )
    else:
        chunks = (
            hidden_ND.reshape(-1, chunk, hidden_ND.shape[1]),
            target_N.reshape(-1, chunk),
            normaliser_N.reshape(-1, chunk),
            logp_gradient_N.reshape(-1, chunk),
        )
        zeros_VD = jnp.zeros(head_VD.shape, jnp.float32)
        head_gradient_VD, hidden_gradient = jax.lax.scan(add_chunk, zeros_VD, chunks)
    if is_part:
        head_gradient_VD = jax.lax.psum(head_gradient_VD, ROWS)
    return hidden_gradient.reshape(hidden_ND.shape), head_gradient_VD.astype(head_VD.dtype)


def _completed(x: Array, is_part: bool) -> Array:
    """A sum over the vocabulary, of which this device has a part or all."""
    return jax.lax.psum(x, VOCABULARY) if is_part else x


def _numbers(target_C: Array, vocab_size: int, is_part: bool) -> Array:
    """The targets counted from the first token of this device's part of the vocabulary."""
    return target_C - jax.lax.axis_index(VOCABULARY) * vocab_size if is_part else target_C


def _chosen(logits_CV: Array, target_C: Array, is_part: bool) -> Array:
    """The logits of the targets, which may be of other devices' parts."""
    vocab_size = logits_CV.shape[1]
    if not is_part:
        return jnp.take_along_axis(logits_CV, target_C[:, None], axis=1)[:, 0]
    number_C = _numbers(target_C, vocab_size, is_part)
    is_here_C = (number_C >= 0) & (number_C < vocab_size)
    index_C1 = jnp.where(is_here_C, number_C, 0)[:, None]
    here_C = jnp.take_along_axis(logits_CV, index_C1, axis=1)[:, 0]
    return _completed(jnp.where(is_here_C, here_C, 0.0), is_part)


_chunked_logp.defvjp(_forward, _backward)
