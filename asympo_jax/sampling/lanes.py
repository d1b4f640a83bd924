"""Lanes of the decode engine on the device: prefill, decode, refill, rearrange, all jitted.

A lane is a prompt with its G responses, rows l·G … l·G + G − 1 of everything that has a row for
each response. Letters: L lanes, B = L·G rows.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from asympo_jax.models import ModelConfig, head_logits, hidden_states
from asympo_jax.models.attention import DecodeCache, KeyValues, make_attend_decoding
from asympo_jax.models.sharding import kept_by_heads
from asympo_jax.sampling.draw import DrawParams, draw, uniforms


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Static arguments of the jitted functions; fields as of `EngineConfig`."""

    model: ModelConfig
    group_size: int
    max_response_tokens: int
    stop_ids: tuple[int, ...]
    record_logp: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Requests:
    """What is asked for, a prompt in each entry.

    Attributes:
        prompt_PS: int32, left-aligned.
        length_P: int32, tokens of each prompt.
        key_PG2: uint32 key data of each response.
        limit_PG: int32, longest response.
    """

    prompt_PS: Any  # NumPy or jax arrays
    length_P: Any
    key_PG2: Any
    limit_PG: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lanes:
    """All that decoding reads and changes.

    Attributes:
        column: of the own cache, where the keys and values of the next step go.
        prompt: keys and values of the prompts, by layer.
        prompt_length_L: tokens of each prompt.
        own: keys and values of the responses' own tokens, by layer.
        start_B: column of a response's first token.
        token_BT: drawn tokens, by their index in the response.
        logp_BT: their log-probs, zeros unless recorded.
        length_B: number of drawn tokens, the last of which the decoder has not seen yet.
        limit_B: longest response.
        stopped_B: whether the last token is a stop token.
        key_B2: key data of each response.
    """

    column: Int[Array, ""]
    prompt: tuple[KeyValues, ...]
    prompt_length_L: Int[Array, " L"]
    own: tuple[KeyValues, ...]
    start_B: Int[Array, " B"]
    token_BT: Int[Array, "B T"]
    logp_BT: Float[Array, "B T"]
    length_B: Int[Array, " B"]
    limit_B: Int[Array, " B"]
    stopped_B: Bool[Array, " B"]
    key_B2: UInt32[Array, "B 2"]

    @property
    def done_B(self) -> Bool[Array, " B"]:
        """Which responses have ended."""
        return self.stopped_B | (self.length_B >= self.limit_B)

    @property
    def num_columns(self) -> int:
        """Columns of the own cache."""
        return self.own[0].k.shape[2]


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(
    fixed: Fixed, num_columns: int, params: Any, draw_params: DrawParams, requests: Requests
) -> Lanes:
    """Lanes whose prompts were run once and whose responses have their first token.

    Args:
        fixed: static arguments.
        num_columns: of the own cache.
        params: the decoder's parameters.
        draw_params: temperature and cuts.
        requests: the lanes' prompts.
    """
    model, group_size = fixed.model, fixed.group_size
    hidden_LSD, prompt = hidden_states(model, params, requests.prompt_PS)
    prompt = kept_by_heads(model.mesh, prompt)
    last_LD = jnp.take_along_axis(hidden_LSD, (requests.length_P - 1)[:, None, None], axis=1)[:, 0]
    logits_BV = jnp.repeat(head_logits(model, params, last_LD), group_size, axis=0)
    num_rows = len(requests.length_P) * group_size
    shape = (num_rows, model.num_kv_heads, num_columns, model.head_width)
    zeros_B = jnp.zeros(num_rows, jnp.int32)
    lanes = Lanes(
        column=jnp.int32(0),
        prompt=prompt,
        prompt_length_L=jnp.asarray(requests.length_P),
        own=kept_by_heads(
            model.mesh,
            tuple(
                KeyValues(jnp.zeros(shape, layer.k.dtype), jnp.zeros(shape, layer.v.dtype))
                for layer in prompt
            ),
        ),
        start_B=zeros_B,
        token_BT=jnp.zeros((num_rows, fixed.max_response_tokens), jnp.int32),
        logp_BT=jnp.zeros((num_rows, fixed.max_response_tokens), jnp.float32),
        length_B=zeros_B,
        limit_B=requests.limit_PG.reshape(-1),
        stopped_B=jnp.zeros(num_rows, bool),
        key_B2=requests.key_PG2.reshape(-1, 2),
    )
    return _drawn(fixed, draw_params, lanes, logits_BV)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def decode(
    fixed: Fixed, params: Any, draw_params: DrawParams, lanes: Lanes, enough: Int[Any, ""]
) -> Lanes:
    """Draws tokens until the cache is full, or no more than `enough` lanes are still at work."""
    num_columns = lanes.num_columns
    prompt_S = jnp.arange(lanes.prompt[0].k.shape[2])
    prompt_mask_LS = prompt_S[None] < lanes.prompt_length_L[:, None]
    prompt_length_B = jnp.repeat(lanes.prompt_length_L, fixed.group_size)

    def goes_on(lanes: Lanes) -> Array:
        at_work_L = ~lanes.done_B.reshape(-1, fixed.group_size).all(axis=1)
        return (lanes.column < num_columns) & (at_work_L.sum() > enough)

    def step(lanes: Lanes) -> Lanes:
        last_B1 = (lanes.length_B - 1)[:, None]
        token_B1 = jnp.take_along_axis(lanes.token_BT, last_B1, axis=1)
        attend = make_attend_decoding(prompt_mask_LS, lanes.start_B, lanes.column, fixed.group_size)
        caches = tuple(map(DecodeCache, lanes.prompt, lanes.own))
        hidden_B1D, caches = hidden_states(
            fixed.model, params, token_B1, attend, caches, prompt_length_B[:, None] + last_B1
        )
        logits_BV = head_logits(fixed.model, params, hidden_B1D[:, 0])
        lanes = dataclasses.replace(
            lanes, column=lanes.column + 1, own=tuple(cache.own for cache in caches)
        )
        return _drawn(fixed, draw_params, lanes, logits_BV)

    return jax.lax.while_loop(goes_on, step, lanes)


