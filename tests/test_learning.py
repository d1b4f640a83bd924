"""Groups to batches, batches to updates, and the warm-up before them."""

import dataclasses
import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_cases import LLAMA, full_logp, params_of
from policy_cases import QUICKLY_COMPILED
from step_cases import STEP, assert_close, copied_params, example_batch, quickly_compiled

from asympo_jax import learning, objectives
from asympo_jax.learning import OptimizerConfig, WarmupConfig, make_batch
from asympo_jax.models import logits
from asympo_jax.tasks.base import Task
from asympo_jax.tokenizers import CharTokenizer
from asympo_jax.types import Group, Prompt

# ------------------------------------------------------------------------------------- batches


@st.composite
def groups(draw, group_size: int = 3, max_response: int = 4) -> list[Group]:
    """Groups with prompts of 1 to 3 tokens; every token and log-prob of a batch is another."""
    found = []
    for ticket in range(draw(st.integers(1, 3))):
        length_G = np.array([draw(st.integers(1, max_response)) for _ in range(group_size)])
        drawn_GT = np.arange(max_response)[None] < length_G[:, None]
        number_GT = 100 * (ticket + 1) + np.arange(group_size * max_response).reshape(
            group_size, -1
        )
        found.append(
            Group(
                ticket=ticket,
                version=0,
                prompt_S=np.arange(draw(st.integers(1, 3)), dtype=np.int32) + 10 * (ticket + 1),
                response_GT=np.where(drawn_GT, number_GT, 0).astype(np.int32),
                length_G=length_G.astype(np.int32),
                stop_G=np.zeros(group_size, np.int8),
                reward_G=np.arange(group_size, dtype=np.float32) + ticket,
                behaviour_logp_GT=np.where(drawn_GT, -number_GT, 0).astype(np.float32),
            )
        )
    return found


@hypothesis.settings(max_examples=30)
@hypothesis.given(groups=groups(), extra=st.integers(0, 2))
def test_a_batch_holds_every_prompt_and_response_at_its_place(groups, extra):
    batch = make_batch(groups, group_size=3, num_positions=7 + extra)
    assert batch.tokens_BT.shape == batch.drawn_BT.shape == (3 * len(groups), 7 + extra)
    assert batch.tokens_BT.dtype == np.int32 and batch.drawn_BT.dtype == bool
    for row, (tokens_T, drawn_T) in enumerate(zip(batch.tokens_BT, batch.drawn_BT, strict=True)):
        group, member = groups[row // 3], row % 3
        start, length = len(group.prompt_S), group.length_G[member]
        assert tokens_T[:start].tolist() == group.prompt_S.tolist()
        assert np.flatnonzero(drawn_T).tolist() == list(range(start, start + length))
        assert tokens_T[drawn_T].tolist() == group.response_GT[member, :length].tolist()
        assert (tokens_T[start + length :] == 0).all()
        logp_T = batch.behaviour_logp_BT[row]
        assert logp_T[drawn_T].tolist() == (-tokens_T[drawn_T]).tolist()
        assert (logp_T[~drawn_T] == 0).all()
    assert batch.reward_PG.tolist() == [group.reward_G.tolist() for group in groups]
    assert batch.reward_PG.dtype == np.float32


EXAMPLE = Group(
    ticket=0,
    version=0,
    prompt_S=np.array([2], np.int32),
    response_GT=np.array([[3], [4]], np.int32),
    length_G=np.array([1, 1], np.int32),
    stop_G=np.zeros(2, np.int8),
    reward_G=np.zeros(2, np.float32),
)


def test_a_batch_has_behaviour_log_probs_where_all_of_its_groups_have():
    assert make_batch([EXAMPLE, EXAMPLE], 2, 4).behaviour_logp_BT is None
    recorded = dataclasses.replace(EXAMPLE, behaviour_logp_GT=-np.ones((2, 1), np.float32))
    for mixed in ([EXAMPLE, recorded], [recorded, EXAMPLE]):
        with pytest.raises(AssertionError):
            make_batch(mixed, 2, 4)


def test_groups_whose_rewards_differ_come_first_into_a_batch_and_keep_their_order():
    rewards = {0: (1, 1), 1: (0, 1), 2: (0, 0), 3: (1, 0), 4: (0, 1)}
    candidates = [
        Group(
            ticket=ticket,
            version=0,
            prompt_S=np.ones(1, np.int32),
            response_GT=np.ones((2, 1), np.int32),
            length_G=np.ones(2, np.int32),
            stop_G=np.zeros(2, np.int8),
            reward_G=np.array(reward, np.float32),
        )
        for ticket, reward in rewards.items()
    ]

    def chosen(count):
        return [group.ticket for group in learning.informative_groups(candidates, count)]

    assert [chosen(count) for count in (2, 3, 4, 5)] == [
        [1, 3],
        [1, 3, 4],
        [0, 1, 3, 4],
        [0, 1, 2, 3, 4],
    ]


def test_incomplete_groups_and_groups_without_room_are_never_trained_on():
    with pytest.raises(AssertionError):
        make_batch([EXAMPLE], group_size=3, num_positions=4)
    with pytest.raises(AssertionError):
        make_batch([EXAMPLE], group_size=2, num_positions=1)


# ------------------------------------------------------------------------------------ the step


@functools.cache
def one_step(name: str, micro_batch: int = 0) -> tuple[Any, dict[str, np.ndarray], Any]:
    """Parameters after one update of plain SGD at rate 1, metrics and the number of updates."""
    optimizer = optax.sgd(1.0)
    split = dataclasses.replace(STEP, micro_batch=micro_batch)
    step = learning.make_train_step(LLAMA, objectives.make(name), optimizer, split)
    state = learning.state_from_params(copied_params(), optimizer)
    state, metrics = quickly_compiled(step, split)(state, example_batch())
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
        logp_BTV = jax.nn.log_softmax(logits(LLAMA, params, batch.tokens_BT) / STEP.temperature)
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

    gradient_of = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY_COMPILED)
    (value, metrics), gradient = gradient_of(params_of(LLAMA))
    return value, gradient, metrics


