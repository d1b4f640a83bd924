"""Sums over micro-batches: what they come to, and that their function is traced once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asympo_jax.learning.micro_batches import mapped, split, summed_gradient


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_the_shares_of_all_micro_batches_add_up_and_the_loss_is_traced_once(micro_batch):
    traced = []

    def loss_share(param, rows_B):
        traced.append(rows_B.shape)
        return (param * rows_B).sum(), rows_B + 1.0

    rows_B = jnp.arange(6.0)
    gradient, loss, others = jax.jit(summed_gradient, static_argnums=0)(
        loss_share, jnp.float32(3.0), split(rows_B, micro_batch)
    )
    assert (float(gradient), float(loss)) == (15.0, 45.0)
    np.testing.assert_array_equal(np.asarray(others).reshape(-1), np.arange(1.0, 7.0))
    assert len(traced) == 1


def test_micro_batches_beyond_the_count_are_not_worked():
    found = mapped(lambda x: x + 1.0, split(jnp.arange(6.0), 2), jnp.int32(2))
    np.testing.assert_array_equal(found.reshape(-1), [1.0, 2.0, 3.0, 4.0, 0.0, 0.0])
