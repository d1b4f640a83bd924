"""Rotary position embeddings, and how some checkpoints stretch them to longer contexts."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Every frequency divided by `factor`, as if positions were that much closer."""

    factor: float

    def __post_init__(self):
        """Refuses values outside their range."""
        _require_positive(self)

    def scale(self, frequency_h: Float[Array, " h"]) -> Float[Array, " h"]:
        """The frequencies to turn by, in radians a position."""
        return frequency_h / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, a ramp between (Llama 3.1).

    Attributes:
        factor: divides the low frequencies.
        low_frequency_factor: turns within the original context up to which a frequency is low.
        high_frequency_factor: turns from which it is high.
        original_positions: length of the original context.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_positions: int

    def __post_init__(self):
        """Refuses values outside their range."""
        _require_positive(self)
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"model.rope_scaling.high_frequency_factor={self.high_frequency_factor}: must be "
                f"above low_frequency_factor={self.low_frequency_factor}"
            )

    def scale(self, frequency_h: Float[Array, " h"]) -> Float[Array, " h"]:
        """The frequencies to turn by, in radians a position."""
        turns_h = frequency_h * (self.original_positions / (2 * math.pi))
        ramp = self.high_frequency_factor - self.low_frequency_factor
        kept_h = jnp.clip((turns_h - self.low_frequency_factor) / ramp, 0.0, 1.0)
        return kept_h * frequency_h + (1 - kept_h) * (frequency_h / self.factor)


RopeScaling = LinearScaling | Llama3Scaling


def rotate(
    x_BTNH: Float[Array, "B T N H"],
    position_BT: Int[Array, "B T"],
    theta: float,
    scaling: RopeScaling | None = None,
) -> Float[Array, "B T N H"]:
    """Rotary position embedding of the pairs (i, i + H/2). arXiv:2104.09864, layout of Llama."""
    half = x_BTNH.shape[-1] // 2
    frequency_h = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        frequency_h = scaling.scale(frequency_h)
    angle_BT1h = position_BT.astype(jnp.float32)[:, :, None, None] * frequency_h[None, None, None]
    sin, cos = (turn(angle_BT1h)[:, :, :, None] for turn in (jnp.sin, jnp.cos))
    signed_sin = jnp.concatenate([-sin, sin], axis=3)
    # The halves are swapped by reversing an axis of two: on CPUs far quicker than joining them.
    halves = x_BTNH.astype(jnp.float32).reshape(*x_BTNH.shape[:-1], 2, half)
    turned = halves * cos + halves[:, :, :, ::-1] * signed_sin
    return turned.reshape(x_BTNH.shape).astype(x_BTNH.dtype)


def _require_positive(scaling: "LinearScaling | Llama3Scaling") -> None:
    """Refuses a field that is not a positive number."""
    for name, value in dataclasses.asdict(scaling).items():
        if not 0 < value < math.inf:
            raise ValueError(f"model.rope_scaling.{name}={value}: must be positive")
