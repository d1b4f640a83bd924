"""The decode engine: prefill each prompt once, fan out to its G responses, decode with a KV cache.

A call works a fixed set of prompts in a fixed shape, so a response depends on the parameters, its
prompt and its key, never on timing. The responses' own cache grows in segments, and decoding ends
with the longest live response, not with the limit.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from asympo_jax.models import ModelConfig, head_logits, hidden_states
from asympo_jax.models.attention import DecodeCache, KeyValues, make_attend_decoding
from asympo_jax.sampling.draw import DrawParams, draw, uniforms
from asympo_jax.types import StopReason


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Shapes of the engine.

    Attributes:
        num_prompts: prompts worked at once (P).
        group_size: responses a prompt (G).
        max_prompt_tokens: room for a prompt (S).
        max_response_tokens: longest response, stop token included (T).
        segment: positions by which the responses' cache grows.
        stop_ids: token ids that end a response.
        record_logp: whether to keep the log-probs of the drawn tokens.
    """

    num_prompts: int
    group_size: int
    max_prompt_tokens: int
    max_response_tokens: int
    segment: int
    stop_ids: tuple[int, ...]
    record_logp: bool


@dataclasses.dataclass(frozen=True)
class Responses:
    """Responses to P prompts, on the host.

    Attributes:
        token_PGT: int32, stop token included, zeros after the end.
        length_PG: int32, drawn tokens, ≥ 1.
        stop_PG: int8, a `StopReason` each.
        logp_PGT: float32 under the parameters and temperature that drew them, or None.
    """

    token_PGT: np.ndarray
    length_PG: np.ndarray
    stop_PG: np.ndarray
    logp_PGT: np.ndarray | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """What a decode step changes. `step` is the index of the next token to draw."""

    step: Int[Array, ""]
    logits_BV: Float[Array, "B V"]
    own: tuple[KeyValues, ...]
    token_BT: Int[Array, "B T"]
    logp_BT: Float[Array, "B T"]
    length_B: Int[Array, " B"]
    stopped_B: Bool[Array, " B"]


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """Static arguments of the jitted functions."""

    model: ModelConfig
    engine: EngineConfig


def response_keys(keys: Sequence[tuple[int, int]], group_size: int) -> UInt32[Array, "B 2"]:
    """Key data of each response: `fold_in(ticket key, index in the group)`."""

    def one(key_data: Array, member: Array) -> Array:
        key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        return jax.random.key_data(jax.random.fold_in(key, member))

    key_data_P2 = jnp.asarray(np.asarray(keys, np.uint32).reshape(-1, 2))
    members_G = jnp.arange(group_size)
    keys_PG2 = jax.vmap(lambda key: jax.vmap(lambda member: one(key, member))(members_G))(
        key_data_P2
    )
    return keys_PG2.reshape(-1, 2)


def generate(
    model: ModelConfig,
    engine: EngineConfig,
    params: Any,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[tuple[int, int]],
    draw_params: DrawParams,
) -> Responses:
    """G responses to each of P prompts.

    Args:
        model: the decoder's shape.
        engine: shapes and stop ids; one compilation for each.
        params: the decoder's parameters.
        prompts: P lists of token ids, each from 1 to `max_prompt_tokens` long.
        keys: P keys, two 32-bit words each.
        draw_params: temperature and cuts.

    Raises:
        ValueError: a wrong number of prompts or keys, or a prompt that is empty or too long.
    """
    prompt_PS, length_P = _pad_prompts(engine, prompts)
    if len(keys) != engine.num_prompts:
        raise ValueError(f"keys: {len(keys)} for num_prompts={engine.num_prompts}")
    fixed = _Fixed(model, engine)
    prompt_cache, state = _prefill(fixed, params, prompt_PS, length_P)
    key_data_B2 = response_keys(keys, engine.group_size)
    limit = engine.max_response_tokens
    for start in range(0, limit, engine.segment):
        end = min(start + engine.segment, limit)
        state = _decode_segment(
            fixed, end, params, prompt_cache, length_P, key_data_B2, draw_params, state
        )
        if bool(state.stopped_B.all()):
            break
    return _to_host(engine, state)


