"""Asynchronous RL post-training of language models without behaviour information, in JAX."""

import importlib
from typing import Any

__version__ = "0.1.0"
_PACKAGES = ("models", "objectives", "tasks")


def __getattr__(name: str) -> Any:
    """Loads a public package on first use, so that a role can choose its devices before jax."""
    if name in _PACKAGES:
        return importlib.import_module(f"asympo_jax.{name}")
    raise AttributeError(f"module 'asympo_jax' has no attribute {name!r}")
