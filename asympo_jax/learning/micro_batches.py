"""A gradient summed over micro-batches, so that only one's activations are held at a time.

Small micro-batches also stay in the caches of a CPU: twice as fast there at eight short rows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def summed_gradient(
    loss_share: Callable[[Any, Any], tuple[jax.Array, Any]],
    params: Any,
    rows: Any,
    micro_batch: int,
) -> tuple[Any, jax.Array, Any]:
    """Gradient and sum of the shares of a loss, and what else they return for each row.

    Args:
        loss_share: (params, micro-batch of rows) -> (share of the loss, tree of arrays by row). The
            shares of all micro-batches add up to the loss, so the split changes nothing but the
            order of sums.
        params: what to differentiate by.
        rows: a tree of arrays whose first axis is the batch.
        micro_batch: rows at once; divides the batch; 0 for all.
    """
    value_and_gradient = jax.value_and_grad(loss_share, has_aux=True)
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    if micro_batch in (0, num_rows):
        (loss, by_row), gradient = value_and_gradient(params, rows)
        return gradient, loss, by_row

    def add(total: Any, micro: Any) -> tuple[Any, Any]:
        (loss, by_row), gradient = value_and_gradient(params, micro)
        return jax.tree.map(jnp.add, total, (gradient, loss)), by_row

    zeros = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0.0))
    (gradient, loss), by_row = jax.lax.scan(add, zeros, _split(rows, micro_batch))
    return gradient, loss, _joined(by_row)


def mapped(function: Callable[[Any], Any], rows: Any, micro_batch: int) -> Any:
    """What a function returns for each row, one micro-batch after the other.

    Args:
        function: micro-batch of rows -> tree of arrays by row.
        rows: a tree of arrays whose first axis is the batch.
        micro_batch: rows at once; divides the batch; 0 for all.
    """
    if micro_batch in (0, jax.tree.leaves(rows)[0].shape[0]):
        return function(rows)
    return _joined(jax.lax.map(function, _split(rows, micro_batch)))


def _split(rows: Any, micro_batch: int) -> Any:
    """A tree of arrays with a first axis of micro-batches."""
    return jax.tree.map(lambda x: x.reshape(-1, micro_batch, *x.shape[1:]), rows)


def _joined(by_row: Any) -> Any:
    """The inverse of `_split`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), by_row)
