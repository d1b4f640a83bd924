"""Rewards to advantages."""

from typing import Any

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from asympo_jax import objectives
from asympo_jax.objectives import degenerate_groups, group_advantages

rewards = hypothesis.extra.numpy.arrays(
    np.float32,
    (3, 5),
    elements=st.one_of(st.sampled_from([0.0, 1.0, 0.1]), st.floats(-10, 10, width=32)),
)


def advantages(rewards_PG: Any, center: Any = "mean", scale: Any = "std") -> np.ndarray:
    return np.asarray(group_advantages(jnp.asarray(rewards_PG, jnp.float32), center, scale))


@hypothesis.settings(max_examples=50)
@hypothesis.given(
    rewards_PG=rewards,
    center=st.sampled_from(["mean", "leave_one_out"]),
    scale=st.sampled_from(["std", "none"]),
)
def test_centred_advantages_sum_to_zero_over_every_group(rewards_PG, center, scale):
    advantage_PG = advantages(rewards_PG, center, scale)
    # Rounding is relative to the rewards, before they are divided by their spread.
    spread_P = np.where(scale == "std", rewards_PG.std(axis=1), 1.0)
    size_P = np.abs(rewards_PG).max(axis=1) / np.maximum(spread_P, 1e-30)
    # A group whose spread is near its rounding is either flat, or noisy and allowed for.
    allowed_P = 1e-5 * np.maximum(size_P, np.abs(advantage_PG).max(axis=1))
    assert (np.abs(advantage_PG.sum(axis=1)) <= allowed_P).all()


def test_advantages_are_rewards_less_their_mean_in_standard_deviations():
    rewards_PG = [[1.0, 0.0, 0.0, 0.0], [2.0, -1.0, 3.5, 0.25]]
    x_PG = np.asarray(rewards_PG)
    expected_PG = (x_PG - x_PG.mean(1, keepdims=True)) / x_PG.std(1, keepdims=True)
    np.testing.assert_allclose(advantages(rewards_PG), expected_PG, rtol=1e-6)
    np.testing.assert_allclose(
        advantages(rewards_PG, scale="none"), x_PG - x_PG.mean(1, keepdims=True), rtol=1e-6
    )


def test_leave_one_out_compares_with_the_mean_of_the_others():
    x_PG = np.array([[1.0, 0.0, 0.5, 0.0]])
    others_PG = (x_PG.sum(1, keepdims=True) - x_PG) / 3
    np.testing.assert_allclose(
        advantages(x_PG, "leave_one_out", "none"), x_PG - others_PG, rtol=1e-6
    )


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("center", ["mean", "leave_one_out"])
@pytest.mark.parametrize("reward", [0.1, 0.7, 0.0, -3e7])
def test_equal_rewards_give_advantages_of_exactly_zero(reward, center, scale):
    rewards_PG = np.array([[reward] * 8, [1.0] + [0.0] * 7], np.float32)
    rewards_PG[0, 3] = np.nextafter(rewards_PG[0, 3], np.float32(np.inf)) if reward else 0.0
    advantage_PG = advantages(rewards_PG, center, scale)
    assert (advantage_PG[0] == 0).all()
    assert (advantage_PG[1] != 0).all()


def test_degenerate_groups_are_those_whose_rewards_are_equal():
    rewards_PG = jnp.array([[0.1, 0.1], [0.1, 0.2], [0.0, 0.0], [0.0, 1e-20], [-5.0, -5.0]])
    assert degenerate_groups(rewards_PG).tolist() == [True, False, True, False, True]


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_advantages_do_not_depend_on_the_unit_of_the_rewards(size):
    rewards_PG = np.array([[1.0, 0.0, 0.0, 0.5]])
    np.testing.assert_allclose(advantages(rewards_PG * size), advantages(rewards_PG), rtol=1e-5)


def test_uncentred_advantages_are_the_rewards():
    rewards_PG = [[1.0, 0.25], [0.5, 0.5]]
    np.testing.assert_array_equal(advantages(rewards_PG, "none", "none"), rewards_PG)
    # A flat group is never divided by its standard deviation.
    np.testing.assert_allclose(
        advantages(rewards_PG, "none", "std"), [[1 / 0.375, 0.25 / 0.375], [0.5, 0.5]], rtol=1e-6
    )


def test_a_single_response_has_no_group_to_compare_with():
    assert advantages([[2.0]], "none", "none").tolist() == [[2.0]]
    for center, scale in [("mean", "none"), ("leave_one_out", "none"), ("none", "std")]:
        with pytest.raises(ValueError, match="group_size=1"):
            advantages([[2.0]], center, scale)


# The tests' type checks refuse these before the function could: users have none.
@pytest.mark.parametrize(
    ("center", "scale", "message"),
    [
        ("median", "std", "center='median': must be 'mean', 'leave_one_out' or 'none'"),
        ("mean", "max", "scale='max': must be 'std' or 'none'"),
    ],
)
def test_unknown_centres_and_scales_are_refused(center, scale, message):
    unchecked = objectives.group_advantages.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(ValueError) as error:
        unchecked(jnp.ones((1, 2)), center, scale)
    assert message in str(error.value)


def test_advantages_of_half_floats_are_float32():
    for dtype in (jnp.float16, jnp.bfloat16):
        assert group_advantages(jnp.ones((2, 2), dtype)).dtype == jnp.float32
