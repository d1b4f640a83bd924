"""A Hugging Face directory to a `Model`."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from asympo_jax.models import transformer
from asympo_jax.models.config import ModelConfig
from asympo_jax.models.hf import config_json
from asympo_jax.models.hf.files import StoredTensor, read_object, stored_tensors
from asympo_jax.models.hf.weights import EMBEDDING, HEAD, Weight, weights

DTYPES = ("float32", "bfloat16")
_CONFIG = "config.json"
# Rotary frequencies, which old versions of transformers stored; they follow from the config.
_IGNORED_SUFFIX = "rotary_emb.inv_freq"

ShardingOfPath = Callable[[str], jax.sharding.Sharding]


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder with its parameters.

    Attributes:
        config: its shape.
        params: `{"embedding", "layer_0", …, "final_norm"[, "head"]}`, as of `init_params`.
    """

    config: ModelConfig
    params: Any

    def logits(
        self, params: Any, tokens_BT: Int[Array | np.ndarray, "B T"]
    ) -> Float[Array, "B T V"]:
        """Full float32 logits of every position under `params`; for tests and short inputs."""
        return transformer.logits(self.config, params, jnp.asarray(tokens_BT))


def load(
    directory: str | os.PathLike[str],
    dtype: str = "float32",
    sharding: jax.sharding.Sharding | ShardingOfPath | None = None,
) -> Model:
    """The model in a Hugging Face directory of the Llama, Qwen2 or Qwen3 family.

    Args:
        directory: holds config.json and safetensors files.
        dtype: 'float32' or 'bfloat16', of the parameters and of the activations. For float32
            parameters under bfloat16 activations load float32 and replace `config.dtype`.
        sharding: where parameters go: one for all, or a function of a parameter's path, such as
            "layer_0/attention/query/kernel". None for jax's default device.

    Raises:
        ValueError: the directory, a key of its config or a tensor cannot be used; one sentence that
            names it, its value and what is allowed. No tensor is read before all are known to fit;
            one with values that are not finite is refused when it is read.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: must be one of {list(DTYPES)}")
    directory = pathlib.Path(directory)
    config = load_config(directory, dtype)
    stored = _matched(config, directory)
    params = {}
    # The largest first: its host copy is gone before most of the parameters are there.
    for weight in sorted(stored, key=lambda weight: -math.prod(weight.shape)):
        params[weight.path] = _place(weight, stored[weight], jnp.dtype(dtype), sharding)
    return Model(config, flax.traverse_util.unflatten_dict(params, sep="/"))


def load_config(directory: str | os.PathLike[str], dtype: str = "float32") -> ModelConfig:
    """The decoder that the directory's config.json describes; nothing else is read.

    Args:
        directory: a Hugging Face directory.
        dtype: of activations.

    Raises:
        ValueError: it is not there, or describes a decoder that is not built here.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: is not a directory; models are not downloaded here")
    path = directory / _CONFIG
    found = read_object(path)
    try:
        return config_json.from_json(found, dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check(directory: str | os.PathLike[str]) -> None:
    """Refuses a directory that `load` would refuse, without loading it.

    Raises:
        ValueError: as of `load`.
    """
    directory = pathlib.Path(directory)
    _matched(load_config(directory), directory)


def _matched(config: ModelConfig, directory: pathlib.Path) -> dict[Weight, StoredTensor]:
    """Each parameter with its tensor, of the right shape; none is missing, none left over."""
    stored = stored_tensors(directory)
    wanted = {weight.name: weight for weight in weights(config)}
    if config.tied_head:
        for name in {HEAD, EMBEDDING} & stored.keys():
            stored[name].require(wanted[name].shape)
        _check_tied_head(stored)
        del wanted[HEAD]
        stored.pop(HEAD, None)
    for name, weight in wanted.items():
        if name not in stored:
            raise ValueError(f"{directory}: tensor {name!r} is missing")
        stored[name].require(weight.shape)
    for name in _unknown(stored, wanted):
        raise ValueError(
            f"{stored[name].path}: tensor {name!r} has no place in the decoder that {_CONFIG} "
            "describes"
        )
    return {weight: stored[name] for name, weight in wanted.items()}


def _unknown(stored: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Names of tensors that nothing is known of."""
    return [
        name for name in sorted(set(stored) - set(wanted)) if not name.endswith(_IGNORED_SUFFIX)
    ]


def _check_tied_head(stored: dict[str, StoredTensor]) -> None:
    """Refuses a head of its own where the config says that it is the embedding."""
    if HEAD in stored and EMBEDDING in stored and not stored[HEAD].has_bytes_of(stored[EMBEDDING]):
        raise ValueError(
            f"{stored[HEAD].path}: tensor {HEAD!r} differs from {EMBEDDING!r}, with "
            f"tie_word_embeddings=true in {_CONFIG} it must be the same"
        )


def _place(
    weight: Weight,
    stored: StoredTensor,
    dtype: np.dtype,
    sharding: jax.sharding.Sharding | ShardingOfPath | None,
) -> jax.Array:
    """Reads a tensor and puts it where it belongs; its host copy is free on return."""
    parameter = weight.to_parameter(stored.read()).astype(dtype, copy=False)
    if callable(sharding):
        sharding = sharding(weight.path)
    if sharding is None:
        placed = jax.device_put(parameter)
    else:
        placed = jax.make_array_from_callback(parameter.shape, sharding, parameter.__getitem__)
    if not bool(jnp.isfinite(placed).all()):
        raise ValueError(f"{stored.path}: tensor {stored.name!r} has values that are not finite")
    return placed.block_until_ready()
