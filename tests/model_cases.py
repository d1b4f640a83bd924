"""Decoders small enough to compile in a second, and none of them special."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    """Random parameters, those that start at 0 or 1 too; never donate them.

    Drawn by NumPy: to compile `init_params` would take longer than most tests.
    """
    rng = np.random.default_rng(seed)

    def drawn(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = 0.4 * rng.normal(size=leaf.shape)
        return jnp.asarray(noise + (path[-1].key == "scale"), leaf.dtype)

    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(drawn, shapes)


def full_logits(config: ModelConfig, params: Any, tokens_BT: Any) -> jax.Array:
    """`models.logits`, compiled once for each shape."""
    return _full_logits(config, params, jnp.asarray(tokens_BT, jnp.int32))


_full_logits = jax.jit(logits, static_argnums=0)


def full_logp(config: ModelConfig, params: Any, tokens_BT: Any, temperature: float) -> jax.Array:
    """Log-probs of tokens 1, 2, … from the full logits; column 0 is 0."""
    tokens_BT = jnp.asarray(tokens_BT, jnp.int32)
    logp_BTV = jax.nn.log_softmax(full_logits(config, params, tokens_BT) / temperature)
    chosen_BT = jnp.take_along_axis(logp_BTV[:, :-1], tokens_BT[:, 1:, None], axis=2)[:, :, 0]
    return jnp.pad(chosen_BT, ((0, 0), (1, 0)))
