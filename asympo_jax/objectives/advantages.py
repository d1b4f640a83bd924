"""Rewards to advantages: how much better a response is than the others of its group."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from asympo_jax.objectives.masked import reduction_dtype

Center = Literal["mean", "leave_one_out", "none"]
Scale = Literal["std", "none"]
_AnyArray = Array | np.ndarray

# A group whose rewards differ by less than this share of their size has rounding, not signal.
_RELATIVE_TOLERANCE = 1e-6


def degenerate_groups(rewards_PG: Float[_AnyArray, "P G"]) -> Bool[_AnyArray, " P"]:
    """True for groups whose rewards are all equal, to a millionth of their size; NumPy stays NumPy.

    They teach nothing. Rewards on a large offset should be given without it.
    """
    spread_P = rewards_PG.max(axis=1) - rewards_PG.min(axis=1)
    return spread_P <= _RELATIVE_TOLERANCE * abs(rewards_PG).max(axis=1)


def group_advantages(
    rewards_PG: Float[Array, "P G"], center: Center = "mean", scale: Scale = "std"
) -> Float[Array, "P G"]:
    """Group-relative advantages, `(reward − center) / scale`.

    Centred advantages sum to 0 over each complete group. A group whose rewards are all equal gets
    exactly 0 when centred, and is never divided by its standard deviation.

    Args:
        rewards_PG: rewards of P complete groups of G responses.
        center: `mean` subtracts the group's mean; `leave_one_out` the mean of the other G − 1
            responses (RLOO, arXiv:2402.14740), which is `mean` times G / (G − 1); `none` nothing.
        scale: `std` divides by the group's population standard deviation (arXiv:2402.03300);
            `none` does not (arXiv:2503.20783, arXiv:2504.02546).

    Returns:
        Advantages, float32 (float64 if the rewards are).

    Raises:
        ValueError: an unknown `center` or `scale`, or G = 1 with anything but `none`.
    """
    if center not in ("mean", "leave_one_out", "none"):
        raise ValueError(f"center={center!r}: must be 'mean', 'leave_one_out' or 'none'")
    if scale not in ("std", "none"):
        raise ValueError(f"scale={scale!r}: must be 'std' or 'none'")
    group_size = rewards_PG.shape[1]
    if group_size < 2 and (center, scale) != ("none", "none"):
        raise ValueError(
            f"group_size={group_size}: advantages of a group need at least 2 responses"
        )
    rewards_PG = rewards_PG.astype(reduction_dtype(rewards_PG))
    flat_P1 = degenerate_groups(rewards_PG)[:, None]
    centred_PG = jnp.where(flat_P1, 0.0, rewards_PG - rewards_PG.mean(axis=1, keepdims=True))
    advantage_PG = rewards_PG if center == "none" else centred_PG
    if center == "leave_one_out":
        advantage_PG = advantage_PG * (group_size / (group_size - 1))
    if scale == "std":
        # In units of the largest, so that no square leaves the range of float32.
        unit_P1 = jnp.abs(centred_PG).max(axis=1, keepdims=True)
        unit_P1 = jnp.where(flat_P1, 1.0, unit_P1)
        mean_square_P1 = jnp.square(centred_PG / unit_P1).mean(axis=1, keepdims=True)
        advantage_PG = advantage_PG / unit_P1 / jnp.sqrt(jnp.where(flat_P1, 1.0, mean_square_P1))
    return advantage_PG


def unchanged(advantage_B: Float[Array, " B"]) -> Float[Array, " B"]:
    """The advantages as they are."""
    return advantage_B


def shifted(advantage_B: Float[Array, " B"], delta: float = -0.1) -> Float[Array, " B"]:
    """`A − δ`: the baseline of AsymRE, with which for δ < 0 successes weigh more than failures.

    arXiv:2506.20520. Differs from the paper: the loss is a mean over tokens, theirs a sum.

    Args:
        advantage_B: advantages.
        delta: δ, added to the mean reward that is the baseline.
    """
    return advantage_B - delta
