"""The decode engine: prefill each prompt once, fan out to its G responses, decode with a KV cache.

A call works a fixed set of prompts in fixed shapes, so a response depends on the parameters, its
prompt and its key, never on timing. Prompts are decoded in lanes, one with its G responses in each.
A lane whose responses have all ended takes the next prompt; when none is left, the lanes still at
work are moved together, so that a long response does not hold the others. The own cache has a
column for each step, grows in segments, and loses the columns that nobody needs any more.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from asympo_jax.models import ModelConfig
from asympo_jax.sampling.copies import copies_of
from asympo_jax.sampling.draw import DrawParams
from asympo_jax.sampling.lanes import (
    Fixed,
    Lanes,
    Requests,
    decode,
    prefill,
    put,
    rearrange,
)
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
        params: the decoder's parameters, on one device or where `make_place` puts them: each copy
            has its part of the work.
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
    call = _Call(engine, requests, draw_params)
    copies = [(dataclasses.replace(fixed, model=m), its) for m, its in copies_of(model, params)]
    # All copies have as many lanes, so that one program serves them.
    num_copies = max(n for n in range(1, len(copies) + 1) if engine.num_lanes % n == 0)
    lanes_of = np.arange(engine.num_lanes).reshape(num_copies, -1)
    at_work = [_Device(call, *copies[i], lanes_of[i]).run() for i in range(num_copies)]
    while at_work:
        # Each goes on until its device has something to do.
        at_work = [device for device in at_work if next(device, None)]
    return call.responses()


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
    """One call of `generate`: which prompts wait, and what has come out."""

    def __init__(self, engine: EngineConfig, requests: Requests, draw_params: DrawParams):
        self.engine, self.requests, self.draw_params = engine, requests, draw_params
        self.waiting = collections.deque(range(engine.num_lanes, engine.num_prompts))
        shape = (engine.num_prompts, engine.group_size)
        self.token_PGT = np.zeros((*shape, engine.max_response_tokens), np.int32)
        self.logp_PGT = np.zeros((*shape, engine.max_response_tokens), np.float32)
        self.length_PG = np.zeros(shape, np.int32)
        self.stopped_PG = np.zeros(shape, bool)

    def responses(self) -> Responses:
        """Everything that has come out."""
        stop_PG = np.where(self.stopped_PG, StopReason.STOP_TOKEN, StopReason.LENGTH)
        return Responses(
            token_PGT=self.token_PGT,
            length_PG=self.length_PG,
            stop_PG=stop_PG.astype(np.int8),
            logp_PGT=self.logp_PGT if self.engine.record_logp else None,
        )


class _Device:
    """The lanes of one copy of the parameters, and which prompt is in which.

    Several take turns, and none looks at a clock: the responses alone decide which device a waiting
    prompt comes to.
    """

    def __init__(self, call: _Call, fixed: Fixed, params: Any, prompts: np.ndarray):
        self._call, self._fixed, self._params = call, fixed, params
        self._prompt_of = prompts.copy()  # -1 for a lane that is empty
        # Lanes that take new prompts together.
        self._num_refilled = max(1, len(prompts) // _SHRINK)

    def run(self) -> Iterator[bool]:
        """Decodes until no prompt is left; yields whenever the device has been given work."""
        call = self._call
        lanes = self._prefilled(self._prompt_of, call.engine.num_columns)
        while True:
            lanes = decode(self._fixed, self._params, call.draw_params, lanes, self._enough())
            yield True
            self._collect(lanes)
            if call.waiting:
                lanes = self._refilled(lanes)
            if (self._prompt_of < 0).all():
                return
            lanes = self._rearranged(lanes)

    def _enough(self) -> np.int32:
        """The number of lanes at work at which decoding is left."""
        num_lanes, num_waiting = len(self._prompt_of), len(self._call.waiting)
        if num_waiting:
            return np.int32(num_lanes - min(self._num_refilled, num_waiting))
        return np.int32(num_lanes // _SHRINK)

    def _prefilled(self, indices: np.ndarray, num_columns: int) -> Lanes:
        """Lanes at their first token, for the prompts of the given indices."""
        call = self._call
        requests = jax.tree.map(lambda x: x[indices], call.requests)
        return prefill(self._fixed, num_columns, self._params, call.draw_params, requests)

    def _collect(self, lanes: Lanes) -> None:
        """Takes the responses of the lanes that are done."""
        call, group_size = self._call, self._call.engine.group_size
        done_L = np.asarray(lanes.done_B).reshape(-1, group_size).all(axis=1)
        ended = np.flatnonzero(done_L & (self._prompt_of >= 0))
        if not len(ended):
            return
        prompts = self._prompt_of[ended]

        def of_lanes(x: Array) -> np.ndarray:
            return np.asarray(x).reshape(-1, group_size, *x.shape[1:])[ended]

        call.token_PGT[prompts] = of_lanes(lanes.token_BT)
        call.length_PG[prompts] = of_lanes(lanes.length_B)
        call.stopped_PG[prompts] = of_lanes(lanes.stopped_B)
        if call.engine.record_logp:
            call.logp_PGT[prompts] = of_lanes(lanes.logp_BT)
        self._prompt_of[ended] = -1

    def _refilled(self, lanes: Lanes) -> Lanes:
        """Lanes of which the empty ones have taken prompts that waited."""
        waiting, size = self._call.waiting, self._num_refilled
        empty = np.flatnonzero(self._prompt_of < 0)
        while len(empty) and waiting:
            taken = [waiting.popleft() for _ in range(min(size, len(empty), len(waiting)))]
            into, empty = empty[: len(taken)], empty[len(taken) :]
            self._prompt_of[into] = taken
            # Always as many at once, for one compilation; those beyond go nowhere.
            padding = size - len(taken)
            new = self._prefilled(np.array(taken + taken[:1] * padding), 0)
            place = np.concatenate([into, np.full(padding, len(self._prompt_of))])
            lanes = put(lanes, new, place.astype(np.int32))
        return lanes

    def _rearranged(self, lanes: Lanes) -> Lanes:
        """Lanes with room to go on: more columns, without those of no use, and fewer lanes."""
        column, live = int(lanes.column), np.flatnonzero(self._prompt_of >= 0)
        num_lanes = len(self._prompt_of)
        while not self._call.waiting and len(live) <= num_lanes // _SHRINK:
            num_lanes = max(1, num_lanes // _SHRINK)
        if num_lanes == len(self._prompt_of) and column < lanes.num_columns:
            return lanes
        empty = np.flatnonzero(self._prompt_of < 0)
        kept = np.sort(np.concatenate([live, empty])[:num_lanes])
        self._prompt_of = self._prompt_of[kept]
        start_LG = np.asarray(lanes.start_B).reshape(-1, self._call.engine.group_size)
        first, step = int(start_LG[live].min()), self._call.engine.num_columns
        needed = -(-(column - first + 1) // step) * step  # whole segments
        return rearrange(lanes, needed, kept.astype(np.int32), np.int32(first))
