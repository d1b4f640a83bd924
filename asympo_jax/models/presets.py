"""Published shapes, as in the config.json of each model."""

from asympo_jax.models.config import ModelConfig
from asympo_jax.models.rope import Llama3Scaling

PRESETS = {
    "llama3p2_3b": ModelConfig(
        128256, 28, 3072, 24, 8, 128, 8192, 5e5, 1e-5,
        rope_scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192),
    ),
    "qwen2_1p5b": ModelConfig(
        151936, 28, 1536, 12, 2, 128, 8960, 1e4, qkv_bias=True, tied_head=False
    ),
    "qwen3_1p7b": ModelConfig(151936, 28, 2048, 16, 8, 128, 6144, 1e6, qk_norm=True),
    "qwen3_4b": ModelConfig(151936, 36, 2560, 32, 8, 128, 9728, 1e6, qk_norm=True),
}  # fmt: skip

# By these a shape is the one that a preset means; positions of a variant may be turned otherwise.
SIZES = (
    "vocab_size",
    "num_layers",
    "width",
    "num_heads",
    "num_kv_heads",
    "head_width",
    "mlp_width",
)