@pytest.mark.parametrize("name", ["asympo", "grpo"])
def test_a_step_goes_down_the_gradient_of_the_loss_on_the_full_logits(name):
    after, metrics, update = one_step(name)
    value, gradient, expected_metrics = plain_gradient(name)
    assert_close(after, jax.tree.map(lambda p, g: p - g, params_of(LLAMA), gradient), atol=2e-6)
    np.testing.assert_allclose(metrics["loss"], value, atol=1e-6)
    np.testing.assert_allclose(metrics["grad/norm"], optax.tree.norm(gradient), rtol=1e-4)
    assert metrics["grad/norm"] > 0.01
    for key, expected in expected_metrics.items():
        np.testing.assert_allclose(metrics[key], expected, rtol=1e-4, atol=1e-5, err_msg=key)
    assert update == 1


@pytest.mark.parametrize("micro_batch", [2, 8])
def test_micro_batches_change_neither_parameters_nor_metrics(micro_batch):
    after, metrics, _ = one_step("grpo", micro_batch)
    expected_after, expected_metrics, _ = one_step("grpo")
    assert_close(after, expected_after)
    assert_close(metrics, expected_metrics)


def test_a_step_reports_the_metrics_that_others_rely_on():
    expected = {"loss", "reward/mean", "policy/entropy", "grad/norm", "params/norm"} | set(
        plain_gradient("grpo")[2]
    )
    _, metrics, _ = one_step("grpo")
    assert set(metrics) == expected
    assert all(value.shape == () and np.isfinite(value) for value in metrics.values())
    batch = example_batch()
    np.testing.assert_allclose(metrics["reward/mean"], batch.reward_PG.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        metrics["response/length"], batch.drawn_BT.sum(axis=1).mean(), rtol=1e-6
    )
    logp_BTV = jax.nn.log_softmax(
        logits(LLAMA, params_of(LLAMA), jnp.asarray(batch.tokens_BT)) / 0.8
    )
    entropy_BT = np.asarray(-(jnp.exp(logp_BTV) * logp_BTV).sum(axis=2))
    expected_entropy = entropy_BT[:, :-1][batch.drawn_BT[:, 1:]].mean()
    np.testing.assert_allclose(metrics["policy/entropy"], expected_entropy, rtol=1e-5)


