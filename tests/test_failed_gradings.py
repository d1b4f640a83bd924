"""A group with a response that could not be graded: told, counted, and never trained on."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_cases import LLAMA
from step_cases import STEP, assert_close, copied_params
from tiny_runs import TINY

from asympo_jax import objectives
from asympo_jax.config import default_config, resolve
from asympo_jax.experiment import build_parts
from asympo_jax.learning import (
    informative_groups,
    make_batch,
    make_train_step,
    state_from_params,
)
from asympo_jax.runtime import wire
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import SamplingTotals
from asympo_jax.runtime.pipeline import PipelineMeter
from asympo_jax.runtime.publisher import Published, Update
from asympo_jax.runtime.reward_pool import RewardPool, RewardSource
from asympo_jax.runtime.rewards import Grader
from asympo_jax.runtime.tickets import Order, Pacing
from asympo_jax.tasks import RewardError
from asympo_jax.types import GradingFailure, Group, Prompt

PROMPT = Prompt(0, "1+1=", "2")
FAILURES = np.array([0, GradingFailure.TIMEOUT, GradingFailure.DEATH, GradingFailure.ERROR])


def group(ticket: int, failure_G=(0, 0, 0, 0), version: int = 0) -> Group:
    """A group of four ragged responses that differs from that of any other ticket."""
    rng = np.random.default_rng(ticket)
    return Group(
        ticket=ticket,
        version=version,
        prompt_S=rng.integers(0, 7, 1 + ticket % 3).astype(np.int32),
        response_GT=rng.integers(0, 7, (4, 5)).astype(np.int32),
        length_G=rng.integers(1, 6, 4).astype(np.int32),
        stop_G=np.zeros(4, np.int8),
        reward_G=rng.normal(size=4).astype(np.float32),
        behaviour_logp_GT=rng.uniform(-3, -1, (4, 5)).astype(np.float32),
        failure_G=np.array(failure_G, np.int8),
    )


@pytest.fixture(scope="module")
def pool():
    made = RewardPool(RewardSource("graders_for_tests:Obeys", {}), 1, deadline_s=1.5)
    made.grade("reward", [(PROMPT, "1")] * 20)  # so that no failure makes most of them
    yield made
    made.close()


def test_a_grader_says_of_each_response_why_it_could_not_be_graded(pool):
    grader = Grader(lambda prompt, text: pytest.fail("graded here"), 20, 4, 0.5, pool)
    texts = ["2", "hang", "die", "raise"]
    reward_G, failure_G = grader.grade(PROMPT, texts, np.array([20, 1, 1, 1]))
    assert reward_G[0] == 1.5 and reward_G.dtype == np.float32
    np.testing.assert_array_equal(failure_G, FAILURES)
    assert failure_G is not None and failure_G.dtype == np.int8


def test_failures_come_through_the_wire_and_end_in_metrics():
    sent = group(0, FAILURES)
    frame = wire.encode({"type": "submit", "groups": [wire.group_fields(sent)]})
    (found,) = wire.groups_from(wire.decode(frame)["groups"])
    np.testing.assert_array_equal(found.failure_G, FAILURES)
    assert not found.is_graded and group(0).is_graded
    assert dataclasses.replace(sent, failure_G=None).is_graded
    totals = SamplingTotals().plus([found, group(1)], 1.0, 0.5).plus([found], 1.0)
    assert (totals.reads, totals.read_s) == (1, 0.5)
    meter = PipelineMeter(num_samplers=1, clock=lambda: 0.0)
    update = Update(1, None, {}, [group(1)], 1, {}, asked=0.0, taken=0.0)
    meter.add(Published(update, {}, totals, 1.0, 0.0, 1.0, 0.0))
    found = {name: x for name, x in meter.metrics().items() if name.startswith("grading/")}
    assert found == {"grading/timeouts": 2.0, "grading/deaths": 2.0, "grading/errors": 2.0}


@pytest.mark.parametrize(
    "failure_G", [np.zeros(3, np.int8), np.zeros(4, np.int32), [0] * 4, np.full(4, 4, np.int8)]
)
def test_failures_of_another_kind_or_number_are_refused_at_the_door(failure_G):
    with pytest.raises(wire.BadFrame, match=r"group\.failure_G"):
        wire.groups_from([{**wire.group_fields(group(0)), "failure_G": failure_G}])


@pytest.mark.parametrize("order", ["ticket", "completion"])
def test_tickets_of_such_groups_have_failed_and_the_ledger_balances(order: Order):
    pacing = Pacing(order, lag=1, num_updates=2, prompts_per_update=4, prompts_per_lease=4)
    broker = Broker(pacing, capacity=4)
    broker.open(0)
    broker.submit(broker.lease(), [group(t, FAILURES * (t == 1)) for t in range(4)], 1.0)
    batch = broker.next_batch(1.0)
    assert [one.is_graded for one in batch] == [True, False, True, True]
    broker.complete(1, {0, 2})
    broker.publish(1)
    metrics = broker.metrics()
    counts = [metrics[f"tickets/{name}"] for name in ("issued", "trained", "filtered", "failed")]
    assert counts == [4, 2, 1, 1]
    broker.submit(
        broker.lease(), [group(t, FAILURES, 0 + (order != "ticket")) for t in range(4, 8)], 1.0
    )
    broker.next_batch(1.0)
    with pytest.raises(AssertionError):
        broker.complete(2, {4})


def test_candidates_that_could_not_be_graded_are_chosen_last():
    flat = dataclasses.replace(group(1), reward_G=np.zeros(4, np.float32))
    candidates = [group(0, FAILURES), flat, group(2), group(3, FAILURES)]
    tickets = [[one.ticket for one in informative_groups(candidates, n)] for n in (1, 2, 3, 4)]
    assert tickets == [[2], [1, 2], [0, 1, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("name", objectives.names())
def test_no_objective_sees_anything_of_them(name):
    """Loss, metrics and gradient are those of the batch without them, whatever the objective."""
    objective = objectives.make(name)
    with_failed = [group(0), group(1, FAILURES), group(2), group(3, (0, 0, 0, 2))]

    def loss_of(groups):
        batch = make_batch(groups, group_size=4, num_positions=8)
        rng = np.random.default_rng(7)
        noise = rng.uniform(-3, -1, (5, 16, 8)).astype(np.float32)
        rows = np.concatenate([np.arange(4) + 4 * one.ticket for one in groups])
        logp_BT, behaviour_BT, proximal_BT, reference_BT, _ = noise[:, rows]
        advantage_PG = objectives.group_advantages(
            jnp.asarray(batch.reward_PG), objective.center, objective.scale
        )

        def loss(logp_BT):
            return objectives.policy_loss(
                objective,
                logp_BT,
                jnp.asarray(batch.drawn_BT),
                advantage_PG.reshape(-1),
                group_size=4,
                behaviour_logp_BT=jnp.asarray(behaviour_BT),
                proximal_logp_BT=jnp.asarray(proximal_BT),
                reference_logp_BT=jnp.asarray(reference_BT),
            )

        (value, metrics), gradient_BT = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logp_BT))
        return value, metrics, gradient_BT

    value, metrics, gradient_BT = loss_of(with_failed)
    expected, expected_metrics, expected_gradient_BT = loss_of([group(0), group(2)])
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
    assert_close(metrics, expected_metrics)
    kept = np.r_[0:4, 8:12]
    np.testing.assert_allclose(gradient_BT[kept], expected_gradient_BT, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(np.delete(gradient_BT, kept, axis=0), 0.0)


def test_an_update_is_that_of_the_batch_without_them_and_so_is_the_mean_reward():
    optimizer = optax.sgd(1.0)
    step = make_train_step(LLAMA, objectives.make("grpo"), optimizer, STEP)

    def updated(groups):
        batch = make_batch(groups, group_size=4, num_positions=8)
        state, metrics = step(state_from_params(copied_params(), optimizer), batch)
        return state.params, metrics

    rewards_PG = make_batch([group(0), group(1, FAILURES)], 4, 8).reward_PG
    assert rewards_PG[0].any() and not rewards_PG[1].any(), "so that its advantages are 0"
    params, metrics = updated([group(0), group(1, FAILURES), group(2)])
    expected_params, expected_metrics = updated([group(0), group(2)])
    assert_close(params, expected_params)
    assert_close(metrics, expected_metrics)
    mean = np.concatenate([group(0).reward_G, group(2).reward_G]).mean()
    np.testing.assert_allclose(metrics["reward/mean"], mean, rtol=1e-5)


def test_an_evaluation_counts_them_as_wrong_and_a_grader_that_always_fails_ends_it():
    config: Any = default_config()
    config.task.name = "graders_for_tests:Obeys"
    config.reward.num_processes = 1
    config.reward.deadline_s = 1.5
    config.eval.num_prompts = 1
    parts = build_parts(resolve(config))
    assert parts.correct is not None
    texts = ["3", "1", "hang", "die", "raise", "4"]
    right = [True, False, False, False, False, True]
    assert parts.correct([(PROMPT, text) for text in texts]) == right
    with pytest.raises(RewardError, match=r"16 raised .*correct for prompt 0.*the grader fell"):
        parts.correct([(PROMPT, "raise")] * 15)
    assert parts.grader.pool is not None
    parts.grader.pool.close()


@pytest.mark.parametrize(("field", "value"), [("deadline_s", 5.0), ("max_failed_share", 1.0)])
def test_what_only_grading_processes_use_is_refused_without_them(field, value):
    config: Any = default_config()
    config.reward[field] = value
    with pytest.raises(ValueError, match=rf"reward\.{field}={value}.*reward\.num_processes=1"):
        build_parts(resolve(config))
    config.reward.num_processes = 1
    assert build_parts(resolve(config)).grader.pool is not None


@pytest.mark.parametrize(
    ("fields", "is_pooled"),
    [
        ({}, False),
        ({"reward.num_processes": 1}, True),
        ({"task.name": "asympo_jax.tasks.arithmetic:Arithmetic"}, False),
        ({"task.name": "tasks_for_tests:Digits"}, True),
        ({"task.name": "tasks_for_tests:Digits", "reward.num_processes": 0}, False),
        ({"reward.function": "tasks_for_tests:share_of_nines"}, True),
        ({"reward.function": "tasks_for_tests:share_of_nines", "reward.num_processes": 0}, False),
    ],
)
def test_what_a_user_wrote_is_graded_in_processes_unless_the_config_says_otherwise(
    fields, is_pooled
):
    """Also where a class derives from a task of the package, whose rewards are cheap and safe."""
    config = default_config()
    config.update_from_flattened_dict(fields)
    parts = build_parts(resolve(config))
    assert (parts.grader.pool is not None, parts.correct is not None) == (is_pooled, is_pooled)


@pytest.mark.parametrize("order", ["ticket", "completion"])
def test_a_run_with_graders_in_processes_trains_on_the_other_groups(runner, tmp_path, order):
    """They are the default of a task that is a user's own."""
    done = runner.train(
        tmp_path, task__name="graders_for_tests:Slow", reward__num_processes=None, order=order
    )
    assert done.result["updates"] == TINY["num_updates"]
    for line in done.metrics[1:]:
        settled = [line[f"tickets/{name}"] for name in ("trained", "filtered", "failed")]
        assert sum(settled) == line["update"] * TINY["prompts_per_update"]
        assert line["grading/deaths"] == line["grading/errors"] == 0
    last = done.metrics[-1]
    assert 0 < last["tickets/failed"] <= last["grading/timeouts"]
    assert last["tickets/filtered"] == 0 < last["tickets/trained"]


