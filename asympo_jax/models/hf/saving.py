"""A `Model` to a Hugging Face directory."""

import contextlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from asympo_jax.models.config import ModelConfig
from asympo_jax.models.hf import config_json
from asympo_jax.models.hf.files import INDEX_FILE, SINGLE_FILE, read_object, write_tensors
from asympo_jax.models.hf.loading import DTYPES, Model, load_config
from asympo_jax.models.hf.weights import Weight, weights

# What a directory holds besides the decoder: how to make tokens of text, and to generate.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def save(
    model: Model,
    directory: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    stop_ids: Sequence[int] = (),
    max_file_bytes: int = 5 * 10**9,
) -> None:
    """Writes a Hugging Face directory, all of it or nothing.

    The head is written even where it is the embedding: engines that are sent new weights would keep
    a stale one otherwise.

    Args:
        model: decoder and parameters.
        directory: where to; new or empty.
        like: a directory of the same vocabulary, whose tokenizer and generation files are copied
            and whose special token ids and longest context are kept.
        dtype: 'float32' or 'bfloat16', of the tensors; None for that of the embedding.
        stop_ids: token ids that end a response, unless `like` knows them.
        max_file_bytes: from which size tensors are spread over several files.

    Raises:
        ValueError: no family has such a decoder, a parameter is missing or misshapen, or
            `directory`, `like` or `dtype` cannot be used.
    """
    kept = {} if like is None else _config_like(pathlib.Path(like), model.config)
    params = _checked_params(model)
    dtype = params["embedding"].dtype.name if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: must be one of {list(DTYPES)}")
    config = config_json.to_json(model.config, dtype, stop_ids, kept)
    with writing(directory) as partial:
        _write_weights(partial, model.config, params, jnp.dtype(dtype), max_file_bytes)
        for name in _COPIED:
            if like is not None and (pathlib.Path(like) / name).is_file():
                shutil.copyfile(pathlib.Path(like) / name, partial / name)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@contextlib.contextmanager
def writing(directory: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A new directory to be filled, which is renamed to `directory` at the end.

    Raises:
        ValueError: `directory` is not new or empty, or cannot be written.
    """
    directory = pathlib.Path(directory)
    partial = _make_partial(directory)
    try:
        yield partial
        os.replace(partial, directory)
    except OSError as error:
        raise ValueError(f"{directory}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _config_like(like: pathlib.Path, config: ModelConfig) -> dict[str, Any]:
    """The config of a directory whose vocabulary is the model's."""
    vocab_size = load_config(like).vocab_size
    if vocab_size != config.vocab_size:
        raise ValueError(
            f"like={like}: has vocab_size={vocab_size}, must have the model's {config.vocab_size}"
        )
    return read_object(like / "config.json")


def _checked_params(model: Model) -> dict[str, Any]:
    """The parameters by path, all that the decoder has."""
    params = flax.traverse_util.flatten_dict(model.params, sep="/")
    for weight in weights(model.config):
        found = getattr(params.get(weight.path), "shape", None)
        if found != weight.parameter_shape:
            raise ValueError(
                f"parameter {weight.path!r} has shape {found}, must have {weight.parameter_shape}"
            )
    return params


def _make_partial(directory: pathlib.Path) -> pathlib.Path:
    """A new directory beside the one to be written, to be renamed when it is whole."""
    try:
        if directory.exists() and any(directory.iterdir()):
            raise ValueError(f"{directory}: is not empty, must be a new or an empty directory")
        directory = directory.absolute()
        partial = directory.with_name(f".{directory.name}.{os.getpid()}")
        partial.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{directory}: cannot be written ({error})") from error
    return partial


def _write_weights(
    directory: pathlib.Path,
    config: ModelConfig,
    params: dict[str, Any],
    dtype: np.dtype,
    max_file_bytes: int,
) -> None:
    """Writes the tensors, to one file or to several with an index."""
    weight_of = {weight.name: weight for weight in weights(config)}

    def read(name: str) -> np.ndarray:
        weight = weight_of[name]
        return weight.to_tensor(np.asarray(jax.device_get(params[weight.path])))

    parts = _parts(list(weight_of.values()), dtype.itemsize, max_file_bytes)
    files = [SINGLE_FILE]
    if len(parts) > 1:
        files = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        shapes = {weight.name: weight.shape for weight in part}
        write_tensors(directory / file, shapes, dtype, read)
    if len(parts) > 1:
        total = sum(math.prod(weight.shape) for weight in weight_of.values()) * dtype.itemsize
        file_of = {
            weight.name: file for file, part in zip(files, parts, strict=True) for weight in part
        }
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _parts(tensors: list[Weight], itemsize: int, max_file_bytes: int) -> list[list[Weight]]:
    """The tensors in files that are not larger than allowed, or hold one tensor."""
    parts, num_bytes = [[]], 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * itemsize
        if parts[-1] and num_bytes + size > max_file_bytes:
            parts.append([])
            num_bytes = 0
        parts[-1].append(tensor)
        num_bytes += size
    return parts
