"""LoRA: low-rank adapters of the projections are trained and the decoder is not. arXiv:2106.09685.

A decoder with adapters is a tree of parameters like any other: beside the kernel W of a projection
stand `lora_scale` s, `lora_a` A and `lora_b` B, and the projection is `x W + s (x A) B`. The scale
belongs to the frozen base, not to a config: whoever has base and adapters cannot apply another one.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from asympo_jax.models.config import ModelConfig
from asympo_jax.models.transformer import Params, init_params

# Projection -> the part of a block that it is in, and how many axes of its kernel are inputs.
TARGETS = {
    "query": ("attention", 1),
    "key": ("attention", 1),
    "value": ("attention", 1),
    "out": ("attention", 2),
    "gate": ("mlp", 1),
    "up": ("mlp", 1),
    "down": ("mlp", 1),
}
_MAX_RANK = 1024


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which adapters there are.

    Attributes:
        rank: columns of A and rows of B (r); 0 trains the whole decoder.
        alpha: the scale is alpha / rank; None for `rank`, a scale of 1.
        targets: the projections with an adapter, separated by commas; None for all of query, key,
            value, out, gate, up and down.
    """

    rank: int = 0
    alpha: float | None = None
    targets: str | None = None

    def __post_init__(self):
        """Refuses values outside their range, and those that would not be used.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        if not 0 <= self.rank <= _MAX_RANK:
            raise ValueError(f"lora.rank={self.rank}: must be from 0, no LoRA, to {_MAX_RANK}")
        for name, value in (("alpha", self.alpha), ("targets", self.targets)):
            if value is not None and not self.rank:
                raise ValueError(
                    f"lora.{name}={value!r}: is not used with lora.rank=0, which must be at least 1"
                )
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"lora.alpha={self.alpha}: must be positive")
        unknown = [name for name in self._named if name not in TARGETS]
        if unknown:
            raise ValueError(
                f"lora.targets={self.targets!r}: {unknown[0]!r} is no projection, must be some of "
                f"{','.join(TARGETS)}"
            )

    @property
    def scale(self) -> float:
        """The factor of `x A B`."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def target_names(self) -> tuple[str, ...]:
        """The projections with an adapter, in the order of a block."""
        return tuple(name for name in TARGETS if name in self._named)

    @property
    def _named(self) -> list[str]:
        """What `targets` says."""
        return list(TARGETS) if self.targets is None else self.targets.split(",")


def init_adapters(config: ModelConfig, lora: LoraConfig, key: Array) -> Params:
    """Adapters that change nothing yet: A is normal with variance 1 / inputs, B is 0.

    Returns:
        A tree like that of the parameters with `lora_a` [in axes…, r] and `lora_b` [r, out axes…],
        float32. An adapter's A does not depend on which other projections have one.
    """
    shapes = jax.eval_shape(lambda key: init_params(config, key), key)
    adapters = {}
    for layer in range(config.num_layers):
        for number, (target, (part, num_in)) in enumerate(TARGETS.items()):
            if target not in lora.target_names:
                continue
            place = (f"layer_{layer}", part, target)
            shape = shapes[place[0]][part][target]["kernel"].shape
            key_a = jax.random.fold_in(jax.random.fold_in(key, layer), number)
            a = jax.random.normal(key_a, (*shape[:num_in], lora.rank))
            adapters[(*place, "lora_a")] = a * math.prod(shape[:num_in]) ** -0.5
            adapters[(*place, "lora_b")] = jnp.zeros((lora.rank, *shape[num_in:]))
    return unflatten_dict(adapters)


def frozen_base(config: ModelConfig, params: Params, lora: LoraConfig) -> Params:
    """The parameters that adapters are put on: `params` and the adapters' scales."""
    flat = flatten_dict(params)
    for layer in range(config.num_layers):
        for target in lora.target_names:
            place = (f"layer_{layer}", TARGETS[target][0], target)
            flat[(*place, "lora_scale")] = jnp.float32(lora.scale)
    return unflatten_dict(flat)


def with_adapters(base: Params, adapters: Params) -> Params:
    """One tree for everything that takes a decoder's parameters; no array is copied.

    Args:
        base: what `frozen_base` gives.
        adapters: for just those projections that have a scale there.
    """
    flat_base, flat_adapters = flatten_dict(base), flatten_dict(adapters)
    scaled = {path[:-1] for path in flat_base if path[-1] == "lora_scale"}
    assert scaled == {path[:-1] for path in flat_adapters}
    return unflatten_dict(flat_base | flat_adapters)


def merge(params: Params) -> Params:
    """Parameters without adapters for the same function: W + s A B, computed and left in float32.

    Args:
        params: what `with_adapters` gives; parameters without adapters come back as they are.
    """
    flat: Any = dict(flatten_dict(params))
    for place in [path[:-1] for path in flat if path[-1] == "lora_scale"]:
        scale, a, b = (flat.pop((*place, f"lora_{name}")) for name in ("scale", "a", "b"))
        # Without it TPUs multiply in bfloat16.
        delta = jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
        flat[(*place, "kernel")] = flat[(*place, "kernel")].astype(jnp.float32) + scale * delta
    return unflatten_dict(flat)
