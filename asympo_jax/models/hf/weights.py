"""Which tensor of a Hugging Face directory is which parameter, and how their axes differ.

PyTorch keeps a projection as [out, in] with heads flattened, Flax as [in, out] with heads apart.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from asympo_jax.models.config import ModelConfig

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter and its tensor.

    Attributes:
        path: of the parameter, such as layer_0/attention/query/kernel.
        name: of the tensor.
        split: shape of the tensor with its heads apart.
        axes: the parameter is the split tensor transposed by these.
        shape: of the tensor.
    """

    path: str
    name: str
    split: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def to_parameter(self, tensor: np.ndarray) -> np.ndarray:
        """The parameter, a view of its tensor."""
        return tensor.reshape(self.split).transpose(self.axes)

    def to_tensor(self, parameter: np.ndarray) -> np.ndarray:
        """The tensor of a parameter."""
        return parameter.transpose(np.argsort(self.axes)).reshape(self.shape)

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.split[axis] for axis in self.axes)


def weights(config: ModelConfig) -> Iterator[Weight]:
    """Every tensor of a decoder. The head comes last; a tied one is the embedding once more."""
    matrix = (config.vocab_size, config.width)
    yield Weight("embedding", EMBEDDING, matrix, (0, 1), matrix)
    for layer in range(config.num_layers):
        yield from _layer(config, f"layer_{layer}", f"model.layers.{layer}")
    yield _vector("final_norm/scale", "model.norm.weight", config.width)
    yield Weight("embedding" if config.tied_head else "head", HEAD, matrix, (0, 1), matrix)


def _layer(config: ModelConfig, path: str, name: str) -> Iterator[Weight]:
    """The tensors of a block."""
    width, head_width, mlp_width = config.width, config.head_width, config.mlp_width
    yield _vector(f"{path}/attention_norm/scale", f"{name}.input_layernorm.weight", width)
    for projection, letter, num_heads in (
        ("query", "q", config.num_heads),
        ("key", "k", config.num_kv_heads),
        ("value", "v", config.num_kv_heads),
    ):
        ours, theirs = f"{path}/attention/{projection}", f"{name}.self_attn.{letter}_proj"
        heads = (num_heads, head_width)
        flat = math.prod(heads)
        yield Weight(
            f"{ours}/kernel", f"{theirs}.weight", (*heads, width), (2, 0, 1), (flat, width)
        )
        if config.qkv_bias:
            yield Weight(f"{ours}/bias", f"{theirs}.bias", heads, (0, 1), (flat,))
        if config.qk_norm and projection != "value":
            yield _vector(
                f"{ours}_norm/scale", f"{name}.self_attn.{letter}_norm.weight", head_width
            )
    split = (width, config.num_heads, head_width)
    yield Weight(
        f"{path}/attention/out/kernel",
        f"{name}.self_attn.o_proj.weight",
        split,
        (1, 2, 0),
        (width, config.num_heads * head_width),
    )
    yield _vector(f"{path}/mlp_norm/scale", f"{name}.post_attention_layernorm.weight", width)
    for part, shape in (
        ("gate", (mlp_width, width)),
        ("up", (mlp_width, width)),
        ("down", (width, mlp_width)),
    ):
        yield Weight(
            f"{path}/mlp/{part}/kernel", f"{name}.mlp.{part}_proj.weight", shape, (1, 0), shape
        )


def _vector(path: str, name: str, width: int) -> Weight:
    """A tensor of one axis."""
    return Weight(path, name, (width,), (0,), (width,))
