"""Decoders small enough to compile in a second, and none of them special."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from asympo_jax.models import ModelConfig, init_params, logits

_SIZES: dict[str, Any] = {
    "vocab_size": 7,
    "num_layers": 2,
    "width": 8,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_width": 4,
    "mlp_width": 12,
}
LLAMA = ModelConfig(**_SIZES)
QWEN2 = ModelConfig(**_SIZES, qkv_bias=True)
QWEN3 = ModelConfig(**_SIZES, qk_norm=True, tied_head=False, rope_theta=50.0, norm_epsilon=1e-3)
FAMILIES = {"llama": LLAMA, "qwen2": QWEN2, "qwen3_untied": QWEN3}


@functools.cache
def params_of(config: ModelConfig, seed: int = 0) -> Any:
    """Parameters with noise on all of them, those that start at 0 or 1 too; never donate them."""
    params = _init_params(config, jax.random.key(seed))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, noisy)


def full_logits(config: ModelConfig, params: Any, tokens_BT: Any) -> jax.Array:
    """`models.logits`, compiled once for each shape."""
    return _full_logits(config, params, jnp.asarray(tokens_BT, jnp.int32))


_init_params = jax.jit(init_params, static_argnums=0)
_full_logits = jax.jit(logits, static_argnums=0)


def full_logp(config: ModelConfig, params: Any, tokens_BT: Any, temperature: float) -> jax.Array:
    """Log-probs of tokens 1, 2, … from the full logits; column 0 is 0."""
    tokens_BT = jnp.asarray(tokens_BT, jnp.int32)
    logp_BTV = jax.nn.log_softmax(full_logits(config, params, tokens_BT) / temperature)
    chosen_BT = jnp.take_along_axis(logp_BTV[:, :-1], tokens_BT[:, 1:, None], axis=2)[:, :, 0]
    return jnp.pad(chosen_BT, ((0, 0), (1, 0)))
