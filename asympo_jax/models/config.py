"""The shape of a decoder of the Llama, Qwen2 and Qwen3 families."""

import dataclasses
import math
from typing import Literal, get_args

import jax

from asympo_jax.models.rope import RopeScaling

Remat = Literal["none", "dots", "full"]
REMATS = get_args(Remat)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
        vocab_size: number of token ids (V).
        num_layers: number of blocks.
        width: residual width (D).
        num_heads: query heads (N).
        num_kv_heads: key/value heads (K); divides `num_heads`.
        head_width: width of a head (H), even.
        mlp_width: hidden width of the SwiGLU (F).
        rope_theta: base of the rotary frequencies.
        norm_epsilon: added to the mean square in RMSNorm.
        qk_norm: RMSNorm on queries and keys of each head (Qwen3).
        qkv_bias: biases on the query, key and value projections (Qwen2).
        tied_head: the output head is the embedding.
        dtype: of activations and matrix products; reductions stay float32. Parameters are float32
            unless a checkpoint was loaded otherwise.
        rope_scaling: how the rotary frequencies are stretched; None for not at all.
        remat: what the gradient computes again to hold less: `none`; `dots`, all of a block but the
            products with its matrices; `full`, all of a block, a third more work, with memory for
            the activations of one block and the inputs of the others.
        mesh: the devices that share the work, see `sharding`; None for one.
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    mlp_width: int
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = False
    tied_head: bool = True
    dtype: str = "float32"
    rope_scaling: RopeScaling | None = None
    remat: Remat = "none"
    mesh: jax.sharding.Mesh | None = None

    def __post_init__(self):
        """Refuses shapes that cannot be built.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        for field in ("vocab_size", "num_layers", "width", "num_heads", "num_kv_heads"):
            self._require_positive(field)
        for field in ("head_width", "mlp_width", "rope_theta", "norm_epsilon"):
            self._require_positive(field)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_kv_heads={self.num_kv_heads}: must divide "
                f"model.num_heads={self.num_heads}"
            )
        if self.head_width % 2:
            raise ValueError(
                f"model.head_width={self.head_width}: must be even, rotary embeddings turn pairs"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"model.dtype={self.dtype!r}: must be 'float32' or 'bfloat16'")
        if self.remat not in REMATS:
            raise ValueError(f"learner.remat={self.remat!r}: must be one of {list(REMATS)}")

    def _require_positive(self, field: str) -> None:
        """Refuses a field that is not positive."""
        if not 0 < getattr(self, field) < math.inf:
            raise ValueError(f"model.{field}={getattr(self, field)}: must be positive")
