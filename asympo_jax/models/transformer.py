"""One decoder for the Llama, Qwen2 and Qwen3 families, in Flax linen.

Pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU; RMSNorm throughout.
The module ends at the normalised hidden state: the head is applied by whoever needs logits, and
never to more positions than it needs.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asympo_jax.models.attention import Attend, attend_causally
from asympo_jax.models.config import ModelConfig
from asympo_jax.models.rope import Rotation, rotate, rotation
from asympo_jax.models.sharding import kept_by_rows, kept_by_vocabulary

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


class Linear(nn.Module):
    """`x W + b` over the last axes of x, and `s (x A) B` to it with an adapter; see `lora`.

    Attributes:
        features: shape of what each position becomes.
        dtype: of the product.
        num_in_axes: axes of a position.
        use_bias: whether there is a b.
    """

    features: tuple[int, ...]
    dtype: str
    num_in_axes: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[…, *inputs] -> […, *features]`."""
        in_shape, features = x.shape[-self.num_in_axes :], self.features
        num_in, num_out = math.prod(in_shape), math.prod(features)

        def init(key: Array, shape: tuple[int, ...]) -> Array:
            # The variance of a position's inputs, however many axes they have.
            return nn.initializers.lecun_normal()(key, (num_in, num_out)).reshape(shape)

        kernel = self.param("kernel", init, (*in_shape, *features))
        # A product of two matrices: with more axes XLA multiplies a sixth more slowly on CPUs.
        x_MI = x.reshape(-1, num_in).astype(self.dtype)
        out_MO = x_MI @ kernel.reshape(num_in, num_out).astype(self.dtype)
        if kernel.dtype == jnp.int8:
            scale = self.get_variable("params", "kernel_scale")
            out_MO *= scale.reshape(1, num_out).astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, features)
            out_MO += bias.reshape(1, num_out).astype(self.dtype)
        if self.has_variable("params", "lora_a"):
            scale, a, b = (
                self.get_variable("params", f"lora_{name}") for name in ["scale", "a", "b"]
            )
            # Never `W + s A B`: in bfloat16 a small difference to W would be rounded away.
            b_RO = (scale * b.astype(jnp.float32)).astype(self.dtype).reshape(-1, num_out)
            out_MO += (x_MI @ a.astype(self.dtype).reshape(num_in, -1)) @ b_RO
        return out_MO.reshape(*x.shape[: x.ndim - self.num_in_axes], *features)


class Attention(nn.Module):
    """Grouped-query self-attention."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: Array, turned_by: Rotation, attend: Attend, cache: Any
    ) -> tuple[Array, Any]:
        """Projects, rotates, attends, projects back."""
        config = self.config

        def heads(name: str, num_heads: int) -> Array:
            shape = (num_heads, config.head_width)
            return Linear(shape, config.dtype, use_bias=config.qkv_bias, name=name)(x_BTD)

        q_BTNH = heads("query", config.num_heads)
        k_BTKH = heads("key", config.num_kv_heads)
        v_BTKH = heads("value", config.num_kv_heads)
        if config.qk_norm:
            q_BTNH = RMSNorm(config.norm_epsilon, name="query_norm")(q_BTNH)
            k_BTKH = RMSNorm(config.norm_epsilon, name="key_norm")(k_BTKH)
        q_BTNH, k_BTKH = rotate(q_BTNH, turned_by), rotate(k_BTKH, turned_by)
        out_BTNH, cache = attend(q_BTNH, k_BTKH, v_BTKH, cache)
        return Linear((config.width,), config.dtype, num_in_axes=2, name="out")(out_BTNH), cache


class Mlp(nn.Module):
    """SwiGLU: `(silu(x W_gate) · x W_up) W_down`. arXiv:2002.05202."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """Applies the SwiGLU to every position."""
        config = self.config
        gate_BTF = Linear((config.mlp_width,), config.dtype, name="gate")(x_BTD)
        up_BTF = Linear((config.mlp_width,), config.dtype, name="up")(x_BTD)
        return Linear((config.width,), config.dtype, name="down")(nn.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, each added to the residual stream."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: Array, turned_by: Rotation, attend: Attend, cache: Any
    ) -> tuple[Array, Any]:
        """One layer."""
        epsilon = self.config.norm_epsilon
        normed_BTD = RMSNorm(epsilon, name="attention_norm")(x_BTD)
        attended_BTD, cache = Attention(self.config, name="attention")(
            normed_BTD, turned_by, attend, cache
        )
        x_BTD = x_BTD + attended_BTD
        return x_BTD + Mlp(self.config, name="mlp")(RMSNorm(epsilon, name="mlp_norm")(x_BTD)), cache


_DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
_REMAT = {
    "none": lambda block: block,
    "dots": functools.partial(nn.remat, static_argnums=(3,), policy=_DOTS),
    "full": functools.partial(nn.remat, static_argnums=(3,)),
}


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
        table_VD = kept_by_vocabulary(config.mesh, embedding_VD)
        x_BTD = jnp.take(table_VD, tokens_BT, axis=0).astype(config.dtype)
        x_BTD = kept_by_rows(config.mesh, x_BTD)
        turned_by = rotation(position_BT, config.head_width, config.rope_theta, config.rope_scaling)
        caches_out = []
        block = _REMAT[config.remat](Block)
        for layer in range(config.num_layers):
            cache = None if caches is None else caches[layer]
            x_BTD, cache = block(config, name=f"layer_{layer}")(x_BTD, turned_by, attend, cache)
            x_BTD = kept_by_rows(config.mesh, x_BTD)
            caches_out.append(cache)
        return RMSNorm(config.norm_epsilon, name="final_norm")(x_BTD), tuple(caches_out)


@functools.partial(jax.jit, static_argnums=0)  # op by op it would be a hundred small programs
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
