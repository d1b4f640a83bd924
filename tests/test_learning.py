"""Batches to updates."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_cases import LLAMA, full_logp, params_of
from step_cases import ONE_LAYER, STEP, assert_close, copied_params, example_batch

from asympo_jax import learning, objectives
from asympo_jax.learning import OptimizerConfig
from asympo_jax.models import logits


@functools.cache
def one_step(name: str, micro_batch: int = 0) -> tuple[Any, dict[str, np.ndarray], Any]:
    """Parameters after one update of plain SGD at rate 1, metrics and the number of updates."""
    optimizer = optax.sgd(1.0)
    split = dataclasses.replace(STEP, micro_batch=micro_batch)
    step = learning.make_train_step(ONE_LAYER, objectives.make(name), optimizer, split)
    state = learning.state_from_params(copied_params(model=ONE_LAYER), optimizer)
    state, metrics = step(state, example_batch())
    return (
        jax.tree.map(np.asarray, state.params),
        {key: np.asarray(value) for key, value in metrics.items()},
        state.update,
    )


@functools.cache
def plain_gradient(name: str) -> tuple[Any, Any, dict[str, jax.Array]]:
    """Loss, its gradient and metrics through `policy_loss` on the full logits."""
    batch = jax.tree.map(jnp.asarray, example_batch())

    def loss(params):
        logp_BTV = jax.nn.log_softmax(logits(ONE_LAYER, params, batch.tokens_BT) / STEP.temperature)
        chosen_BT = jnp.take_along_axis(logp_BTV[:, :-1], batch.tokens_BT[:, 1:, None], axis=2)
        advantage_PG = objectives.group_advantages(batch.reward_PG)
        return objectives.policy_loss(
            objectives.make(name),
            jnp.pad(chosen_BT[:, :, 0], ((0, 0), (1, 0))),
            batch.drawn_BT,
            advantage_PG.reshape(-1),
            group_size=4,
            behaviour_logp_BT=batch.behaviour_logp_BT,
        )

    gradient_of = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, metrics), gradient = gradient_of(params_of(ONE_LAYER))
    return value, gradient, metrics


@pytest.mark.parametrize("name", ["asympo", "grpo"])
def test_a_step_goes_down_the_gradient_of_the_loss_on_the_full_logits(name):
    after, metrics, update = one_step(name)
    value, gradient, expected_metrics = plain_gradient(name)
    assert_close(after, jax.tree.map(lambda p, g: p - g, params_of(ONE_LAYER), gradient), atol=2e-6)
    np.testing.assert_allclose(metrics["loss"], value, atol=1e-6)
    np.testing.assert_allclose(metrics["grad/norm"], optax.tree.norm(gradient), rtol=1e-4)
    assert metrics["grad/norm"] > 0.01
    for key, expected in expected_metrics.items():
        np.testing.assert_allclose(metrics[key], expected, rtol=1e-4, atol=1e-5, err_msg=key)
    assert update == 1


def test_micro_batches_change_neither_parameters_nor_metrics():
    after, metrics, _ = one_step("grpo", micro_batch=2)
    expected_after, expected_metrics, _ = one_step("grpo")
    assert_close(after, expected_after)
    assert_close(metrics, expected_metrics)


def test_a_step_reports_the_metrics_that_others_rely_on():
    norms = {"grad/norm", "update/norm", "params/norm"}
    expected = {"loss", "reward/mean", "policy/entropy", "update/skipped"} | norms
    expected |= set(plain_gradient("grpo")[2])
    _, metrics, _ = one_step("grpo")
    assert set(metrics) == expected
    assert all(value.shape == () and np.isfinite(value) for value in metrics.values())
    batch = example_batch()
    np.testing.assert_allclose(metrics["reward/mean"], batch.reward_PG.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        metrics["response/length"], batch.drawn_BT.sum(axis=1).mean(), rtol=1e-6
    )
    logp_BTV = jax.nn.log_softmax(
        logits(ONE_LAYER, params_of(ONE_LAYER), jnp.asarray(batch.tokens_BT)) / 0.8
    )
    entropy_BT = np.asarray(-(jnp.exp(logp_BTV) * logp_BTV).sum(axis=2))
    expected_entropy = entropy_BT[:, :-1][batch.drawn_BT[:, 1:]].mean()
    np.testing.assert_allclose(metrics["policy/entropy"], expected_entropy, rtol=1e-5)


def test_a_missing_need_is_refused_before_any_update():
    optimizer = optax.sgd(1.0)
    step = learning.make_train_step(ONE_LAYER, objectives.make("grpo"), optimizer, STEP)
    batch = dataclasses.replace(example_batch(), behaviour_logp_BT=None)
    with pytest.raises(ValueError, match="'grpo' needs behaviour log-probs"):
        step(learning.state_from_params(copied_params(model=ONE_LAYER), optimizer), batch)


def test_learning_makes_rewarded_responses_likelier_and_takes_over_the_state():
    optimizer = learning.make_optimizer(OptimizerConfig(learning_rate=3e-3))
    step = learning.make_train_step(LLAMA, objectives.make("asympo"), optimizer, STEP)
    batch = dataclasses.replace(example_batch(), behaviour_logp_BT=None)
    state = first = learning.state_from_params(copied_params(), optimizer)

    def response_logp(params):
        logp_BT = np.asarray(full_logp(LLAMA, params, batch.tokens_BT, STEP.temperature))
        return np.where(batch.drawn_BT, logp_BT, 0).sum(axis=1)

    before_B = response_logp(state.params)
    for _ in range(5):
        state, _ = step(state, batch)
    gain_B = response_logp(state.params) - before_B
    first_row_P = np.array([0, 4])
    best = first_row_P + batch.reward_PG.argmax(axis=1)
    worst = first_row_P + batch.reward_PG.argmin(axis=1)
    assert (gain_B[best] > 0.01).all()
    assert (gain_B[worst] < -0.01).all()
    assert state.update == 5
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))


def test_a_new_state_starts_at_update_zero_with_the_given_parameters():
    optimizer = learning.make_optimizer(OptimizerConfig(learning_rate=1e-3))
    state = learning.state_from_params(copied_params(model=ONE_LAYER), optimizer)
    assert state.update == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, params_of(ONE_LAYER))
    shapes = jax.eval_shape(
        lambda key: learning.init_state(ONE_LAYER, optimizer, key), jax.random.key(0)
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
