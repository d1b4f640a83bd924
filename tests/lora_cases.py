"""Adapters for tests, and what looks into them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from model_cases import params_of

from asympo_jax import models
from asympo_jax.models import LoraConfig, ModelConfig

TOKENS = np.random.default_rng(0).integers(0, 7, (4, 9)).astype(np.int32)
LORA = LoraConfig(rank=2, alpha=3.0)
TARGETS = ("query", "key", "value", "out", "gate", "up", "down")


@functools.cache
def adapters_of(config: ModelConfig, lora: LoraConfig = LORA) -> Any:
    """Random adapters that change something; never donate them."""
    zero = models.init_adapters(config, lora, jax.random.key(3))
    rng = np.random.default_rng(4)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), zero)


def base_of(config: ModelConfig, lora: LoraConfig = LORA) -> Any:
    return models.frozen_base(config, params_of(config), lora)


def by_path(tree: Any) -> dict[tuple[str, ...], Any]:
    flat: Any = flatten_dict(tree)
    return flat


def copied(tree: Any) -> Any:
    return jax.tree.map(np.array, tree)


def leaf_names(tree: Any) -> set[str]:
    return {path[-1] for path in by_path(tree)}
