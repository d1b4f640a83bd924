"""Supervised warm-up: next-token prediction on a task's written-out answers.

The cross-entropy is over the response and its stop token alone, mean over those tokens.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from asympo_jax.learning.micro_batches import split, summed_gradient
from asympo_jax.learning.train_state import TrainState
from asympo_jax.models import ModelConfig, head_matrix, hidden_states, token_logp
from asympo_jax.objectives.masked import masked
from asympo_jax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class WarmupConfig:
    """The supervised warm-up.

    Attributes:
        num_steps: optimiser steps; 0 leaves the initial parameters as they are.
        batch_size: demonstrations a step.
        learning_rate: peak of Adam's, after a linear rise over a twentieth of the steps; it falls
            along a cosine to a tenth.
    """

    num_steps: int
    batch_size: int
    learning_rate: float

    def __post_init__(self):
        """Refuses values outside their range.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        if self.num_steps < 0:
            raise ValueError(f"warmup.num_steps={self.num_steps}: must not be negative")
        if self.batch_size < 1:
            raise ValueError(f"warmup.batch_size={self.batch_size}: must be at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"warmup.learning_rate={self.learning_rate}: must be positive")


def make_warmup_optimizer(config: WarmupConfig) -> optax.GradientTransformation:
    """Adam with a clip of 1 and the schedule that `WarmupConfig` describes."""
    rise = max(1, config.num_steps // 20)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, rise, max(rise + 1, config.num_steps), config.learning_rate / 10
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))


def make_warmup_step(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    micro_batch: int,
    logp_chunk: int,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Float[Array, ""]]]:
    """The jitted step `(state, tokens_BT, scored_BT) -> (state, loss)`; the state is donated."""

    def step(state: TrainState, tokens_BT: Array, scored_BT: Array):
        num_scored = jnp.maximum(scored_BT.sum(), 1).astype(jnp.float32)

        def loss_share(params: Any, rows: tuple[Array, Array]) -> tuple[Array, None]:
            tokens_MT, scored_MT = rows
            hidden_MTD, _ = hidden_states(model, params, tokens_MT)
            head_VD = head_matrix(model, params)
            logp_MT, _ = token_logp(hidden_MTD, head_VD, tokens_MT, 1.0, logp_chunk)
            return masked(-logp_MT, scored_MT).sum() / num_scored, None

        gradient, loss, _ = summed_gradient(
            loss_share, state.params, split((tokens_BT, scored_BT), micro_batch)
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.update + 1), loss

    return jax.jit(step, donate_argnums=0)


def demonstration_batches(
    task: Task, config: WarmupConfig, num_positions: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches `(tokens_BT, scored_BT)` of demonstrations 0, 1, 2, …; cut at `num_positions`."""
    for step in range(config.num_steps):
        tokens_BT = np.zeros((config.batch_size, num_positions), np.int32)
        scored_BT = np.zeros((config.batch_size, num_positions), bool)
        for row in range(config.batch_size):
            prompt, response = task.demonstration(step * config.batch_size + row)
            prompt_ids = task.tokenizer.encode_prompt(prompt)
            ids = [*prompt_ids, *task.tokenizer.encode(response), task.tokenizer.stop_ids[0]]
            ids = ids[:num_positions]
            tokens_BT[row, : len(ids)] = ids
            scored_BT[row, len(prompt_ids) : len(ids)] = True
        yield tokens_BT, scored_BT