def test_a_run_ends_in_a_sentence_once_no_group_of_an_update_could_be_graded(runner, tmp_path):
    done = runner.train(tmp_path, task__name="graders_for_tests:OneInFour", reward__num_processes=1)
    assert done.code == 1
    expected = r"update 0: none of its 4 groups could be graded.*: 12 none, 4 timeout, 0 death"
    assert re.search(expected, done.error)
    assert len(done.metrics) == 1


def test_a_run_that_may_fail_all_of_its_gradings_goes_on_to_its_end(runner, tmp_path):
    fields = {"task__name": "tasks_for_tests:RaisesInPool", "reward__num_processes": 1}
    fields |= {"reward__max_failed_share": 1.0, "runtime__name": "sync", "num_updates": 3}
    done = runner.train(tmp_path, **fields, log__rollouts_every_updates=1)
    assert done.result["updates"] == 3
    last = done.metrics[-1]
    assert last["tickets/failed"] == last["tickets/issued"] == 3 * TINY["prompts_per_update"]
    assert (last["grad/norm"], last["lag/max"]) == (0.0, None)


def test_a_run_whose_grader_always_fails_says_how_and_on_what(runner, tmp_path):
    done = runner.train(
        tmp_path, task__name="tasks_for_tests:RaisesInPool", reward__num_processes=1
    )
    assert done.code == 1
    assert "16 of 16 gradings failed" in done.error and "the grader fell over" in done.error
