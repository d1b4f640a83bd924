"""One decoder for three families, its Hugging Face form, and log-probs without full logits."""

from asympo_jax.models.config import ModelConfig
from asympo_jax.models.hf import Model, load, load_config, save, save_adapters
from asympo_jax.models.hf import check as check_directory
from asympo_jax.models.logprobs import target_logp, token_logp
from asympo_jax.models.lora import (
    LoraConfig,
    frozen_base,
    init_adapters,
    merge,
    with_adapters,
)
from asympo_jax.models.presets import PRESETS
from asympo_jax.models.rope import LinearScaling, Llama3Scaling
from asympo_jax.models.rounding import PARAMS_DTYPES, ParamsDtype, rounded
from asympo_jax.models.sharding import (
    MeshShape,
    gathered,
    kept_placed,
    placed,
    put,
    row_sharding,
    sharding_of,
    shardings_of,
)
from asympo_jax.models.transformer import (
    Params,
    head_logits,
    head_matrix,
    hidden_states,
    init_params,
    logits,
)

__all__ = [
    "PARAMS_DTYPES",
    "PRESETS",
    "LinearScaling",
    "Llama3Scaling",
    "LoraConfig",
    "MeshShape",
    "Model",
    "ModelConfig",
    "Params",
    "ParamsDtype",
    "check_directory",
    "frozen_base",
    "gathered",
    "head_logits",
    "head_matrix",
    "hidden_states",
    "init_adapters",
    "init_params",
    "kept_placed",
    "load",
    "load_config",
    "logits",
    "merge",
    "placed",
    "put",
    "rounded",
    "row_sharding",
    "save",
    "save_adapters",
    "sharding_of",
    "shardings_of",
    "target_logp",
    "token_logp",
    "with_adapters",
]
