"""LoRA adapters to a directory in the form of the PEFT library."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from asympo_jax.models.config import ModelConfig
from asympo_jax.models.hf.files import write_tensors
from asympo_jax.models.hf.saving import writing
from asympo_jax.models.hf.weights import weights
from asympo_jax.models.lora import LoraConfig
from asympo_jax.models.transformer import Params


def save_adapters(
    config: ModelConfig,
    lora: LoraConfig,
    adapters: Params,
    directory: str | os.PathLike[str],
    base: str | None = None,
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, both or nothing.

    Args:
        config: of the decoder.
        lora: of the adapters.
        adapters: as `init_adapters` gives them.
        directory: where to; new or empty.
        base: Hugging Face directory of what they are adapters on, which the config then names.

    Raises:
        ValueError: `directory` cannot be used.
    """
    tensors = dict(_tensors(config, lora, adapters))
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.scale * lora.rank,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    with writing(directory) as partial:
        path = partial / "adapter_model.safetensors"
        write_tensors(path, shapes, jnp.dtype("float32"), tensors.__getitem__)
        (partial / "adapter_config.json").write_text(json.dumps(description, indent=2) + "\n")


def _tensors(config: ModelConfig, lora: LoraConfig, adapters: Params) -> Mapping[str, np.ndarray]:
    """PEFT's tensors by name: A is [r, in] and B [out, r], heads flattened."""
    flat: Any = flatten_dict(jax.device_get(adapters), sep="/")
    tensors = {}
    for weight in weights(config):
        place, _, leaf = weight.path.rpartition("/")
        if leaf == "kernel" and f"{place}/lora_a" in flat:
            name = f"base_model.model.{weight.name.removesuffix('.weight')}"
            tensors[f"{name}.lora_A.weight"] = flat[f"{place}/lora_a"].reshape(-1, lora.rank).T
            tensors[f"{name}.lora_B.weight"] = flat[f"{place}/lora_b"].reshape(lora.rank, -1).T
    return tensors