def _drawn(fixed: Fixed, draw_params: DrawParams, lanes: Lanes, logits_BV: Array) -> Lanes:
    """Lanes with the next token of each response that has not ended."""
    token_B, logp_B = draw(logits_BV, uniforms(lanes.key_B2, lanes.length_B), draw_params)
    done_B = lanes.done_B
    # Beyond the last index nothing is written.
    place = (jnp.arange(len(token_B)), jnp.where(done_B, fixed.max_response_tokens, lanes.length_B))
    logp_BT = lanes.logp_BT
    if fixed.record_logp:
        logp_BT = logp_BT.at[place].set(logp_B, mode="drop")
    is_stop_B = jnp.isin(token_B, jnp.asarray(fixed.stop_ids, jnp.int32))
    return dataclasses.replace(
        lanes,
        token_BT=lanes.token_BT.at[place].set(token_B, mode="drop"),
        logp_BT=logp_BT,
        length_B=jnp.where(done_B, lanes.length_B, lanes.length_B + 1),
        stopped_B=lanes.stopped_B | (is_stop_B & ~done_B),
    )


@functools.partial(jax.jit, donate_argnums=0)
def put(lanes: Lanes, new: Lanes, place: Int[Any, " N"]) -> Lanes:
    """Lanes of which some are replaced.

    Args:
        lanes: at work.
        new: as from `prefill`.
        place: the lane that each new one replaces; the number of lanes for none.
    """
    num_lanes = len(lanes.prompt_length_L)

    def replaced(old: Array, fresh: Array) -> Array:
        by_lane = old.reshape(num_lanes, -1, *old.shape[1:])
        fresh = fresh.reshape(len(place), -1, *old.shape[1:])
        return by_lane.at[place].set(fresh, mode="drop").reshape(old.shape)

    own, column = lanes.own, lanes.column
    starting = dataclasses.replace(
        new, start_B=jnp.full_like(new.start_B, column), own=(), column=column
    )
    held = dataclasses.replace(lanes, own=())
    both = jax.tree.map(lambda x, y: replaced(x, y) if x.ndim else x, held, starting)
    # The cache before the new responses' start is masked, so it may stay as it is.
    return dataclasses.replace(both, own=own)


@functools.partial(jax.jit, static_argnums=1)
def rearrange(lanes: Lanes, num_columns: int, kept: Int[Any, " N"], first: Int[Any, ""]) -> Lanes:
    """Some of the lanes, and the own cache from a column on, with room for more.

    Args:
        lanes: at work.
        num_columns: of the own cache.
        kept: the lanes that stay.
        first: column of the oldest token that is still needed.
    """
    num_lanes = len(lanes.prompt_length_L)

    def of_lanes(x: Array) -> Array:
        if not x.ndim or len(kept) == num_lanes:
            return x
        return x.reshape(num_lanes, -1, *x.shape[1:])[kept].reshape(-1, *x.shape[1:])

    def with_room(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, 0), (0, num_columns), (0, 0)))
        return jax.lax.dynamic_slice_in_dim(padded, first, num_columns, axis=2)

    fewer = jax.tree.map(of_lanes, lanes)
    return dataclasses.replace(
        fewer,
        own=jax.tree.map(with_room, fewer.own),
        column=lanes.column - first,
        start_B=fewer.start_B - first,
    )
