"""Groups to batches."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from asympo_jax import learning
from asympo_jax.learning import make_batch
from asympo_jax.types import Group


@st.composite
def groups(draw, group_size: int = 3, max_response: int = 4) -> list[Group]:
    """Groups with prompts of 1 to 3 tokens; every token and log-prob of a batch is another."""
    found = []
    for ticket in range(draw(st.integers(1, 3))):
        length_G = np.array([draw(st.integers(1, max_response)) for _ in range(group_size)])
        drawn_GT = np.arange(max_response)[None] < length_G[:, None]
        number_GT = 100 * (ticket + 1) + np.arange(group_size * max_response).reshape(
            group_size, -1
        )
        found.append(
            Group(
                ticket=ticket,
                version=0,
                prompt_S=np.arange(draw(st.integers(1, 3)), dtype=np.int32) + 10 * (ticket + 1),
                response_GT=np.where(drawn_GT, number_GT, 0).astype(np.int32),
                length_G=length_G.astype(np.int32),
                stop_G=np.zeros(group_size, np.int8),
                reward_G=np.arange(group_size, dtype=np.float32) + ticket,
                behaviour_logp_GT=np.where(drawn_GT, -number_GT, 0).astype(np.float32),
            )
        )
    return found


@hypothesis.settings(max_examples=30)
@hypothesis.given(groups=groups(), extra=st.integers(0, 2))
def test_a_batch_holds_every_prompt_and_response_at_its_place(groups, extra):
    batch = make_batch(groups, group_size=3, num_positions=7 + extra)
    assert batch.tokens_BT.shape == batch.drawn_BT.shape == (3 * len(groups), 7 + extra)
    assert batch.tokens_BT.dtype == np.int32 and batch.drawn_BT.dtype == bool
    for row, (tokens_T, drawn_T) in enumerate(zip(batch.tokens_BT, batch.drawn_BT, strict=True)):
        group, member = groups[row // 3], row % 3
        start, length = len(group.prompt_S), group.length_G[member]
        assert tokens_T[:start].tolist() == group.prompt_S.tolist()
        assert np.flatnonzero(drawn_T).tolist() == list(range(start, start + length))
        assert tokens_T[drawn_T].tolist() == group.response_GT[member, :length].tolist()
        assert (tokens_T[start + length :] == 0).all()
        logp_T = batch.behaviour_logp_BT[row]
        assert logp_T[drawn_T].tolist() == (-tokens_T[drawn_T]).tolist()
        assert (logp_T[~drawn_T] == 0).all()
    assert batch.reward_PG.tolist() == [group.reward_G.tolist() for group in groups]
    assert batch.reward_PG.dtype == np.float32


EXAMPLE = Group(
    ticket=0,
    version=0,
    prompt_S=np.array([2], np.int32),
    response_GT=np.array([[3], [4]], np.int32),
    length_G=np.array([1, 1], np.int32),
    stop_G=np.zeros(2, np.int8),
    reward_G=np.zeros(2, np.float32),
)


def test_a_batch_has_behaviour_log_probs_where_all_of_its_groups_have():
    assert make_batch([EXAMPLE, EXAMPLE], 2, 4).behaviour_logp_BT is None
    recorded = dataclasses.replace(EXAMPLE, behaviour_logp_GT=-np.ones((2, 1), np.float32))
    for mixed in ([EXAMPLE, recorded], [recorded, EXAMPLE]):
        with pytest.raises(AssertionError):
            make_batch(mixed, 2, 4)


def test_groups_whose_rewards_differ_come_first_into_a_batch_and_keep_their_order():
    rewards = {0: (1, 1), 1: (0, 1), 2: (0, 0), 3: (1, 0), 4: (0, 1)}
    candidates = [
        Group(
            ticket=ticket,
            version=0,
            prompt_S=np.ones(1, np.int32),
            response_GT=np.ones((2, 1), np.int32),
            length_G=np.ones(2, np.int32),
            stop_G=np.zeros(2, np.int8),
            reward_G=np.array(reward, np.float32),
        )
        for ticket, reward in rewards.items()
    ]

    def chosen(count):
        return [group.ticket for group in learning.informative_groups(candidates, count)]

    assert [chosen(count) for count in (2, 3, 4, 5)] == [
        [1, 3],
        [1, 3, 4],
        [0, 1, 3, 4],
        [0, 1, 2, 3, 4],
    ]


def test_incomplete_groups_and_groups_without_room_are_never_trained_on():
    with pytest.raises(AssertionError):
        make_batch([EXAMPLE], group_size=3, num_positions=4)
    with pytest.raises(AssertionError):
        make_batch([EXAMPLE], group_size=2, num_positions=1)
