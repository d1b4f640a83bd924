"""The optimiser: its rate, its clip, its decay of weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asympo_jax import learning
from asympo_jax.learning import OptimizerConfig


def rates(num_updates: int, **options: Any) -> list[float]:
    """Learning rates in units of the peak: without memory, Adam's step is the rate alone."""
    config = OptimizerConfig(learning_rate=0.5, b1=0.0, b2=0.0, clip_norm=0.0, **options)
    optimizer = learning.make_optimizer(config)
    params = {"x": jnp.ones(1)}
    state = optimizer.init(params)
    found = []
    for _ in range(num_updates):
        updates, state = optimizer.update({"x": jnp.ones(1)}, state, params)
        found.append(-np.asarray(jax.tree.leaves(updates)).item() / 0.5)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"warmup_updates": 1}, [1, 1, 1]),
        ({"warmup_updates": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"decay_updates": 4}, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0]),
        ({"warmup_updates": 1, "decay_updates": 2}, [1, 0.5, 0, 0]),
        ({"warmup_updates": 3, "decay_updates": 6}, [1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447, 0]),
    ],
    ids=str,
)
def test_the_rate_rises_stays_and_falls_as_documented(options, expected):
    np.testing.assert_allclose(rates(len(expected), **options), expected, atol=1e-5)


def first_update(gradient: list[float], **options: Any) -> np.ndarray:
    config = OptimizerConfig(learning_rate=1.0, b1=0.0, b2=0.0, epsilon=1.0, **options)
    optimizer = learning.make_optimizer(config)
    params = [jnp.full(1, 2.0) for _ in gradient]
    gradients = [jnp.full(1, x) for x in gradient]
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return np.concatenate(jax.tree.leaves(updates))


def test_the_clip_is_of_the_norm_over_all_parameters():
    # With ε = 1 the update is −g / (|g| + 1), so the clipped gradient shows.
    unclipped, clipped = np.array([3.0, 4.0]), np.array([0.3, 0.4])
    np.testing.assert_allclose(
        first_update([3.0, 4.0], clip_norm=0.5), -clipped / (clipped + 1), rtol=1e-5
    )
    for clip_norm in (0.0, 6.0):
        found = first_update([3.0, 4.0], clip_norm=clip_norm)
        np.testing.assert_allclose(found, -unclipped / (unclipped + 1), rtol=1e-5)


def test_weight_decay_pulls_parameters_and_not_their_gradient():
    np.testing.assert_allclose(first_update([0.0], weight_decay=0.1), [-0.2], rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "optimizer.learning_rate=0.0: must be positive"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate=nan: must be positive"),
        ({"b1": 1.0}, "optimizer.b1=1.0: must be in [0, 1)"),
        ({"b2": -0.1}, "optimizer.b2=-0.1: must be in [0, 1)"),
        ({"warmup_updates": -1}, "optimizer.warmup_updates=-1: must not be negative"),
        ({"decay_updates": -1}, "optimizer.decay_updates=-1: must not be negative"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay=-1.0: must not be negative"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm=-1.0: must not be negative"),
        (
            {"decay_updates": 5, "warmup_updates": 5},
            "optimizer.decay_updates=5: must be 0 or more than optimizer.warmup_updates=5",
        ),
    ],
)
def test_optimisers_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError) as error:
        OptimizerConfig(**{"learning_rate": 1e-3, **wrong})
    assert message in str(error.value)
