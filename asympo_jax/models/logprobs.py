"""Log-probabilities of given tokens without the logits of all positions.

The head runs over chunks of tokens: a chunk's logits, [C, V], live only while it is worked on, in
the forward pass and again in the backward pass, which recomputes them from the saved normaliser.
Memory is O(C·V + N) instead of O(N·V). Where all tokens fit into a chunk nothing is computed twice.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
) -> tuple[Float[Array, "*axes"], Float[Array, "*axes"]]:
    """`log softmax(hidden · headᵀ / temperature)[target]`, and entropy.

    Args:
        hidden: hidden states before the head.
        head_VD: the output head.
        target: the token whose log-prob is asked for at each.
        temperature: divides the logits; that of the sampler.
        chunk: tokens whose logits are held at once; 0 for 2²⁵ logits (128 MiB), or for all if they
            are at most 2²⁶, but from 128 to 1024 tokens.

    Returns:
        Log-probs and the entropy (nats) of the distributions that they come from, float32. Only the
        log-probs carry a gradient.
    """
    width, num_tokens = hidden.shape[-1], math.prod(target.shape)
    vocab_size = head_VD.shape[0]
    at_once = _LOGITS_IN_ALL if num_tokens * vocab_size <= _LOGITS_IN_ALL else _LOGITS_AT_ONCE
    by_memory = min(max(at_once // vocab_size, _MIN_CHUNK), _MAX_CHUNK)
    most = max(1, min(chunk or by_memory, num_tokens))
    num_chunks = max(1, -(-num_tokens // most))
    # As many chunks, all alike, with the least padding.
    chunk = max(1, -(-num_tokens // num_chunks))
    padding = -num_tokens % chunk
    hidden_ND = jnp.pad(hidden.reshape(-1, width), ((0, padding), (0, 0)))
    target_N = jnp.pad(target.reshape(-1), (0, padding))
    pair: Any = _chunked_logp(chunk, 1.0 / temperature, hidden_ND, head_VD, target_N)
    logp, entropy = (x_N[:num_tokens].reshape(target.shape) for x_N in pair)
    return logp, jax.lax.stop_gradient(entropy)


def _scaled_logits(hidden_CD: Array, head_VD: Array, scale: float) -> Array:
    """Float32 logits of a chunk, divided by the temperature."""
    head_VD = head_VD.astype(hidden_CD.dtype)
    return jnp.einsum("cd,vd->cv", hidden_CD, head_VD, preferred_element_type=jnp.float32) * scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_logp(
    chunk: int, scale: float, hidden_ND: Array, head_VD: Array, target_N: Array
) -> tuple[Array, Array]:
    """Log-probs and entropies of N targets; `chunk` divides N."""
    (logp_N, entropy_N), _ = _forward(chunk, scale, hidden_ND, head_VD, target_N)
    return logp_N, entropy_N


def _forward(
    chunk: int, scale: float, hidden_ND: Array, head_VD: Array, target_N: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    """Forward pass; saves the normaliser of each token, and the probabilities of a single chunk."""

    def one_chunk(inputs: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        hidden_CD, target_C = inputs
        logits_CV = _scaled_logits(hidden_CD, head_VD, scale)
        chosen_C = jnp.take_along_axis(logits_CV, target_C[:, None], axis=1)[:, 0]
        # Both sums in one pass over the logits.
        largest_C1 = logits_CV.max(axis=1, keepdims=True)
        weight_CV = jnp.exp(logits_CV - largest_C1)
        total_C = weight_CV.sum(axis=1)
        mean_logit_C = (weight_CV * logits_CV).sum(axis=1) / total_C
        normaliser_C = largest_C1[:, 0] + jnp.log(total_C)
        logp_C, entropy_C = chosen_C - normaliser_C, normaliser_C - mean_logit_C
        return logp_C, entropy_C, normaliser_C, weight_CV / total_C[:, None]

    if chunk == len(target_N):
        # They were all held anyway: kept, they need not be computed twice.
        logp_N, entropy_N, normaliser_N, probs_NV = one_chunk((hidden_ND, target_N))
        return (logp_N, entropy_N), (hidden_ND, head_VD, target_N, normaliser_N, probs_NV)
    chunks = (hidden_ND.reshape(-1, chunk, hidden_ND.shape[1]), target_N.reshape(-1, chunk))
    logp, entropy, normaliser = jax.lax.map(lambda inputs: one_chunk(inputs)[:3], chunks)
    saved = (hidden_ND, head_VD, target_N, normaliser.reshape(-1))
    return (logp.reshape(-1), entropy.reshape(-1)), saved


def _backward(chunk: int, scale: float, saved: tuple[Array, ...], gradients: Any) -> Any:
    """Backward pass: dlogits = (onehot − softmax) · g, one chunk at a time."""
    hidden_ND, head_VD, target_N, normaliser_N = saved[:4]
    logp_gradient_N, _ = gradients  # the entropy carries none

    def one_chunk(probs_CV: Array, hidden_CD: Array, target_C: Array, gradient_C: Array):
        onehot_CV = jax.nn.one_hot(target_C, head_VD.shape[0], dtype=probs_CV.dtype)
        dlogits_CV = (onehot_CV - probs_CV) * (gradient_C[:, None] * scale)
        dlogits_CV = dlogits_CV.astype(hidden_CD.dtype)
        hidden_gradient_CD = dlogits_CV @ head_VD.astype(hidden_CD.dtype)
        head_gradient_VD = jnp.einsum(
            "cv,cd->vd", dlogits_CV, hidden_CD, preferred_element_type=jnp.float32
        )
        return head_gradient_VD, hidden_gradient_CD

    def add_chunk(head_gradient_VD: Array, inputs: tuple[Array, Array, Array, Array]):
        hidden_CD, target_C, normaliser_C, gradient_C = inputs
        probs_CV = jnp.exp(_scaled_logits(hidden_CD, head_VD, scale) - normaliser_C[:, None])
        more_VD, hidden_gradient_CD = one_chunk(probs_CV, hidden_CD, target_C, gradient_C)
        return head_gradient_VD + more_VD, hidden_gradient_CD

    if len(saved) > 4:  # a single chunk
        head_gradient_VD, hidden_gradient = one_chunk(
            saved[4], hidden_ND, target_N, logp_gradient_N
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
    return (
        hidden_gradient.reshape(hidden_ND.shape),
        head_gradient_VD.astype(head_VD.dtype),
        None,
    )


_chunked_logp.defvjp(_forward, _backward)
