"""Updates with all objectives: in micro-batches, with kept parameters, and by sign."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_cases import params_of
from step_cases import (
    ONE_LAYER,
    STEP,
    assert_close,
    copied_params,
    example_batch,
)

from asympo_jax import learning, objectives
from asympo_jax.learning.train_step import make_sign_gradients
from asympo_jax.types import Batch

SGD = optax.sgd(1.0)


def batch_with_equal_rewards() -> Batch:
    """The example's two groups and a third without signal."""
    batch = example_batch()
    rows = {
        name: jnp.concatenate([x, x[:4]]) for name, x in vars(batch).items() if name != "reward_PG"
    }
    return Batch(**rows, reward_PG=jnp.concatenate([batch.reward_PG, jnp.ones((1, 4))]))


BATCH = batch_with_equal_rewards()

# Of every aggregation, scope and need; that the loss of each objective is the sum of its shares is
# tested without a decoder.
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("asympo", "dr_grpo", "decoupled_ppo")},
    "m2po": {"limit": 3.0},  # masks three of the eight that it may
}
OBJECTIVES = {
    **{name: objectives.make(name, **options) for name, options in OPTIONS.items()},
    "m2po with a reference": objectives.make("m2po", limit=3.0, kl_coefficient=0.5),
}


# -------------------------------------------------------------------------------- micro-batches


@functools.cache
def updated(micro_batch: int) -> dict[str, Any]:
    """Parameters after one update under each objective, which compile faster together."""
    config = dataclasses.replace(STEP, micro_batch=micro_batch)
    steps = {
        name: learning.make_train_step(ONE_LAYER, OBJECTIVES[name], SGD, config)
        for name in OBJECTIVES
    }

    def update_all(params: Any, others: Any) -> dict[str, Any]:
        found = {}
        for name, step in steps.items():
            needs = OBJECTIVES[name].needs
            state = learning.state_from_params(params, SGD, needs)
            kept = {need: others for need in needs if need != "behaviour"}
            # At update 1 the proximal parameters are not renewed.
            state = dataclasses.replace(state, update=jnp.int32(1), **kept)
            found[name] = step(state, BATCH)[0].params
        return found

    return jax.jit(update_all)(params_of(ONE_LAYER), params_of(ONE_LAYER, seed=1))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_split_into_micro_batches_does_not_change_an_update(name):
    after = updated(0)[name]
    moves = jax.tree.map(lambda x, y: np.abs(x - y).max(), after, params_of(ONE_LAYER))
    assert max(jax.tree.leaves(moves)) > 1e-2
    assert_close(updated(2)[name], after)


# ---------------------------------------------------------------------------- kept parameters


def new_state(name: str, **options: Any) -> learning.TrainState:
    """A state of its own for an objective."""
    needs = objectives.make(name, **options).needs
    return learning.state_from_params(copied_params(model=ONE_LAYER), SGD, needs)


DECOUPLED: dict[str, Any] = {"name": "decoupled_ppo", "kl_coefficient": 0.1}


@functools.cache
def decoupled_step(every: int) -> Any:
    """The step of `decoupled_ppo`, with a reference, too."""
    config = dataclasses.replace(STEP, proximal_every_updates=every)
    step = learning.make_train_step(ONE_LAYER, objectives.make(**DECOUPLED), SGD, config)
    return step


def copied(tree: Any) -> Any:
    """Arrays that outlive the state that they are copied from."""
    return jax.tree.map(np.array, tree)


@functools.cache
def five_updates(every: int) -> list[tuple[Any, learning.TrainState, dict[str, Any]]]:
    """Of each update the parameters before it, the state after it, and its metrics."""
    state = new_state(**DECOUPLED)
    found = []
    for _ in range(5):
        before = copied(state.params)
        state, metrics = decoupled_step(every)(state, BATCH)
        found.append((before, copied(state), copied(metrics)))
    return found


@pytest.mark.parametrize("every", [1, 3])
def test_the_proximal_parameters_are_renewed_at_every_nth_update_exactly(every):
    updates = five_updates(every)
    for update, (_, after, _) in enumerate(updates):
        expected = updates[update - update % every][0]
        jax.tree.map(np.testing.assert_array_equal, after.proximal, expected)