def test_a_missing_need_is_refused_before_any_update():
    optimizer = optax.sgd(1.0)
    step = learning.make_train_step(LLAMA, objectives.make("grpo"), optimizer, STEP)
    batch = dataclasses.replace(example_batch(), behaviour_logp_BT=None)
    with pytest.raises(ValueError, match="'grpo' needs behaviour log-probs"):
        step(learning.state_from_params(copied_params(), optimizer), batch)


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
    state = learning.state_from_params(copied_params(), optimizer)
    assert state.update == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, params_of(LLAMA))
    shapes = jax.eval_shape(
        lambda key: learning.init_state(LLAMA, optimizer, key), jax.random.key(0)
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


# ------------------------------------------------------------------------------- the optimiser


def rates(num_updates: int, **options: Any) -> list[float]:
    """Learning rates in units of the peak: without memory, Adam's step is the rate alone."""
    config = OptimizerConfig(learning_rate=0.5, b1=0.0, b2=0.0, clip_norm=0.0, **options)
    optimizer = learning.make_optimizer(config)
    params = {"x": jnp.ones(1)}
    state = optimizer.init(params)
    found = []
    for _ in range(num_updates):
        updates, state = optimizer.update({"x": jnp.ones(1)}, state, params)
        found.append(-np.asarray(jax.tree.leaves(updates)).item() / 0.5)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"warmup_updates": 1}, [1, 1, 1]),
        ({"warmup_updates": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"decay_updates": 4}, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0]),
        ({"warmup_updates": 1, "decay_updates": 2}, [1, 0.5, 0, 0]),
        ({"warmup_updates": 3, "decay_updates": 6}, [1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447, 0]),
    ],
    ids=str,
)
def test_the_rate_rises_stays_and_falls_as_documented(options, expected):
    np.testing.assert_allclose(rates(len(expected), **options), expected, atol=1e-5)


def first_update(gradient: list[float], **options: Any) -> np.ndarray:
    config = OptimizerConfig(learning_rate=1.0, b1=0.0, b2=0.0, epsilon=1.0, **options)
    optimizer = learning.make_optimizer(config)
    params = [jnp.full(1, 2.0) for _ in gradient]
    gradients = [jnp.full(1, x) for x in gradient]
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return np.concatenate(jax.tree.leaves(updates))


def test_the_clip_is_of_the_norm_over_all_parameters():
    # With ε = 1 the update is −g / (|g| + 1), so the clipped gradient shows.
    unclipped, clipped = np.array([3.0, 4.0]), np.array([0.3, 0.4])
    np.testing.assert_allclose(
        first_update([3.0, 4.0], clip_norm=0.5), -clipped / (clipped + 1), rtol=1e-5
    )
    for clip_norm in (0.0, 6.0):
        found = first_update([3.0, 4.0], clip_norm=clip_norm)
        np.testing.assert_allclose(found, -unclipped / (unclipped + 1), rtol=1e-5)


def test_weight_decay_pulls_parameters_and_not_their_gradient():
    np.testing.assert_allclose(first_update([0.0], weight_decay=0.1), [-0.2], rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "optimizer.learning_rate=0.0: must be positive"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate=nan: must be positive"),
        ({"b1": 1.0}, "optimizer.b1=1.0: must be in [0, 1)"),
        ({"b2": -0.1}, "optimizer.b2=-0.1: must be in [0, 1)"),
        ({"warmup_updates": -1}, "optimizer.warmup_updates=-1: must not be negative"),
        ({"decay_updates": -1}, "optimizer.decay_updates=-1: must not be negative"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay=-1.0: must not be negative"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm=-1.0: must not be negative"),
        (
            {"decay_updates": 5, "warmup_updates": 5},
            "optimizer.decay_updates=5: must be 0 or more than optimizer.warmup_updates=5",
        ),
    ],
)
def test_optimisers_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError) as error:
        OptimizerConfig(**{"learning_rate": 1e-3, **wrong})
    assert message in str(error.value)


# ---------------------------------------------------------------------------------- the warm-up

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
