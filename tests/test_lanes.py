"""Lanes and devices that prompts are decoded in change no response and save work."""

import collections
import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from model_cases import QWEN3, params_of
from sampling_cases import ENGINE, assert_same

from asympo_jax import sampling
from asympo_jax.sampling import draw_params, generate
from asympo_jax.sampling import engine as engine_module
from asympo_jax.types import StopReason

# Two devices can share its vocabulary.
ONE_LAYER = dataclasses.replace(QWEN3, num_layers=1, vocab_size=8)
MANY = dataclasses.replace(
    ENGINE, num_prompts=9, group_size=2, max_response_tokens=12, segment=4, stop_ids=(5,)
)
MANY_PROMPTS = [[1 + i % 5] * (1 + i % 4) for i in range(9)]
MANY_KEYS = [(1, i) for i in range(9)]
# One of eighteen is four times as long as the others may be.
LIMITS = np.full((9, 2), 3)
LIMITS[4, 1] = 12


def many(limit_PG: np.ndarray | None = None, **options: Any) -> sampling.Responses:
    """Responses to nine prompts, in more or fewer lanes."""
    engine = dataclasses.replace(MANY, **options)
    params = params_of(ONE_LAYER)
    return generate(ONE_LAYER, engine, params, MANY_PROMPTS, MANY_KEYS, draw_params(), limit_PG)


class Watched:
    """`decode` of the engine, with an account of what each call did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.rows, self.steps, self.columns = [], [], []
        self._decode = engine_module.decode
        monkeypatch.setattr(engine_module, "decode", self)

    def __call__(self, fixed: Any, params: Any, draw: Any, lanes: Any, enough: Any) -> Any:
        before, num_rows = int(lanes.column), len(lanes.length_B)
        lanes = self._decode(fixed, params, draw, lanes, enough)
        self.rows.append(num_rows)
        self.steps.append(int(lanes.column) - before)
        self.columns.append(lanes.num_columns)
        return lanes

    @property
    def work(self) -> int:
        """Rows times steps."""
        return sum(rows * steps for rows, steps in zip(self.rows, self.steps, strict=True))


@pytest.mark.parametrize(
    ("lanes", "limit_PG"), [(1, None), (4, LIMITS)], ids=["one, alike", "four, one long"]
)
def test_responses_do_not_depend_on_the_lanes(lanes, limit_PG):
    found = many(limit_PG, lanes=lanes)
    assert_same(found, many(limit_PG))
    assert len({tuple(token_T) for token_T in found.token_PGT.reshape(18, -1)}) > 12


def test_a_response_with_a_limit_is_the_beginning_of_the_one_without():
    limited, free = many(LIMITS), many()
    assert (free.length_PG > LIMITS).any() and (free.length_PG < LIMITS).any()
    np.testing.assert_array_equal(limited.length_PG, np.minimum(free.length_PG, LIMITS))
    drawn_PGT = np.arange(12) < limited.length_PG[:, :, None]
    np.testing.assert_array_equal(limited.token_PGT, np.where(drawn_PGT, free.token_PGT, 0))
    at_limit = limited.stop_PG == StopReason.LENGTH
    np.testing.assert_array_equal(at_limit, ~(limited.token_PGT == 5).any(axis=2))


def test_lanes_that_are_done_take_the_prompts_that_wait(monkeypatch):
    watched = Watched(monkeypatch)
    many(LIMITS, lanes=4, stop_ids=())
    # Batches of four prompts would end with the longest of each, after 2, 11 and 2 steps.
    assert sum(watched.steps) <= 11 + 2
    assert watched.rows[0] == 8 and watched.rows[-1] == 2


def test_lanes_at_work_are_moved_together_when_no_prompt_waits(monkeypatch):
    watched = Watched(monkeypatch)
    many(LIMITS, stop_ids=())
    assert watched.rows[0] == 18 and watched.rows[-1] == 4
    assert watched.work == 18 * 2 + 4 * 9, "two steps of all, the rest of two lanes' room"


def test_columns_that_nobody_needs_are_given_up(monkeypatch):
    watched = Watched(monkeypatch)
    many(np.full((9, 2), 3), lanes=1, stop_ids=())
    assert sum(watched.steps) == 9 * 2
    assert max(watched.columns) <= 8, "three of a response at work, and a segment"


@pytest.mark.parametrize("lanes", [0, 4])
def test_devices_that_have_the_parameters_share_the_prompts(lanes, monkeypatch):
    # Nine lanes go to three of four devices, four lanes to all.
    params = sampling.on_devices(params_of(ONE_LAYER), 4)
    engine, used = dataclasses.replace(MANY, lanes=lanes), collections.Counter()
    decode = engine_module.decode

    def watched(*args: Any) -> Any:
        lanes = decode(*args)
        used.update(lanes.length_B.devices())
        return lanes

    monkeypatch.setattr(engine_module, "decode", watched)
    out = generate(ONE_LAYER, engine, params, MANY_PROMPTS, MANY_KEYS, draw_params(), LIMITS)
    assert_same(out, many(LIMITS))
    assert len(used) == (4 if lanes else 3)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_devices_that_share_a_copy_of_the_parameters_draw_the_same_tokens(temperature, monkeypatch):
    params, engine = params_of(ONE_LAYER), dataclasses.replace(MANY, lanes=4)
    given = (MANY_PROMPTS, MANY_KEYS, draw_params(temperature), LIMITS)
    expected = generate(ONE_LAYER, engine, params, *given)
    decode, parts = engine_module.decode, set()

    def watched(*args: Any) -> Any:
        lanes = decode(*args)
        parts.update(
            (len(x.devices()), x.sharding.shard_shape(x.shape)[1])
            for x in jax.tree.leaves(lanes.own)
        )
        return lanes

    monkeypatch.setattr(engine_module, "decode", watched)
    shared = sampling.on_devices(params, 4, tensor=2)
    kernel = shared["layer_0"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (8, 6)
    assert_same(generate(ONE_LAYER, engine, shared, *given), expected)
    assert parts == {(2, 1)}, "a device of two has the keys and values of one head of two"


def test_more_devices_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"sampler\.devices=9: this process has 8 cpu devices"):
        sampling.on_devices({}, 9)


@pytest.mark.parametrize("limit", [0, 13])
def test_limits_out_of_range_are_refused(limit):
    limits = LIMITS.copy()
    limits[2, 0] = limit
    with pytest.raises(ValueError, match=r"must have shape .* from 1 to sampler\.max_resp"):
        many(limits)
    with pytest.raises(ValueError, match=r"limit_PG: shape \(9,\)"):
        many(LIMITS[:, 0])
