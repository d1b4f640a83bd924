"""One decoder for three families, and log-probabilities without full logits."""

from asympo_jax.models.config import ModelConfig
from asympo_jax.models.logprobs import token_logp
from asympo_jax.models.transformer import (
    head_logits,
    head_matrix,
    hidden_states,
    init_params,
    logits,
)

__all__ = [
    "ModelConfig",
    "head_logits",
    "head_matrix",
    "hidden_states",
    "init_params",
    "logits",
    "token_logp",
]
