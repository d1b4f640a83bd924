"""The supervised warm-up and its demonstrations."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_cases import LLAMA, full_logp, params_of
from step_cases import assert_close, copied_params

from asympo_jax import learning
from asympo_jax.learning import WarmupConfig
from asympo_jax.tasks.base import Task
from asympo_jax.tokenizers import CharTokenizer
from asympo_jax.types import Prompt

WARMUP = WarmupConfig(num_steps=3, batch_size=4, learning_rate=1e-2)


class Spelling(Task):
    """`ab` is answered by `c`, `abb` by `cd`, `abbb` by `cdd`, and so on."""

    tokenizer = CharTokenizer("abcde")
    num_train = 4
    num_eval = 1

    def train_prompt(self, index: int) -> Prompt:
        raise AssertionError("a warm-up needs demonstrations only")

    eval_prompt = train_prompt

    def reward(self, prompt: Prompt, text: str) -> float:
        raise AssertionError("a warm-up needs no rewards")

    def demonstration(self, index: int) -> tuple[str, str]:
        return "ab" + "b" * (index % 4), "c" + "d" * (index % 4)


def demonstrations(num_positions: int) -> list[tuple[np.ndarray, np.ndarray]]:
    batches = learning.demonstration_batches(Spelling(), WARMUP, num_positions)
    return [(np.asarray(tokens), np.asarray(scored)) for tokens, scored in batches]


def test_demonstrations_are_scored_on_the_response_and_its_stop_token_alone():
    batches = demonstrations(10)
    assert len(batches) == 3
    for tokens_BT, scored_BT in batches:
        assert tokens_BT.shape == (4, 10)
        for row in range(4):
            prompt, response = [2, 3] + [3] * row, [4] + [5] * row + [1]
            end = len(prompt) + len(response)
            assert tokens_BT[row].tolist() == prompt + response + [0] * (10 - end)
            assert np.flatnonzero(scored_BT[row]).tolist() == list(range(len(prompt), end))


def test_demonstrations_are_numbered_through_all_batches():
    task = Spelling()
    numbers = []
    task.demonstration = lambda index: (numbers.append(index), ("a", "b"))[1]
    list(learning.demonstration_batches(task, WARMUP, 4))
    assert numbers == list(range(12))


def test_demonstrations_too_long_are_cut():
    (tokens_BT, scored_BT), *_ = demonstrations(5)
    assert tokens_BT[3].tolist() == [2, 3, 3, 3, 3] and not scored_BT[3].any()
    assert tokens_BT[1].tolist() == [2, 3, 3, 4, 5] and scored_BT[1].tolist() == [0, 0, 0, 1, 1]


def test_demonstrations_are_the_same_at_every_start():
    jax.tree.map(np.testing.assert_array_equal, demonstrations(10), demonstrations(10))


@functools.cache
def warmup_step(micro_batch: int = 0) -> Any:
    return learning.make_warmup_step(LLAMA, optax.sgd(0.1), micro_batch, logp_chunk=7)


def warmed_up(
    tokens_BT, scored_BT, num_steps: int, micro_batch: int = 0
) -> tuple[Any, list[float]]:
    """Parameters and the losses on the way."""
    state = learning.state_from_params(copied_params(), optax.sgd(0.1))
    losses = []
    for _ in range(num_steps):
        state, loss = warmup_step(micro_batch)(
            state, jnp.asarray(tokens_BT), jnp.asarray(scored_BT)
        )
        losses.append(float(loss))
    return state.params, losses


def test_the_warm_up_lowers_the_cross_entropy_of_the_scored_tokens():
    tokens_BT, scored_BT = demonstrations(10)[0]
    _, losses = warmed_up(tokens_BT, scored_BT, 6)
    logp_BT = np.asarray(full_logp(LLAMA, params_of(LLAMA), tokens_BT, 1.0))
    np.testing.assert_allclose(losses[0], -logp_BT[scored_BT].mean(), rtol=1e-5)
    assert losses[5] < 0.8 * losses[0]


def test_micro_batches_do_not_change_the_warm_up():
    tokens_BT, scored_BT = demonstrations(10)[0]
    after, losses = warmed_up(tokens_BT, scored_BT, 1)
    split_after, split_losses = warmed_up(tokens_BT, scored_BT, 1, micro_batch=1)
    assert_close(split_after, after)
    assert_close(split_losses, losses)


def test_demonstrations_cut_to_their_prompts_teach_nothing():
    tokens_BT, scored_BT = demonstrations(10)[0]
    after, losses = warmed_up(tokens_BT, np.zeros_like(scored_BT), 1)
    assert losses == [0.0]
    jax.tree.map(np.testing.assert_array_equal, after, params_of(LLAMA))


def test_a_task_without_demonstrations_is_refused_with_what_to_set():
    task = Spelling()
    task.demonstration = lambda index: Task.demonstration(task, index)
    with pytest.raises(ValueError, match=r"warmup.num_steps must be 0: task Spelling has no"):
        next(learning.demonstration_batches(task, WARMUP, 10))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_steps": -1}, "warmup.num_steps=-1: must not be negative"),
        ({"batch_size": 0}, "warmup.batch_size=0: must be at least 1"),
        ({"learning_rate": 0.0}, "warmup.learning_rate=0.0: must be positive"),
    ],
)
def test_warm_ups_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(WARMUP, **wrong)
    assert message in str(error.value)


def test_the_rate_of_the_warm_up_rises_over_a_twentieth_and_falls_to_a_tenth():
    config = WarmupConfig(num_steps=40, batch_size=1, learning_rate=0.5)
    optimizer = learning.make_warmup_optimizer(config)
    params = jnp.ones(1)
    state = optimizer.init(params)
    found = []
    update = jax.jit(optimizer.update)
    for _ in range(41):
        # Adam's step on a constant gradient is the rate.
        updates, state = update(jnp.ones(1), state, params)
        found.append(-float(updates[0]) / 0.5)
    assert np.argmax(found) == 2
    np.testing.assert_allclose(found[2], 1.0, atol=1e-3)
    np.testing.assert_allclose(found[40], 0.1, atol=1e-3)
    assert (np.diff(found[2:]) < 0).all()
