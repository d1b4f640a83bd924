"""Grouped-query attention over explicit caches.

An `Attend` says how the positions at hand look at keys and values and what is left in the cache;
the transformer itself knows nothing of caches.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# (q_BTNH, k_BTKH, v_BTKH, cache of this layer) -> (attended_BTNH, new cache of this layer)
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]

_MASKED_SCORE = -1e30  # finite: a row without any visible key gives a mean, not NaN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of consecutive positions of one layer."""

    k: Float[Array, "rows S K H"]
    v: Float[Array, "rows S K H"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeCache:
    """What the responses of P prompts look at, in one layer.

    Attributes:
        prompt: keys and values of each prompt, [P, S, K, H], shared by its G responses.
        own: keys and values of each response's own tokens, [B, C, K, H].
    """

    prompt: KeyValues
    own: KeyValues


def attend_causally(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    cache: Any,
) -> tuple[Float[Array, "B T N H"], KeyValues]:
    """Every position looks at itself and those before; the cache left is these keys and values.

    Rows are left-aligned: padding comes last, so no real position ever looks at it.
    """
    del cache
    out_BTNH = jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, is_causal=True)
    return out_BTNH, KeyValues(k_BTKH, v_BTKH)


def make_attend_decoding(
    prompt_mask_PS: Bool[Array, "P S"], step: Int[Array, ""], group_size: int
) -> Attend:
    """Attention of one new token of each response to its prompt and its own tokens up to `step`.

    The prompt's keys and values are read once for all G responses, never copied G times.

    Args:
        prompt_mask_PS: true for real prompt tokens.
        step: index of the new token among the response's own.
        group_size: G.
    """

    def attend(
        q_B1NH: Array, k_B1KH: Array, v_B1KH: Array, cache: DecodeCache
    ) -> tuple[Array, DecodeCache]:
        num_rows, _, num_heads, head_width = q_B1NH.shape
        num_kv_heads = k_B1KH.shape[2]
        num_prompts = num_rows // group_size
        queries_per_kv = num_heads // num_kv_heads
        own_k = jax.lax.dynamic_update_slice_in_dim(cache.own.k, k_B1KH, step, axis=1)
        own_v = jax.lax.dynamic_update_slice_in_dim(cache.own.v, v_B1KH, step, axis=1)
        # Letters beyond types.py: q is the query within its key/value head.
        q_BKqH = q_B1NH.reshape(num_rows, num_kv_heads, queries_per_kv, head_width)
        q_PGKqH = q_BKqH.reshape(num_prompts, group_size, num_kv_heads, queries_per_kv, head_width)

        scores_of = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        prompt_scores = scores_of("pgkqh,pskh->pgkqs", q_PGKqH, cache.prompt.k)
        prompt_scores = prompt_scores.reshape(num_rows, num_kv_heads, queries_per_kv, -1)
        own_scores = scores_of("bkqh,bskh->bkqs", q_BKqH, own_k)
        prompt_mask_BS = jnp.repeat(prompt_mask_PS, group_size, axis=0)
        own_mask_S = jnp.arange(own_k.shape[1]) <= step
        own_mask_BS = jnp.broadcast_to(own_mask_S, (num_rows, own_k.shape[1]))
        mask = jnp.concatenate([prompt_mask_BS, own_mask_BS], axis=1)[:, None, None]
        scores = jnp.concatenate([prompt_scores, own_scores], axis=-1)
        scores = jnp.where(mask, scores * head_width**-0.5, _MASKED_SCORE)
        probs = jax.nn.softmax(scores, axis=-1).astype(q_B1NH.dtype)

        num_prompt_positions = prompt_mask_PS.shape[1]
        prompt_probs = probs[..., :num_prompt_positions].reshape(
            num_prompts, group_size, num_kv_heads, queries_per_kv, num_prompt_positions
        )
        from_prompt = jnp.einsum("pgkqs,pskh->pgkqh", prompt_probs, cache.prompt.v)
        from_own = jnp.einsum("bkqs,bskh->bkqh", probs[..., num_prompt_positions:], own_v)
        out = from_prompt.reshape(q_B1NH.shape) + from_own.reshape(q_B1NH.shape)
        return out, DecodeCache(cache.prompt, KeyValues(own_k, own_v))

    return attend
