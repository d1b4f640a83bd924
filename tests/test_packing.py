"""Every drawn token is predicted once, from its own prompt and response, with little padding."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from asympo_jax.learning import PackedBatch, Packing, pack
from asympo_jax.types import Batch

NUM_POSITIONS = 12


@st.composite
def batches(draw: Any) -> tuple[Packing, Batch]:
    """Ragged responses, some of them empty, to prompts that a group may share."""
    group_size, num_groups = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    num_responses = group_size * num_groups
    tokens_BT = 1 + np.arange(num_responses * NUM_POSITIONS).reshape(num_responses, -1)
    drawn_BT = np.zeros(tokens_BT.shape, bool)
    for group in range(num_groups):
        for b in range(group * group_size, (group + 1) * group_size):
            # A prompt of another length is another prompt.
            start, length = draw(st.sampled_from([1, 1, 1, 3])), draw(st.integers(0, 6))
            tokens_BT[b, :start] = tokens_BT[group * group_size, :start]
            drawn_BT[b, start : start + length] = True
            tokens_BT[b, start + length :] = 0
    rewards_PG = np.zeros((num_groups, group_size), np.float32)
    micro_batch = draw(st.sampled_from([0, 1, 2, 3, 4]))
    packing = Packing(group_size, micro_batch, draw(st.sampled_from([0, 4])), 6)
    return packing, Batch(tokens_BT.astype(np.int32), drawn_BT, rewards_PG)


def columns(packed: PackedBatch, name: str) -> np.ndarray:
    """A field of all rows in micro-batches that are worked, [blocks, R, C] or [blocks, …]."""
    x = np.asarray(getattr(packed.rows, name))[: int(packed.num_micro_batches)]
    return x.reshape(-1, *x.shape[2:])


@hypothesis.settings(max_examples=60)
@hypothesis.given(case=batches())
def test_every_drawn_token_is_predicted_in_one_column_from_what_stands_before_it(case):
    packing, batch = case
    packed = pack(packing, batch)
    token, target, position, segment, response = (
        columns(packed, name)
        for name in ("token_NRC", "target_NRC", "position_NRC", "segment_NRC", "response_NG")
    )
    found = []
    for n, r, c in zip(*np.nonzero(segment >= 0), strict=True):
        b, t = response[n, segment[n, r, c]], position[n, r, c]
        assert (token[n, r, c], target[n, r, c]) == tuple(batch.tokens_BT[b, t : t + 2])
        length = columns(packed, "prompt_length_N")[n]
        prompt = columns(packed, "prompt_NS")[n, :length]
        assert length == packed.first_B[b] - 1
        np.testing.assert_array_equal(prompt, batch.tokens_BT[b, :length])
        found.append((b, t + 1))
    assert sorted(found) == sorted(zip(*np.nonzero(batch.drawn_BT), strict=True))


@hypothesis.settings(max_examples=60)
@hypothesis.given(case=batches())
def test_places_lead_from_a_response_to_its_columns(case):
    packing, batch = case
    packed = pack(packing, batch)
    everywhere = np.asarray(packed.rows.target_NRC).reshape(-1)
    by_micro_batch = np.asarray(packed.rows.target_NRC).reshape(len(packed.rows.target_NRC), -1)
    seen = set()
    for m, responses in enumerate(packed.rows.response_NG):
        for b, place in zip(
            responses.reshape(-1), packed.rows.place_NG[m].reshape(-1), strict=True
        ):
            if b == len(batch.tokens_BT):
                continue
            drawn = batch.tokens_BT[b][batch.drawn_BT[b]]
            span = slice(packed.place_B[b], packed.place_B[b] + len(drawn))
            np.testing.assert_array_equal(everywhere[span], drawn)
            np.testing.assert_array_equal(by_micro_batch[m, place : place + len(drawn)], drawn)
            seen.add(b)
    assert seen == set(np.flatnonzero(batch.drawn_BT.any(axis=1)))


def short_and_long(lengths: list[int], group_size: int = 4) -> Batch:
    """Responses of given lengths to one prompt of two tokens a group."""
    length_B1 = np.array(lengths)[:, None]
    position_T = np.arange(2 + 6)[None]
    drawn_BT = (position_T >= 2) & (position_T < 2 + length_B1)
    tokens_BT = np.where(position_T < 2 + length_B1, 1 + position_T, 0).astype(np.int32)
    return Batch(tokens_BT, drawn_BT, np.zeros((len(lengths) // group_size, group_size)))


@pytest.mark.parametrize(
    ("lengths", "num_rows", "why"),
    [
        ([6, 6, 6, 6] * 2, 8, "no two fit into a row"),
        ([5, 1, 5, 1] * 2, 4, "a long one and a short one do"),
        ([1, 2, 1, 2] * 2, 2, "a group does"),
        ([6, 6, 6, 6, 0, 0, 0, 0], 4, "a group without responses takes none"),
    ],
)
def test_responses_take_as_few_rows_as_there_is_room(lengths, num_rows, why):
    packed = pack(Packing(4, 4, 8, 6), short_and_long(lengths))
    assert (columns(packed, "segment_NRC") >= 0).any(axis=2).sum() == num_rows, why


def test_a_prompt_is_read_once_for_all_rows_that_it_has():
    four = pack(Packing(4, 4, 8, 6), short_and_long([6] * 8))
    assert four.rows.token_NRC.shape[1:] == (1, 4, 6) and four.num_micro_batches == 2
    # Where a group needs one row, four prompts with a row each make a micro-batch.
    one = pack(Packing(4, 4, 8, 6), short_and_long([1] * 16))
    assert one.rows.token_NRC.shape[1:] == (4, 1, 6) and one.num_micro_batches == 1


def test_the_shape_depends_on_the_rows_of_a_block_alone():
    packing = Packing(4, 4, 8, 6)
    shapes = {
        str(jax.tree.map(np.shape, pack(packing, short_and_long(lengths)).rows))
        for lengths in ([6] * 8, [6] * 7 + [0], [6, 6, 6, 6, 0, 0, 0, 0], [5, 5, 5, 6] * 2)
    }
    assert len(shapes) == 1


def test_a_response_that_begins_without_a_prompt_or_has_no_room_is_never_packed():
    batch = short_and_long([6] * 4)
    with pytest.raises(AssertionError):
        pack(Packing(4, 4, 8, 5), batch)
    batch.drawn_BT[0] = True
    with pytest.raises(AssertionError):
        pack(Packing(4, 4), batch)
