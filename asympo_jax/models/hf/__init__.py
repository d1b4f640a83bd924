"""Import and export of Hugging Face directories: Llama, Qwen2 and Qwen3 families.

A directory is `config.json` with `model.safetensors`, or with several files and their index.
Tensors pass through host memory one by one, so that loading and saving need room for the parameters
and one tensor more.
"""

from asympo_jax.models.hf.adapters import save_adapters
from asympo_jax.models.hf.loading import Model, check, load, load_config
from asympo_jax.models.hf.saving import save

__all__ = ["Model", "check", "load", "load_config", "save", "save_adapters"]
