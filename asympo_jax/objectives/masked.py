"""Sums and means over masked arrays that padding cannot reach, whatever it holds.

The mask selects (`where`), it never multiplies: NaN · 0 is NaN.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


def reduction_dtype(x: Array) -> Any:
    """Float32, and float64 for what is float64: the type to sum `x` in."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def masked(x: Shaped[Array, "..."], mask: Bool[Array, "..."]) -> Shaped[Array, "..."]:
    """`x` where the mask is true, 0 elsewhere."""
    return jnp.where(mask, x, jnp.zeros_like(x))


def masked_mean(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Mean of `x` over the true entries; 0 where there are none."""
    return masked(x, mask).sum() / jnp.maximum(mask.sum(), 1).astype(x.dtype)


def masked_share(flag: Bool[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Share of the true entries of the mask whose flag is true; 0 where there are none."""
    return (flag & mask).sum() / jnp.maximum(mask.sum(), 1)


def response_mean(x_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"]) -> Float[Array, " B"]:
    """Mean of each response over its own tokens; 0 for a response without tokens."""
    length_B = jnp.maximum(mask_BT.sum(axis=1), 1).astype(x_BT.dtype)
    return masked(x_BT, mask_BT).sum(axis=1) / length_B
