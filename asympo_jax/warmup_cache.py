"""The warm-up of a run, kept under a hash of everything that it depends on and made if missing."""

import hashlib
import json
import pathlib
import platform
import sys
import time
from importlib import metadata
from typing import Any

import jax

from asympo_jax import learning
from asympo_jax.experiment import Parts
from asympo_jax.models import init_params
from asympo_jax.runtime import placement
from asympo_jax.runtime.snapshots import SnapshotRefused, read_params, write_params
from asympo_jax.settings import ExperimentConfig
from asympo_jax.tasks import Task

_PACKAGE = pathlib.Path(__file__).parent
# Code that the result depends on, beside the task's own.
_SOURCES = ("types.py", "tokenizers.py", "models", "learning", "tasks/base.py")


def warmed_up_params(config: ExperimentConfig, parts: Parts, directory: pathlib.Path) -> Any:
    """Parameters after the supervised warm-up, or the initial ones if it has no steps.

    Args:
        config: the experiment.
        parts: its task and model.
        directory: where warm-ups are kept; made if missing.
    """
    if not config.warmup.num_steps:
        return init_params(parts.model, jax.random.key(config.seed))
    path = directory / f"{warmup_key(config, parts.task)}.safetensors"
    if path.exists():
        try:
            params, _ = read_params(path)
        except SnapshotRefused as refused:
            _say(f"the kept warm-up is made again: {refused}")
        else:
            _say(f"warm-up: {path} is kept from before, nothing that it depends on has changed")
            return params
    params = _warm_up(config, parts)
    directory.mkdir(parents=True, exist_ok=True)
    write_params(path, params)
    return params


def _warm_up(config: ExperimentConfig, parts: Parts) -> Any:
    """Trains on the task's demonstrations."""
    warmup = config.warmup
    optimizer = learning.make_warmup_optimizer(warmup)
    state = learning.init_state(parts.model, optimizer, jax.random.key(config.seed))
    step = learning.make_warmup_step(
        parts.model, optimizer, config.step.micro_batch, config.step.logp_chunk
    )
    num_positions = config.sampler.max_prompt_tokens + config.sampler.max_response_tokens
    start = time.monotonic()
    batches = learning.demonstration_batches(parts.task, warmup, num_positions)
    for number, (tokens_BT, scored_BT) in enumerate(batches, start=1):
        state, loss = step(state, tokens_BT, scored_BT)
        if number % max(1, warmup.num_steps // 8) == 0:
            _say(
                f"warm-up {number:4d}/{warmup.num_steps} · loss {float(loss):.3f} nats per token"
                f" · {time.monotonic() - start:.0f} s"
            )
    return state.params


def _say(line: str) -> None:
    """One line for the person who waits."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def warmup_key(config: ExperimentConfig, task: Task) -> str:
    """A hash of everything that the warmed-up parameters depend on."""
    digest = hashlib.sha256()
    source = config.source
    settings = {name: source[name] for name in ("seed", "model", "task", "warmup")}
    lengths = [source["sampler"][f"max_{part}_tokens"] for part in ("prompt", "response")]
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    machine = [platform.machine(), config.learner.platform, len(placement.available_cores())]
    chunk = config.step.logp_chunk
    digest.update(
        json.dumps([settings, lengths, versions, machine, chunk], sort_keys=True).encode()
    )
    task_file = sys.modules[type(task).__module__].__file__
    files = [pathlib.Path(task_file)] if task_file else []
    for name in _SOURCES:
        path = _PACKAGE / name
        files += sorted(path.glob("*.py")) if path.is_dir() else [path]
    for file in files:
        digest.update(file.read_bytes())
    digest.update(str(task.tokenizer.vocab_size).encode())
    return digest.hexdigest()[:16]
