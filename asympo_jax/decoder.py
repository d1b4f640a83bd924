"""The shape of an experiment's decoder: of a directory, of a preset, or of the config's fields."""

import dataclasses

from asympo_jax import models
from asympo_jax.hf_tokenizer import HfTokenizer
from asympo_jax.models import ModelConfig, presets
from asympo_jax.settings import ExperimentConfig
from asympo_jax.tokenizers import Tokenizer


def shape_of(
    config: ExperimentConfig, published: ModelConfig | None, tokenizer: Tokenizer
) -> ModelConfig:
    """The decoder's shape: the published one, or that of the config and the tokenizer.

    Args:
        config: the experiment.
        published: as `published_shape` found it.
        tokenizer: of the task.

    Raises:
        ValueError: the published one has not all ids of the tokenizer.
    """
    num_ids = tokenizer.vocab_size
    if (model := published) is None:
        return ModelConfig(vocab_size=num_ids, **config.model)
    # A decoder can have rows for more ids than a tokenizer of its kind knows.
    if model.vocab_size == num_ids:
        return model
    if model.vocab_size > num_ids and isinstance(tokenizer, HfTokenizer):
        return model
    raise ValueError(
        f"{_source(config)}: its decoder has {model.vocab_size} token ids, the "
        f"tokenizer of task {config.task_name!r} has {num_ids}; task.tokenizer_dir names the "
        "tokenizer of a decoder"
    )


def published_shape(config: ExperimentConfig) -> ModelConfig | None:
    """The decoder's shape by a directory or a preset, which must agree; None without either.

    Raises:
        ValueError: the directory cannot be used, or is not of the preset.
    """
    dtype = config.model["dtype"]
    preset = presets.PRESETS.get(config.preset)
    if config.hf_dir is None:
        return preset and dataclasses.replace(preset, dtype=dtype)
    try:
        model = models.load_config(config.hf_dir, dtype)
    except ValueError as error:
        raise ValueError(f"model.hf_dir: {error}") from error
    for field in presets.SIZES if preset else ():
        value, expected = getattr(model, field), getattr(preset, field)
        if value != expected:
            raise ValueError(
                f"{_source(config)}: the config.json there has {field}={value}, "
                f"model.preset={config.preset!r} {expected}; an empty model.preset takes any"
            )
    return model


def _source(config: ExperimentConfig) -> str:
    """The field that says the decoder's shape."""
    if config.hf_dir is None:
        return f"model.preset={config.preset!r}"
    return f"model.hf_dir={config.hf_dir!r}"
