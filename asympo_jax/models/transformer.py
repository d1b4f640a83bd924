"""One decoder for the Llama, Qwen2 and Qwen3 families, in Flax linen.

Pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU; RMSNorm throughout.
The module ends at the normalised hidden state: the head is applied by whoever needs logits, and
never to more positions than it needs.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asympo_jax.models.attention import Attend, attend_causally
from asympo_jax.models.config import ModelConfig
from asympo_jax.models.rope import rotate

Params = Any


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + ε) · scale` over the last axis, in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises the last axis of `x`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        mean_square = jnp.square(x32).mean(axis=-1, keepdims=True)
        broadcast_scale = scale.reshape((1,) * (x.ndim - 1) + (-1,))
        return (x32 * jax.lax.rsqrt(mean_square + self.epsilon) * broadcast_scale).astype(x.dtype)


def _project(dense: nn.Dense | nn.DenseGeneral, x: Array) -> Array:
    """`x W + b`, and `s (x A) B` to it where the layer's parameters have an adapter; see `lora`."""
    out = dense(x)
    if not dense.has_variable("params", "lora_a"):
        return out
    scale, a, b = (dense.get_variable("params", f"lora_{name}") for name in ("scale", "a", "b"))
    # Never `W + s A B`: in bfloat16 a small difference to W would be rounded away.
    low_rank = jnp.tensordot(x, a.astype(out.dtype), a.ndim - 1)
    return out + jnp.tensordot(low_rank, (scale * b.astype(jnp.float32)).astype(out.dtype), 1)


class Attention(nn.Module):
    """Grouped-query self-attention."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: Array, position_BT: Array, attend: Attend, cache: Any
    ) -> tuple[Array, Any]:
        """Projects, rotates, attends, projects back."""
        config = self.config

        def heads(name: str, num_heads: int) -> Array:
            shape = (num_heads, config.head_width)
            dense = nn.DenseGeneral(shape, use_bias=config.qkv_bias, name=name, dtype=config.dtype)
            return _project(dense, x_BTD)

        q_BTNH = heads("query", config.num_heads)
        k_BTKH = heads("key", config.num_kv_heads)
        v_BTKH = heads("value", config.num_kv_heads)
        if config.qk_norm:
            q_BTNH = RMSNorm(config.norm_epsilon, name="query_norm")(q_BTNH)
            k_BTKH = RMSNorm(config.norm_epsilon, name="key_norm")(k_BTKH)
        q_BTNH = rotate(q_BTNH, position_BT, config.rope_theta, config.rope_scaling)
        k_BTKH = rotate(k_BTKH, position_BT, config.rope_theta, config.rope_scaling)
        out_BTNH, cache = attend(q_BTNH, k_BTKH, v_BTKH, cache)
        dense = nn.DenseGeneral(
            config.width, axis=(-2, -1), use_bias=False, name="out", dtype=config.dtype
        )
        return _project(dense, out_BTNH), cache


class Mlp(nn.Module):
    """SwiGLU: `(silu(x W_gate) · x W_up) W_down`. arXiv:2002.05202."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """Applies the SwiGLU to every position."""

        def dense(name: str, width: int, x: Array) -> Array:
            layer = nn.Dense(width, use_bias=False, name=name, dtype=self.config.dtype)
            return _project(layer, x)

        gate_BTF = dense("gate", self.config.mlp_width, x_BTD)
        up_BTF = dense("up", self.config.mlp_width, x_BTD)
        return dense("down", self.config.width, nn.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, each added to the residual stream."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: Array, position_BT: Array, attend: Attend, cache: Any
    ) -> tuple[Array, Any]:
        """One layer."""
        epsilon = self.config.norm_epsilon
        normed_BTD = RMSNorm(epsilon, name="attention_norm")(x_BTD)
        attended_BTD, cache = Attention(self.config, name="attention")(
            normed_BTD, position_BT, attend, cache
        )
        x_BTD = x_BTD + attended_BTD
        return x_BTD + Mlp(self.config, name="mlp")(RMSNorm(epsilon, name="mlp_norm")(x_BTD)), cache


class Transformer(nn.Module):
    """Token ids to normalised hidden states, one cache a layer in and out."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens_BT: Int[Array, "B T"],
        position_BT: Int[Array, "B T"],
        attend: Attend = attend_causally,
        caches: tuple[Any, ...] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
        """The hidden states before the head, and the layers' caches.

        Args:
            tokens_BT: token ids.
            position_BT: position of each token in its sequence, from 0.
            attend: how positions look at each other.
            caches: one a layer, handed to `attend`; None where it needs none.
        """
        config = self.config
        init = nn.initializers.normal(config.width**-0.5)
        embedding_VD = self.param("embedding", init, (config.vocab_size, config.width))
        if not config.tied_head:
            # Not used here: declared so that one `init` makes every parameter.
            self.param("head", init, (config.vocab_size, config.width))
        x_BTD = jnp.take(embedding_VD, tokens_BT, axis=0).astype(config.dtype)
        caches_out = []
        block = nn.remat(Block, static_argnums=(3,)) if config.remat else Block
        for layer in range(config.num_layers):
            cache = None if caches is None else caches[layer]
            x_BTD, cache = block(config, name=f"layer_{layer}")(x_BTD, position_BT, attend, cache)
            caches_out.append(cache)
        return RMSNorm(config.norm_epsilon, name="final_norm")(x_BTD), tuple(caches_out)


def init_params(config: ModelConfig, key: Array) -> Params:
    """Random float32 parameters: `{"embedding", "layer_0", …, "final_norm"[, "head"]}`."""
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    return Transformer(config).init(key, tokens_BT, tokens_BT)["params"]


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    attend: Attend = attend_causally,
    caches: tuple[Any, ...] | None = None,
    position_BT: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
    """`Transformer` applied; positions count from 0 unless given."""
    if position_BT is None:
        position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return Transformer(config).apply({"params": params}, tokens_BT, position_BT, attend, caches)  # pyright: ignore[reportReturnType]


def head_matrix(config: ModelConfig, params: Params) -> Float[Array, "V D"]:
    """The output head: row v scores token v."""
    return params["embedding"] if config.tied_head else params["head"]


def logits(
    config: ModelConfig, params: Params, tokens_BT: Int[Array, "B T"]
) -> Float[Array, "B T V"]:
    """Full float32 logits of every position; for tests and short inputs only."""
    hidden_BTD, _ = hidden_states(config, params, tokens_BT)
    return head_logits(config, params, hidden_BTD)


def head_logits(
    config: ModelConfig, params: Params, hidden: Float[Array, "*rows D"]
) -> Float[Array, "*rows V"]:
    """Float32 logits of the given hidden states."""
    head_VD = head_matrix(config, params).astype(hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, head_VD, preferred_element_type=jnp.float32)