def _pad_prompts(engine: EngineConfig, prompts: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Prompts as left-aligned rows and their lengths."""
    if len(prompts) != engine.num_prompts:
        raise ValueError(f"prompts: {len(prompts)} for num_prompts={engine.num_prompts}")
    prompt_PS = np.zeros((engine.num_prompts, engine.max_prompt_tokens), np.int32)
    for row, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= engine.max_prompt_tokens:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens: must have from 1 to "
                f"sampler.max_prompt_tokens={engine.max_prompt_tokens}"
            )
        prompt_PS[row, : len(prompt)] = prompt
    length_P = np.array([len(prompt) for prompt in prompts], np.int32)
    return jnp.asarray(prompt_PS), jnp.asarray(length_P)


@functools.partial(jax.jit, static_argnums=0)
def _prefill(
    fixed: _Fixed, params: Any, prompt_PS: Array, length_P: Array
) -> tuple[tuple[KeyValues, ...], _State]:
    """Runs each prompt once; the state holds the logits of the first token of each response."""
    model, engine = fixed.model, fixed.engine
    hidden_PSD, caches = hidden_states(model, params, prompt_PS)
    last_PD = jnp.take_along_axis(hidden_PSD, (length_P - 1)[:, None, None], axis=1)[:, 0]
    logits_PV = head_logits(model, params, last_PD)
    num_rows = engine.num_prompts * engine.group_size
    empty = jnp.zeros((num_rows, 0, model.num_kv_heads, model.head_width), hidden_PSD.dtype)
    state = _State(
        step=jnp.int32(0),
        logits_BV=jnp.repeat(logits_PV, engine.group_size, axis=0),
        own=tuple(KeyValues(empty, empty) for _ in caches),
        token_BT=jnp.zeros((num_rows, engine.max_response_tokens), jnp.int32),
        logp_BT=jnp.zeros((num_rows, engine.max_response_tokens), jnp.float32),
        length_B=jnp.zeros(num_rows, jnp.int32),
        stopped_B=jnp.zeros(num_rows, bool),
    )
    return caches, state


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode_segment(
    fixed: _Fixed,
    end: int,
    params: Any,
    prompt_cache: tuple[KeyValues, ...],
    length_P: Array,
    key_data_B2: Array,
    draw_params: DrawParams,
    state: _State,
) -> _State:
    """Draws tokens until `end` or until every response has stopped."""
    engine = fixed.engine
    growth = end - state.own[0].k.shape[1]
    own = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, growth), (0, 0), (0, 0))), state.own)
    prompt_mask_PS = jnp.arange(engine.max_prompt_tokens)[None] < length_P[:, None]
    prompt_length_B = jnp.repeat(length_P, engine.group_size)

    def live(state: _State) -> Array:
        return (state.step < end) & ~state.stopped_B.all()

    def step(state: _State) -> _State:
        state = _draw_step(engine, key_data_B2, draw_params, state)
        position_B = prompt_length_B + state.step
        attend = make_attend_decoding(prompt_mask_PS, state.step, engine.group_size)
        caches = tuple(
            DecodeCache(prompt, own) for prompt, own in zip(prompt_cache, state.own, strict=True)
        )
        token_B1 = jax.lax.dynamic_slice_in_dim(state.token_BT, state.step, 1, axis=1)
        hidden_B1D, caches = hidden_states(
            fixed.model, params, token_B1, attend, caches, position_B[:, None]
        )
        return dataclasses.replace(
            state,
            step=state.step + 1,
            logits_BV=head_logits(fixed.model, params, hidden_B1D[:, 0]),
            own=tuple(cache.own for cache in caches),
        )

    return jax.lax.while_loop(live, step, dataclasses.replace(state, own=own))


def _draw_step(
    engine: EngineConfig, key_data_B2: Array, draw_params: DrawParams, state: _State
) -> _State:
    """Draws the token at `state.step` of every live response."""
    token_B, logp_B = draw(state.logits_BV, uniforms(key_data_B2, state.step), draw_params)
    live_B = ~state.stopped_B
    token_B = jnp.where(live_B, token_B, 0)
    is_stop_B = jnp.isin(token_B, jnp.asarray(engine.stop_ids, jnp.int32))
    logp_BT = state.logp_BT
    if engine.record_logp:
        logp_BT = logp_BT.at[:, state.step].set(jnp.where(live_B, logp_B, 0.0))
    return dataclasses.replace(
        state,
        token_BT=state.token_BT.at[:, state.step].set(token_B),
        logp_BT=logp_BT,
        length_B=jnp.where(live_B, state.length_B + 1, state.length_B),
        stopped_B=state.stopped_B | is_stop_B,
    )


def _to_host(engine: EngineConfig, state: _State) -> Responses:
    """The finished state as NumPy arrays."""
    shape = (engine.num_prompts, engine.group_size)
    stopped_PG = np.asarray(state.stopped_B).reshape(shape)
    stop_PG = np.where(stopped_PG, StopReason.STOP_TOKEN, StopReason.LENGTH).astype(np.int8)
    return Responses(
        token_PGT=np.asarray(state.token_BT).reshape(*shape, -1),
        length_PG=np.asarray(state.length_B).reshape(shape),
        stop_PG=stop_PG,
        logp_PGT=np.asarray(state.logp_BT).reshape(*shape, -1) if engine.record_logp else None,
    )
