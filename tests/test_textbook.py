"""The one loss has the gradients of the surrogates that the papers write, in float64."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import textbook
from policy_cases import (
    Case,
    case_of_ratios,
    compiled_together,
    gradient_of,
    make_case,
    value_metrics_gradient,
)

from asympo_jax import objectives
from asympo_jax.objectives import PolicyBatch, batch_totals, weights

CASE = make_case()
SEEDS = (0, 1, 2)
OTHER_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("spo", {"alpha": 0.6}),
    ("asympo", {"floor": 0.7}),
    ("asymre", {"delta": 0.3}),
    ("w_reinforce", {"positive_scale": 2.5}),
    ("grpo", {"clip_low": 0.1, "clip_high": 0.5}),
    ("grpo", {"dual_clip": 2.0}),
    ("dr_grpo", {"clip_high": 0.4, "constant": 7.0}),
    ("dapo", {"clip_low": 0.3, "dual_clip": 2.0}),
    ("gspo", {"clip_low": 0.4, "clip_high": 0.7}),
    ("cispo", {"clip_high": 0.3}),
    ("tis", {"cap": 0.8}),
    ("aspo", {"clip_low": 0.5, "clip_high": 0.7, "cap": 1.3}),
    ("m2po", {"limit": 0.7}),
    ("decoupled_ppo", {"clip_low": 0.1, "clip_high": 0.4, "cap": 1.5}),
]
WITH_REFERENCE: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {"kl_coefficient": 0.3}),
    ("dapo", {"kl_coefficient": 0.3}),
    ("dr_grpo", {"kl_coefficient": 0.3, "constant": 7.0}),
]
VARIANTS = [*((name, {}) for name in objectives.names()), *OTHER_OPTIONS]


def edge_case() -> Case:
    """Ratios just inside and just outside every default bound, for A > 0, A < 0 and A = 0."""
    inside, outside = (scale * np.array([0.8, 1.2, 1.28, 2.0, 3.0]) for scale in (0.99, 1.01))
    ratio_BT = np.full((12, 8), np.nan)
    ratio_BT[0:3, :5], ratio_BT[3:6, :5] = inside, outside
    ratio_BT[6:9, 2:7] = [0.34, 4.9, 9.9, 0.7, 0.99]
    ratio_BT[9:12, 3:8] = [0.33, 5.1, 10.1, 1.0, 1.01]
    # No two alike: of equals, one form may drop one and the other all.
    ratio_BT *= np.random.default_rng(0).uniform(0.999, 1.001, ratio_BT.shape)
    case = case_of_ratios(ratio_BT, [1.0, -1.0, 0.0] * 4, dtype=np.float64)
    return dataclasses.replace(case, group_size=3)


def packages_gradient(name: str, case: Case, **options: Any) -> np.ndarray:
    """Gradient of `policy_loss`."""
    return np.asarray(_gradients()(*case.arrays.values())[f"{name} {options}"])


@functools.cache
def _gradients() -> Any:
    return compiled_together(gradient_of, [*VARIANTS, *WITH_REFERENCE], 3)


def assert_same(found_BT: np.ndarray, expected_BT: np.ndarray):
    assert found_BT.dtype == expected_BT.dtype == np.float64
    np.testing.assert_allclose(found_BT, expected_BT, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("seed", [*SEEDS, "edges"])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_the_gradient_is_that_of_the_papers_surrogate(name, options, seed):
    with jax.enable_x64(True):
        case = edge_case() if seed == "edges" else make_case(seed, np.float64)
        objective = functools.partial(textbook.OBJECTIVES[name], **options)
        expected_BT = textbook.gradient(objective, case)
        gradient_BT = packages_gradient(name, case, **options)
    assert (gradient_BT[case.mask_BT] != 0).sum() >= 3
    assert_same(gradient_BT, expected_BT)


def test_the_cases_of_these_tests_are_hard():
    for seed in SEEDS:
        case = make_case(seed, np.float64)
        behind = np.exp(case.proximal_logp_BT - case.behaviour_logp_BT)[case.mask_BT]
        ratio_BT = np.exp(case.logp_BT - case.behaviour_logp_BT)
        for sign in (-1, 1):
            ratio = ratio_BT[case.mask_BT & (np.sign(case.advantage_B) == sign)[:, None]]
            assert ratio.min() < 1 / 3 and ratio.max() > (3 if sign > 0 else 10)
            product_B = np.where(case.mask_BT, ratio_BT, 1).prod(axis=1)
            product = product_B[np.sign(case.advantage_B) == sign]
            assert product.min() < 1 < product.max()
        assert behind.min() < 0.5 and behind.max() > 5
        assert len(set(case.mask_BT.sum(axis=1))) > 2
        flat_P = (case.advantage_B.reshape(-1, 3) == 0).all(axis=1)
        assert flat_P.tolist() == [False, True, False, False]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_sequence_form_and_the_token_form_of_gspo_have_one_gradient(seed):
    bounds = {"clip_low": 0.4, "clip_high": 0.7}
    with jax.enable_x64(True):
        case = make_case(seed, np.float64)
        of_sequences_BT = textbook.gradient(functools.partial(textbook.gspo, **bounds), case)
        of_tokens_BT = textbook.gradient(functools.partial(textbook.gspo_token, **bounds), case)
        gradient_BT = packages_gradient("gspo", case, **bounds)
    assert_same(of_tokens_BT, of_sequences_BT)
    assert_same(gradient_BT, of_tokens_BT)


@pytest.mark.parametrize(("name", "sign", "log_weight"), [("gspo", 1, -3.75), ("topr", -1, -15)])
def test_the_ratio_of_a_response_is_of_its_tokens_as_they_are(name, sign, log_weight):
    logp_BT = np.array([[-41.0, -1.0, -2.0, -2.0]], np.float32)
    behaviour_BT = np.array([[-1.0, -26.0, -2.0, -2.0]], np.float32)
    _, metrics = objectives.policy_loss(
        objectives.make(name),
        jnp.asarray(logp_BT),
        jnp.ones((1, 4), bool),
        jnp.array([float(sign)]),
        group_size=1,
        behaviour_logp_BT=jnp.asarray(behaviour_BT),
    )
    np.testing.assert_allclose(metrics["weight/mean"], np.exp(log_weight), rtol=1e-5)


AGGREGATED: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "grpo": lambda k3, num_tokens: jnp.mean(k3) / 12,
    "dapo": lambda k3, num_tokens: jnp.sum(k3) / num_tokens,
    "dr_grpo": lambda k3, num_tokens: jnp.sum(k3) / 12 / 7,
}


@pytest.mark.parametrize(("name", "options"), WITH_REFERENCE, ids=str)
def test_the_reference_term_is_beta_times_k3_in_the_same_aggregation(name, options):
    def with_reference(found: textbook.Responses) -> Any:
        num_tokens = sum(len(response.stopped) for response in found)
        divergence = sum(AGGREGATED[name](textbook.k3(o), num_tokens) for o in found)
        others = {key: x for key, x in options.items() if key != "kl_coefficient"}
        return textbook.OBJECTIVES[name](found, **others) - 0.3 * divergence

    with jax.enable_x64(True):
        case = make_case(0, np.float64)
        expected_BT = textbook.gradient(with_reference, case)
        gradient_BT = packages_gradient(name, case, **options)
    assert_same(gradient_BT, expected_BT)


@pytest.mark.parametrize(
    ("options", "share_of_token"),
    [
        ({"aggregation": "response_mean"}, lambda length_B1: 1 / length_B1 / 12),
        ({"aggregation": "token_mean"}, lambda length_B1: 1 / length_B1.sum()),
        ({"aggregation": "constant", "constant": 7.0}, lambda length_B1: 1 / 12 / 7),
        ({"aggregation": "constant"}, lambda length_B1: 1 / 12),
    ],
    ids=["response_mean", "token_mean", "constant 7", "constant"],
)
def test_an_objective_takes_another_aggregation(options, share_of_token):
    loss, _, gradient_BT = value_metrics_gradient("reinforce", CASE, **options)
    share_B1 = share_of_token(CASE.mask_BT.sum(axis=1, keepdims=True))
    expected_BT = np.where(CASE.mask_BT, -CASE.advantage_B[:, None] * share_B1, 0.0)
    np.testing.assert_allclose(gradient_BT, expected_BT, rtol=1e-6)
    np.testing.assert_allclose(loss, (expected_BT * CASE.logp_BT).sum(), rtol=1e-5)


ASPO_RATIOS = [0.1, 0.5, 0.7, 0.9, 1.1, 1.5, 5.0]
ASPO_COEFFICIENTS = [[3, 2, 1.43, 1.11, 0.91, 0, 0], [0, 0, 0, 0.9, 1.1, 1.5, 3]]


def test_aspo_weights_ratios_as_its_table_says():
    case = case_of_ratios([ASPO_RATIOS, ASPO_RATIOS], [1, -1])
    _, _, gradient_BT = value_metrics_gradient("aspo", case)
    coefficient_BT = -gradient_BT * gradient_BT.size * case.advantage_B[:, None]
    np.testing.assert_allclose(coefficient_BT, ASPO_COEFFICIENTS, atol=0.005)


# --------------------------------------------------------------------------------------- limits


def test_asympo_has_value_zero_whatever_the_scales_of_its_responses():
    loss, metrics, gradient_BT = value_metrics_gradient("asympo", CASE)
    assert abs(loss) < 1e-7
    assert abs(metrics["balance/net"]) < 1e-7
    assert metrics["balance/positive"] > 0.1
    assert metrics["weight/floor_share"] == 0
    assert np.abs(gradient_BT).max() > 0.01


def test_without_the_stopped_gradient_asympo_would_learn_nothing():
    def unstopped(logp_BT):
        mask_BT, advantage_B = jnp.asarray(CASE.mask_BT), jnp.asarray(CASE.advantage_B)
        totals = batch_totals(mask_BT, advantage_B, 3)
        weight_B1 = weights.asympo(PolicyBatch(logp_BT, mask_BT, advantage_B, totals))
        term_BT = jnp.where(mask_BT, weight_B1 * advantage_B[:, None] * logp_BT, 0.0)
        return -(term_BT.sum(axis=1) / mask_BT.sum(axis=1).astype(jnp.float32)).mean()

    gradient_BT = jax.jit(jax.grad(unstopped))(jnp.asarray(CASE.logp_BT))
    np.testing.assert_allclose(gradient_BT, 0.0, atol=1e-6)


def test_a_response_below_the_floor_is_weighted_by_the_floor_and_counted():
    case = case_of_ratios(np.full((4, 2), np.exp(5.5)), [1, -1, 1, -1])
    case.logp_BT[1] = -1e-5
    loss, metrics, gradient_BT = value_metrics_gradient("asympo", case, floor=1e-3)
    # Three responses give A / 4, the one at the floor A / 4 · ℓ̄ / floor.
    np.testing.assert_allclose(loss, (1 + 1 - 1 - 1e-5 / 1e-3) / 4, rtol=1e-5)
    np.testing.assert_allclose(gradient_BT[1], 1 / 1e-3 / 2 / 4, rtol=1e-5)
    assert metrics["weight/floor_share"] == 0.25
    np.testing.assert_allclose(metrics["weight/max"], 1000, rtol=1e-5)


def test_spo_lies_between_reinforce_and_positives_only():
    _, _, reinforce_BT = value_metrics_gradient("reinforce", CASE)
    _, _, one_BT = value_metrics_gradient("spo", CASE, alpha=1.0)
    _, _, none_BT = value_metrics_gradient("spo", CASE, alpha=0.0)
    np.testing.assert_array_equal(one_BT, reinforce_BT)
    positive_B1 = CASE.advantage_B[:, None] > 0
    np.testing.assert_array_equal(none_BT, np.where(positive_B1, reinforce_BT, 0.0))


def test_gpg_makes_up_for_groups_without_signal():
    _, metrics, _ = value_metrics_gradient("gpg", CASE)
    np.testing.assert_allclose(metrics["weight/mean"], 12 / 9, rtol=1e-6)
    flat = dataclasses.replace(CASE, advantage_B=np.zeros(12, np.float32))
    loss, _, gradient_BT = value_metrics_gradient("gpg", flat)
    assert loss == 0 and (gradient_BT == 0).all()


def test_asymre_reinforces_groups_without_signal_by_its_baseline():
    flat = dataclasses.replace(CASE, advantage_B=np.zeros(12, np.float32))
    _, metrics, gradient_BT = value_metrics_gradient("asymre", flat)
    np.testing.assert_allclose(gradient_BT[flat.mask_BT], -0.1 / flat.mask_BT.sum(), rtol=1e-6)
    assert metrics["group/degenerate_share"] == 1


@pytest.mark.parametrize(
    "name", ["grpo", "dapo", "gspo", "cispo", "tis", "topr", "aspo", "m2po", "decoupled_ppo"]
)
def test_with_all_ratios_one_an_objective_is_reinforce_in_its_aggregation(name):
    aggregation = objectives.make(name).aggregation
    unmoved = dataclasses.replace(
        CASE, behaviour_logp_BT=CASE.logp_BT, proximal_logp_BT=CASE.logp_BT
    )
    _, _, expected_BT = value_metrics_gradient("reinforce", CASE, aggregation=aggregation)
    _, metrics, gradient_BT = value_metrics_gradient(name, unmoved)
    np.testing.assert_array_equal(gradient_BT, expected_BT)
    assert {metrics[f"clip/{bound}"].item() for bound in ("high", "low", "cap")} == {0}
