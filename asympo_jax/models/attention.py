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

    def attend(
        q_BCNH: Array, k_BCKH: Array, v_BCKH: Array, prompt: KeyValues
    ) -> tuple[Array, KeyValues]:
        _, _, num_heads, head_width = q_BCNH.shape
        num_kv_heads = k_BCKH.shape[2]
        # Letters beyond types.py: n blocks, r rows, q queries of a key/value head, e keys.
        split = (num_blocks, num_rows, num_columns, num_kv_heads)
        q = q_BCNH.reshape(*split, num_heads // num_kv_heads, head_width).transpose(
            0, 1, 3, 4, 2, 5
        )
        k, v = (x.reshape(*split, head_width).swapaxes(2, 3) for x in (k_BCKH, v_BCKH))
        scores_of = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        outs = []
        for start in range(0, num_columns, part):
            end = min(start + part, num_columns)
            q_part = q[:, :, :, :, start:end]
            same = segment_NRC[:, :, start:end, None] == segment_NRC[:, :, None, :end]
            earlier = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None]
            own_mask = (same & earlier[None, None])[:, :, None, None]
            own_scores = scores_of("nrkqch,nrkeh->nrkqce", q_part, k[:, :, :, :end])
            prompt_scores = scores_of("nrkqch,nkeh->nrkqce", q_part, prompt.k)
            prompt_mask = jnp.broadcast_to(
                prompt_mask_NS[:, None, None, None, None], (*own_mask.shape[:-1], prompt.k.shape[2])
            )
            mask = jnp.concatenate([prompt_mask, own_mask], axis=-1)
            scores = jnp.concatenate([prompt_scores, own_scores], axis=-1)
            scores = jnp.where(mask, scores * head_width**-0.5, _MASKED_SCORE)
            probs = jax.nn.softmax(scores, axis=-1).astype(q_BCNH.dtype)
            prompt_probs, own_probs = jnp.split(probs, [prompt.k.shape[2]], axis=-1)
            outs.append(
                jnp.einsum("nrkqce,nkeh->nrkqch", prompt_probs, prompt.v)
                + jnp.einsum("nrkqce,nrkeh->nrkqch", own_probs, v[:, :, :, :end])
            )
        out = jnp.concatenate(outs, axis=4).transpose(0, 1, 4, 2, 3, 5)
        return out.reshape(q_BCNH.shape), prompt

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
        num_rows, _, num_heads, head_width = q_B1NH.shape
        num_kv_heads = k_B1KH.shape[2]
        num_prompts, num_positions = prompt_mask_PS.shape
        # Letters beyond types.py: Q queries of a key/value head, M = G·Q of all responses.
        num_queries = num_heads // num_kv_heads
        by_head = (num_rows, num_kv_heads, num_queries)
        by_member = (num_prompts, group_size, num_kv_heads, num_queries)
        by_prompt = (num_prompts, num_kv_heads, group_size, num_queries)

        def written(columns: Array, new_B1KH: Array) -> Array:
            new_BK1H = new_B1KH.swapaxes(1, 2)
            return jax.lax.dynamic_update_slice_in_dim(columns, new_BK1H, column, axis=2)

        def for_prompt(x: Array) -> Array:
            swapped = x.reshape(*by_member, -1).swapaxes(1, 2)
            return swapped.reshape(num_prompts, num_kv_heads, group_size * num_queries, -1)

        def for_rows(x: Array) -> Array:
            return x.reshape(*by_prompt, -1).swapaxes(1, 2).reshape(*by_head, -1)

        own = KeyValues(written(cache.own.k, k_B1KH), written(cache.own.v, v_B1KH))
        q_BKQH = q_B1NH.reshape(*by_head, head_width)
        scores_of = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        prompt_scores = for_rows(scores_of("pkmh,pksh->pkms", for_prompt(q_BKQH), cache.prompt.k))
        own_scores = scores_of("bkqh,bksh->bkqs", q_BKQH, own.k)
        prompt_mask_BS = jnp.repeat(prompt_mask_PS, group_size, axis=0)
        column_1C = jnp.arange(own.k.shape[2])[None]
        own_mask_BC = (column_1C >= start_B[:, None]) & (column_1C <= column)
        mask = jnp.concatenate([prompt_mask_BS, own_mask_BC], axis=1)[:, None, None]
        scores = jnp.concatenate([prompt_scores, own_scores], axis=-1)
        scores = jnp.where(mask, scores * head_width**-0.5, _MASKED_SCORE)
        probs = jax.nn.softmax(scores, axis=-1).astype(q_B1NH.dtype)
        prompt_probs, own_probs = jnp.split(probs, [num_positions], axis=-1)
        from_prompt = for_rows(
            jnp.einsum("pkms,pksh->pkmh", for_prompt(prompt_probs), cache.prompt.v)
        )
        out_BKQH = from_prompt + jnp.einsum("bkqs,bksh->bkqh", own_probs, own.v)
        return out_BKQH.reshape(q_B1NH.shape), DecodeCache(cache.prompt, own)

    return attend