def test_decoupled_ppo_clips_around_the_renewed_parameters():
    clipped = {
        every: [
            bool(metrics["clip/high"] + metrics["clip/low"] > 0)
            for _, _, metrics in five_updates(every)
        ]
        for every in (1, 3)
    }
    assert clipped[1] == [False] * 5
    assert clipped[3][:4] == [False, True, True, False]


def test_the_reference_stays_the_parameters_of_update_zero():
    updates = five_updates(3)
    for _, after, _ in updates:
        jax.tree.map(np.testing.assert_array_equal, after.reference, updates[0][0])
    divergence = [metrics["reference/kl_k3"] for _, _, metrics in updates]
    assert abs(divergence[0]) < 1e-9
    assert min(divergence[1:]) > 1e-4


def test_parameters_are_kept_for_needs_alone():
    for name, options, kept in [
        ("asympo", {}, (False, False)),
        ("grpo", {}, (False, False)),
        ("decoupled_ppo", {}, (True, False)),
        ("grpo", {"kl_coefficient": 0.1}, (False, True)),
        ("decoupled_ppo", {"kl_coefficient": 0.1}, (True, True)),
    ]:
        state = new_state(name, **options)
        assert (state.proximal is not None, state.reference is not None) == kept


def test_no_two_parts_of_a_state_share_a_buffer_that_is_donated():
    state = first = new_state(**DECOUPLED)
    for _ in range(2):
        leaves = jax.tree.leaves(state)
        assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
        state, _ = decoupled_step(3)(state, BATCH)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


# ----------------------------------------------------------------------------- halves by sign


@functools.cache
def sign_gradients(name: str, **options: Any) -> Any:
    """What `make_sign_gradients` makes, compiled."""
    function = make_sign_gradients(ONE_LAYER, objectives.make(name, **options), STEP)
    return function


def halves(
    batch: Batch, name: str, kept: dict[str, Any] | None = None, **options: Any
) -> tuple[float, float, float]:
    """Norms of the positive and the negative half, and their cosine, at update 0."""
    state = dataclasses.replace(new_state(name, **options), **(kept or {}))
    metrics = sign_gradients(name, **options)(state, batch)
    positive, negative, cosine = (
        float(metrics[f"grad/{key}"]) for key in ("positive", "negative", "cosine")
    )
    return positive, negative, cosine


@pytest.mark.parametrize("name", ["asympo", "m2po"])
def test_the_halves_by_sign_make_up_the_gradient(name):
    positive, negative, cosine = halves(BATCH, name, **OPTIONS[name])
    # One update of SGD at rate 1 goes down by the gradient.
    gradient = jax.tree.map(jnp.subtract, params_of(ONE_LAYER), updated(0)[name])
    assert min(positive, negative) > 0.01 and abs(cosine) < 0.999
    by_cosine = positive**2 + negative**2 + 2 * positive * negative * cosine
    np.testing.assert_allclose(optax.tree.norm(gradient) ** 2, by_cosine, rtol=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_half_is_of_the_responses_of_its_sign(sign):
    centred_PG = BATCH.reward_PG - BATCH.reward_PG.mean(axis=1, keepdims=True)
    of_sign_B1 = sign * centred_PG.reshape(-1, 1) > 0
    alone = dataclasses.replace(BATCH, drawn_BT=BATCH.drawn_BT & of_sign_B1)
    positive, negative, cosine = halves(alone, "asympo")
    expected, other = (positive, negative) if sign > 0 else (negative, positive)
    assert expected > 0.01
    assert other == cosine == 0


def test_without_signal_the_halves_and_their_cosine_are_zero():
    flat = dataclasses.replace(BATCH, reward_PG=jnp.ones_like(BATCH.reward_PG))
    assert halves(flat, "asympo") == (0, 0, 0)


def test_the_reference_term_belongs_to_neither_half():
    others = {"reference": params_of(ONE_LAYER, seed=1)}
    assert halves(BATCH, kept=others, **DECOUPLED) == halves(BATCH, **DECOUPLED)


def test_the_halves_are_of_the_update_that_renews_the_proximal_parameters():
    stale = {"proximal": params_of(ONE_LAYER, seed=1)}
    assert halves(BATCH, kept=stale, **DECOUPLED) == halves(BATCH, **DECOUPLED)
