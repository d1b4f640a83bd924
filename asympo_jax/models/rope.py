"""Rotary position embeddings, and how some checkpoints stretch them to longer contexts."""

import dataclasses
import math

import jax
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotation:
    """What the pairs of every head are turned by; h is half of the width of a head."""

    cos: Float[Array, "B T 1 1 h"]
    signed_sin: Float[Array, "B T 1 2 h"]


def rotation(
    position_BT: Int[Array, "B T"],
    head_width: int,
    theta: float,
    scaling: RopeScaling | None = None,
) -> Rotation:
    """The rotation of each position. arXiv:2104.09864."""
    half = head_width // 2
    frequency_h = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        frequency_h = scaling.scale(frequency_h)
    angle_BTh = position_BT.astype(jnp.float32)[:, :, None] * frequency_h[None, None]
    both_BTH = jnp.concatenate([jnp.cos(angle_BTh), jnp.sin(angle_BTh)], axis=2)
    # On CPUs XLA would compute them again for every head of every layer, as a part of what reads
    # them, and it ignores barriers; of a product, here with 0, 1 and -1, it takes the result.
    parts = jnp.kron(jnp.array([[1.0, 0, 0], [0, -1, 1]]), jnp.eye(half))
    parts_BTh = jnp.matmul(both_BTH, parts, precision=jax.lax.Precision.HIGHEST)
    cos, signed_sin = jnp.split(parts_BTh.reshape(*position_BT.shape, 1, 3, half), [1], axis=3)
    return Rotation(cos, signed_sin)


def rotate(x_BTNH: Float[Array, "B T N H"], rotation: Rotation) -> Float[Array, "B T N H"]:
    """Rotary position embedding of the pairs (i, i + H/2), the layout of Llama."""
    # The halves are swapped by reversing an axis of two: on CPUs far quicker than joining them.
    halves = x_BTNH.astype(jnp.float32).reshape(*x_BTNH.shape[:-1], 2, -1)
    turned = halves * rotation.cos + halves[:, :, :, ::-1] * rotation.signed_sin
    return turned.reshape(x_BTNH.shape).astype(x_BTNH.dtype)


def _require_positive(scaling: "LinearScaling | Llama3Scaling") -> None:
    """Refuses a field that is not a positive number."""
    for name, value in dataclasses.asdict(scaling).items():
        if not 0 < value < math.inf:
            raise ValueError(f"model.rope_scaling.{name}={value}: must be positive")
