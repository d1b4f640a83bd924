"""The decode engine: prefill each prompt once, fan out to its G responses, decode with a KV cache.

A call works a fixed set of prompts in fixed shapes, so a response depends on the parameters, its
prompt and its key, never on timing. Prompts are decoded in lanes, one prompt with its G responses
each. A lane whose responses have all ended takes the next prompt; when no prompt is left, the lanes
still at work are moved together, so that a long response does not hold the others. The responses'
own cache has a column for each step of the engine, grows in segments, and loses the columns that no
response at work needs any more.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from asympo_jax.models import ModelConfig
from asympo_jax.sampling.draw import DrawParams
from asympo_jax.sampling.lanes import Fixed, Lanes, Requests, decode, prefill, put, rearrange
from asympo_jax.types import StopReason

# Lanes are moved together when they fit into this share of the room: each size is a compilation.
_SHRINK = 4
_MIN_SEGMENT = 32


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Shapes of the engine.

    Attributes:
        num_prompts: prompts of a call (P).
        group_size: responses a prompt (G).
        max_prompt_tokens: room for a prompt (S).
        max_response_tokens: longest response, stop token included (T).
        segment: columns by which the responses' cache grows; 0 for a sixth of the longest response,
            or 32 if that is less.
        stop_ids: token ids that end a response.
        record_logp: whether to keep the log-probs of the drawn tokens.
        lanes: prompts decoded at once; 0 for all.
    """

    num_prompts: int
    group_size: int
    max_prompt_tokens: int
    max_response_tokens: int
    segment: int
    stop_ids: tuple[int, ...]
    record_logp: bool
    lanes: int = 0

    @property
    def num_lanes(self) -> int:
        """Prompts decoded at once."""
        return min(self.lanes or self.num_prompts, self.num_prompts)

    @property
    def num_columns(self) -> int:
        """Columns by which the cache grows."""
        longest = self.max_response_tokens
        return min(longest, self.segment or max(_MIN_SEGMENT, -(-longest // 6)))


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
    limit_PG: np.ndarray | None = None,
) -> Responses:
    """G responses to each of P prompts.

    Args:
        model: the decoder's shape.
        engine: shapes and stop ids; a few compilations for each.
        params: the decoder's parameters.
        prompts: P lists of token ids, each from 1 to `max_prompt_tokens` long.
        keys: P keys, two 32-bit words each.
        draw_params: temperature and cuts.
        limit_PG: longest response of each, from 1 to `max_response_tokens`; None for that of all.

    Raises:
        ValueError: a wrong number of prompts or keys, a prompt that is empty or too long, or a
            limit out of range.
    """
    requests = _requests(engine, prompts, keys, limit_PG)
    fixed = Fixed(
        model=model,
        group_size=engine.group_size,
        max_response_tokens=engine.max_response_tokens,
        stop_ids=engine.stop_ids,
        record_logp=engine.record_logp,
    )
    return _Call(engine, fixed, params, requests, draw_params).run()


def _requests(
    engine: EngineConfig,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[tuple[int, int]],
    limit_PG: np.ndarray | None,
) -> Requests:
    """What is asked for, as arrays on the host; prompts left-aligned."""
    num_prompts, longest = engine.num_prompts, engine.max_response_tokens
    for name, given in (("prompts", prompts), ("keys", keys)):
        if len(given) != num_prompts:
            raise ValueError(f"{name}: {len(given)} for num_prompts={num_prompts}")
    prompt_PS = np.zeros((num_prompts, engine.max_prompt_tokens), np.int32)
    for row, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= engine.max_prompt_tokens:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens: must have from 1 to "
                f"sampler.max_prompt_tokens={engine.max_prompt_tokens}"
            )
        prompt_PS[row, : len(prompt)] = prompt
    shape = (num_prompts, engine.group_size)
    limits = np.full(shape, longest) if limit_PG is None else np.asarray(limit_PG)
    if limits.shape != shape or limits.min() < 1 or limits.max() > longest:
        raise ValueError(
            f"limit_PG: shape {limits.shape}, from {limits.min()} to {limits.max()}; must have "
            f"shape {shape} and values from 1 to sampler.max_response_tokens={longest}"
        )
    return Requests(
        prompt_PS=prompt_PS,
        length_P=np.array([len(prompt) for prompt in prompts], np.int32),
        key_PG2=np.asarray(response_keys(keys, engine.group_size)).reshape(*shape, 2),
        limit_PG=limits.astype(np.int32),
    )


class _Call:
    """One call of `generate`: which prompt is in which lane, and what has come out."""

    def __init__(
        self,
        engine: EngineConfig,
        fixed: Fixed,
        params: Any,
        requests: Requests,
        draw_params: DrawParams,
    ):
        self._engine, self._fixed, self._params = engine, fixed, params
        self._requests, self._draw_params = requests, draw_params
        self._waiting = collections.deque(range(engine.num_lanes, engine.num_prompts))
        self._prompt_of = np.arange(engine.num_lanes)  # -1 for a lane that is empty
        shape = (engine.num_prompts, engine.group_size)
        self._token_PGT = np.zeros((*shape, engine.max_response_tokens), np.int32)
        self._logp_PGT = np.zeros((*shape, engine.max_response_tokens), np.float32)
        self._length_PG = np.zeros(shape, np.int32)
        self._stopped_PG = np.zeros(shape, bool)

    def run(self) -> Responses:
        """Decodes until every prompt has its responses."""
        lanes = self._prefilled(self._prompt_of, self._engine.num_columns)
        while True:
            lanes = decode(self._fixed, self._params, self._draw_params, lanes, self._enough())
            self._collect(lanes)
            if self._waiting:
                lanes = self._refilled(lanes)
            if (self._prompt_of < 0).all():
                return self._responses()
            lanes = self._rearranged(lanes)

    def _enough(self) -> np.int32:
        """The number of lanes at work at which decoding is left."""
        if self._waiting:
            return np.int32(len(self._prompt_of) - min(self._num_refilled, len(self._waiting)))
        return np.int32(len(self._prompt_of) // _SHRINK)

    @property
    def _num_refilled(self) -> int:
        """Lanes that take new prompts together."""
        return max(1, self._engine.num_lanes // _SHRINK)

    def _prefilled(self, indices: np.ndarray, num_columns: int) -> Lanes:
        """Lanes at their first token, for the prompts of the given indices."""
        requests = jax.tree.map(lambda x: x[indices], self._requests)
        return prefill(self._fixed, num_columns, self._params, self._draw_params, requests)

    def _collect(self, lanes: Lanes) -> None:
        """Takes the responses of the lanes that are done."""
        group_size = self._engine.group_size
        done_L = np.asarray(lanes.done_B).reshape(-1, group_size).all(axis=1)
        ended = np.flatnonzero(done_L & (self._prompt_of >= 0))
        if not len(ended):
            return
        prompts = self._prompt_of[ended]

        def of_lanes(x: Array) -> np.ndarray:
            return np.asarray(x).reshape(-1, group_size, *x.shape[1:])[ended]

        self._token_PGT[prompts] = of_lanes(lanes.token_BT)
        self._length_PG[prompts] = of_lanes(lanes.length_B)
        self._stopped_PG[prompts] = of_lanes(lanes.stopped_B)
        if self._engine.record_logp:
            self._logp_PGT[prompts] = of_lanes(lanes.logp_BT)
        self._prompt_of[ended] = -1

    def _refilled(self, lanes: Lanes) -> Lanes:
        """Lanes of which the empty ones have taken prompts that waited."""
        size = self._num_refilled
        empty = np.flatnonzero(self._prompt_of < 0)
        while len(empty) and self._waiting:
            taken = [
                self._waiting.popleft() for _ in range(min(size, len(empty), len(self._waiting)))
            ]
            into, empty = empty[: len(taken)], empty[len(taken) :]
            self._prompt_of[into] = taken
            # Always as many at once, for one compilation; those beyond go nowhere.
            padding = size - len(taken)
            new = self._prefilled(
                np.array(taken + taken[:1] * padding), 0
            )  # in the cache that is there
            place = np.concatenate([into, np.full(padding, len(self._prompt_of))])
            lanes = put(lanes, new, place.astype(np.int32))
        return lanes

    def _rearranged(self, lanes: Lanes) -> Lanes:
        """Lanes with room to go on: more columns, without those of no use, and fewer lanes."""
        column, num_columns = int(lanes.column), lanes.num_columns
        live = np.flatnonzero(self._prompt_of >= 0)
        num_lanes = len(self._prompt_of)
        while not self._waiting and len(live) <= num_lanes // _SHRINK:
            num_lanes = max(1, num_lanes // _SHRINK)
        if num_lanes == len(self._prompt_of) and column < num_columns:
            return lanes
        kept = np.concatenate([live, np.flatnonzero(self._prompt_of < 0)])[:num_lanes]
        kept = np.sort(kept)
        self._prompt_of = self._prompt_of[kept]
        start_LG = np.asarray(lanes.start_B).reshape(-1, self._engine.group_size)
        first = int(start_LG[live].min())
        step = self._engine.num_columns
        needed = -(-(column - first + 1) // step) * step
        return rearrange(lanes, needed, kept.astype(np.int32), np.int32(first))

    def _responses(self) -> Responses:
        """Everything that has come out."""
        stop_PG = np.where(self._stopped_PG, StopReason.STOP_TOKEN, StopReason.LENGTH)
        return Responses(
            token_PGT=self._token_PGT,
            length_PG=self._length_PG,
            stop_PG=stop_PG.astype(np.int8),
            logp_PGT=self._logp_PGT if self._engine.record_logp else None,
        )
