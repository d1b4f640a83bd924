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

# Parts of the queries of packed rows: more would compute less and compile longer.
_MIN_PART, _MAX_PARTS = 128, 8
_MASKED_SCORE = -1e30  # finite: a row without any visible key gives a mean, not NaN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of consecutive positions of one layer.

    Positions of a head lie side by side, as attention reads them: twice as fast on CPUs.
    """

    k: Float[Array, "rows K S H"]
    v: Float[Array, "rows K S H"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeCache:
    """What the responses of P prompts look at, in one layer.

    Attributes:
        prompt: keys and values of each prompt, [P, K, S, H], shared by its G responses.
        own: keys and values of the responses' own tokens, [B, K, C, H]: a column for each step.
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
    return out_BTNH, KeyValues(k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2))


def make_attend_packed(
    prompt_mask_NS: Bool[Array, "N S"], segment_NRC: Int[Array, "N R C"]
) -> Attend:
    """Attention of packed responses to their prompt and, within each, to what came before.

    The prompt's keys and values are read by all rows of its block. Queries are worked in parts, so
    that scores are computed for half of the keys after them at most.

    Args:
        prompt_mask_NS: true for real prompt tokens of each block.
        segment_NRC: which response of its block a column belongs to.

    Returns:
        An `Attend` for N·R rows of C columns whose caches are the `KeyValues` of N prompts.
    """
    num_blocks, num_rows, num_columns = segment_NRC.shape
    part = max(_MIN_PART, -(-num_columns // _MAX_PARTS))
    prompt_mask = prompt_mask_NS[:, None, None, None, None]

    def attend(
        q_BCNH: Array, k_BCKH: Array, v_BCKH: Array, prompt: KeyValues
    ) -> tuple[Array, KeyValues]:
        _, _, num_heads, head_width = q_BCNH.shape
        num_kv_heads = k_BCKH.shape[2]
        # Letters beyond types.py: n blocks, r rows, q queries of a key/value head, e keys. Batch
        # axes of the products come first, so that nothing of the size of scores is moved.
        by_row = (num_blocks, num_rows, num_columns, num_kv_heads)
        q = q_BCNH.reshape(*by_row, num_heads // num_kv_heads, head_width)
        q = q.transpose(0, 3, 1, 4, 2, 5)
        k, v = (x.reshape(*by_row, head_width).transpose(0, 3, 1, 2, 4) for x in (k_BCKH, v_BCKH))
        value_of = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        outs = []
        for start in range(0, num_columns, part):
            end = min(start + part, num_columns)
            q_part = q[:, :, :, :, start:end]
            same = segment_NRC[:, :, start:end, None] == segment_NRC[:, :, None, :end]
            earlier = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None]
            own_mask = (same & earlier[None, None])[:, None, :, None]
            prompt_scores = _scores("nkrqch,nkeh->nkrqce", q_part, prompt.k, prompt_mask)
            own_scores = _scores("nkrqch,nkreh->nkrqce", q_part, k[:, :, :, :end], own_mask)
            weights, total = _exponentials(prompt_scores, own_scores)
            weights = [weight.astype(v.dtype) for weight in weights]
            from_prompt = value_of("nkrqce,nkeh->nkrqch", weights[0], prompt.v)
            from_own = value_of("nkrqce,nkreh->nkrqch", weights[1], v[:, :, :, :end])
            outs.append(((from_prompt + from_own) / total).astype(v.dtype))
        out = jnp.concatenate(outs, axis=4) if len(outs) > 1 else outs[0]
        return out.transpose(0, 2, 4, 1, 3, 5).reshape(q_BCNH.shape), prompt

    return attend


def make_attend_decoding(
    prompt_mask_PS: Bool[Array, "P S"],
    start_B: Int[Array, " B"],
    column: Int[Array, ""],
    group_size: int,
) -> Attend:
    """Attention of one new token of each response to its prompt and its own tokens so far.

    The prompt's keys and values are read once for all G responses, never copied G times. All rows
    write into the same column, so that responses may begin at different steps and none is moved.

    Args:
        prompt_mask_PS: true for real prompt tokens.
        start_B: column of the response's first token.
        column: that of the new token.
        group_size: G.
    """

    def attend(
        q_B1NH: Array, k_B1KH: Array, v_B1KH: Array, cache: DecodeCache
    ) -> tuple[Array, DecodeCache]:
        num_heads, head_width = q_B1NH.shape[2:]
        num_kv_heads = k_B1KH.shape[2]
        num_prompts = prompt_mask_PS.shape[0]
        # Letters beyond types.py: q queries of a key/value head, e keys.
        by_member = (num_prompts, group_size, num_kv_heads, num_heads // num_kv_heads)
        by_row = (num_prompts * group_size, *by_member[2:])

        def written(columns: Array, new_B1KH: Array) -> Array:
            new_BK1H = new_B1KH.swapaxes(1, 2)
            return jax.lax.dynamic_update_slice_in_dim(columns, new_BK1H, column, axis=2)

        own = KeyValues(written(cache.own.k, k_B1KH), written(cache.own.v, v_B1KH))
        q = q_B1NH.reshape(*by_member, head_width)
        column_1C = jnp.arange(own.k.shape[2])[None]
        own_mask_BC = (column_1C >= start_B[:, None]) & (column_1C <= column)
        prompt_scores = _scores(
            "pgkqh,pkeh->pgkqe", q, cache.prompt.k, prompt_mask_PS[:, None, None, None]
        )
        # The cache itself is never reshaped: XLA would write it twice a step, and copy it for that.
        own_scores = _scores(
            "bkqh,bkeh->bkqe", q.reshape(*by_row, head_width), own.k, own_mask_BC[:, None, None]
        )
        prompt_scores = prompt_scores.reshape(*by_row, -1)
        weights, total = _exponentials(prompt_scores, own_scores)
        weights = [weight.astype(own.v.dtype) for weight in weights]
        value_of = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        from_prompt = value_of(
            "pgkqe,pkeh->pgkqh", weights[0].reshape(*by_member, -1), cache.prompt.v
        )
        from_own = value_of("bkqe,bkeh->bkqh", weights[1], own.v)
        out = (from_prompt.reshape(*by_row, head_width) + from_own) / total
        return out.astype(own.v.dtype).reshape(q_B1NH.shape), DecodeCache(cache.prompt, own)

    return attend


def _scores(product: str, q: Array, k: Array, mask: Array) -> Array:
    """Float32 scores of queries and keys, those outside the mask as good as minus infinity."""
    scores = jnp.einsum(product, q, k, preferred_element_type=jnp.float32)
    return jnp.where(mask, scores * q.shape[-1] ** -0.5, _MASKED_SCORE)


def _exponentials(*scores: Array) -> tuple[list[Array], Array]:
    """Weights of the softmax over all parts, which are never joined, and the sum to divide by."""
    # Any number less than all scores will do, so none of the gradient goes through it.
    largest = jax.lax.stop_gradient(
        jnp.maximum(*(part.max(axis=-1, keepdims=True, initial=_MASKED_SCORE) for part in scores))
    )
    weights = [jnp.exp(part - largest) for part in scores]
    total = functools.reduce(jnp.add, [part.sum(axis=-1, keepdims=True) for part in weights])
    return weights, total
