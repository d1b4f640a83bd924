"""One decoder for three families, its Hugging Face form, and log-probs without full logits."""

from asympo_jax.models.config import ModelConfig
from asympo_jax.models.hf import Model, load, load_config, save
from asympo_jax.models.hf import check as check_directory
from asympo_jax.models.logprobs import token_logp
from asympo_jax.models.rope import LinearScaling, Llama3Scaling
from asympo_jax.models.transformer import (
    head_logits,
    head_matrix,
    hidden_states,
    init_params,
    logits,
)

__all__ = [
    "LinearScaling",
    "Llama3Scaling",
    "Model",
    "ModelConfig",
    "check_directory",
    "head_logits",
    "head_matrix",
    "hidden_states",
    "init_params",
    "load",
    "load_config",
    "logits",
    "save",
    "token_logp",
]
