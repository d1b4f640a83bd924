"""The warm-up of a run, kept under a hash of everything that it depends on and made if missing."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import jax
import numpy as np

from asympo_jax import learning
from asympo_jax.experiment import Parts
from asympo_jax.models import ModelConfig
from asympo_jax.progress import say
from asympo_jax.runtime import placement
from asympo_jax.runtime.snapshots import SnapshotRefused, read_params, write_params
from asympo_jax.settings import ExperimentConfig

_PACKAGE = pathlib.Path(__file__).parent
# Code that the result depends on.
_SOURCES = ("models", "learning", "objectives/masked.py")


def warmed_up_params(
    config: ExperimentConfig, parts: Parts, directory: pathlib.Path, check: Callable[[], None]
) -> Any:
    """Parameters after the supervised warm-up.

    Args:
        config: the experiment.
        parts: its task and model.
        directory: where warm-ups are kept; made if missing.
        check: called before each step; raises to end a run that cannot go on.
    """
    path = directory / f"{warmup_key(config, parts)}.safetensors"
    if path.exists():
        try:
            params, _ = read_params(path)
        except SnapshotRefused as refused:
            say(f"the kept warm-up is made again: {refused}")
        else:
            say(f"warm-up: {path} is kept from before, nothing that it depends on has changed")
            return params
    params = _warm_up(config, parts, check)
    directory.mkdir(parents=True, exist_ok=True)
    write_params(path, params)
    return params


def kept_params(directory: pathlib.Path) -> Iterator[Any]:
    """The parameters of every warm-up that is kept in `directory` and can be read."""
    for path in sorted(directory.glob("*.safetensors")):
        with contextlib.suppress(SnapshotRefused):
            yield read_params(path)[0]


def _warm_up(config: ExperimentConfig, parts: Parts, check: Callable[[], None]) -> Any:
    """Trains on the task's demonstrations."""
    warmup, model = config.warmup, _model(config, parts)
    optimizer = learning.make_warmup_optimizer(warmup)
    state = learning.init_state(model, optimizer, jax.random.key(config.init_seed))
    step = learning.make_warmup_step(
        model, optimizer, config.step.micro_batch, config.step.logp_chunk
    )
    start = time.monotonic()
    say(f"warm-up: {warmup.num_steps} steps on written-out answers; compiling the first")
    for number, (tokens_BT, scored_BT) in enumerate(_demonstrations(config, parts), start=1):
        check()
        state, loss = step(state, tokens_BT, scored_BT)
        if number == 1 or number % max(1, warmup.num_steps // 8) == 0:
            say(
                f"warm-up {number:4d}/{warmup.num_steps} · loss {float(loss):.3f} nats per token"
                f" · {time.monotonic() - start:.0f} s"
            )
    return state.params


def warmup_key(config: ExperimentConfig, parts: Parts) -> str:
    """A hash of everything that the warmed-up parameters depend on.

    Of the task, the demonstrations themselves count, as token ids: its code, its options, its data
    and its tokenizer matter only through them.
    """
    digest = hashlib.sha256()
    settings = [
        config.init_seed,
        dataclasses.asdict(_model(config, parts)),
        dataclasses.asdict(config.warmup),
        num_positions(config),
        config.step.micro_batch,
        config.step.logp_chunk,
    ]
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    machine = [platform.machine(), jax.default_backend(), len(placement.available_cores())]
    digest.update(json.dumps([settings, versions, machine], sort_keys=True).encode())
    for name in _SOURCES:
        path = _PACKAGE / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    for tokens_BT, scored_BT in _demonstrations(config, parts):
        digest.update(tokens_BT.tobytes() + scored_BT.tobytes())
    return digest.hexdigest()[:16]


def _model(config: ExperimentConfig, parts: Parts) -> ModelConfig:
    """The decoder as the learner computes its gradient."""
    return dataclasses.replace(parts.model, remat=config.learner.remat)


def num_positions(config: ExperimentConfig) -> int:
    """Room for the longest prompt and the longest response."""
    return config.sampler.max_prompt_tokens + config.sampler.max_response_tokens


def _demonstrations(
    config: ExperimentConfig, parts: Parts
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of the warm-up."""
    return learning.demonstration_batches(parts.task, config.warmup, num_positions(config))
