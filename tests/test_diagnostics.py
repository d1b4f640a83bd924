"""What is logged of a batch, against the formulas written out in NumPy."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policy_cases import (
    case_of_ratios,
    compiled_together,
    loss_of,
    make_case,
    value_metrics_gradient,
)

from asympo_jax import objectives
from asympo_jax.objectives import PolicyBatch, batch_totals, diagnostics

CASE = make_case()
MASK = CASE.mask_BT
RATIO_METRICS = {f"ratio/{x}" for x in ("mean", "max", "ess", "kl_k1", "kl_k3", "chi2", "m2")}
METRICS = {
    "nll/positive",
    "nll/negative",
    "nll/ratio",
    "balance/positive",
    "balance/negative",
    "balance/net",
    "weight/mean",
    "weight/max",
    "weight/ess",
    "group/degenerate_share",
    "response/length",
}
CLIP_METRICS = {"clip/high", "clip/low", "clip/cap"}


@pytest.fixture(scope="module")
def metrics() -> dict[str, np.ndarray]:
    return value_metrics_gradient("grpo", CASE)[1]


def response_means(x_BT: np.ndarray) -> np.ndarray:
    return np.array([x_T[mask_T].mean() for x_T, mask_T in zip(x_BT, MASK, strict=True)])


def effective_share(x: np.ndarray) -> float:
    return x.sum() ** 2 / (len(x) * (x**2).sum())


def weight_of_grpo() -> np.ndarray:
    ratio_BT = np.exp(CASE.logp_BT - CASE.behaviour_logp_BT)
    advantage_B1 = CASE.advantage_B[:, None]
    clipped_BT = ((advantage_B1 > 0) & (ratio_BT > 1.2)) | ((advantage_B1 < 0) & (ratio_BT < 0.8))
    return np.where(clipped_BT, 0.0, ratio_BT)


def test_every_objective_logs_the_same_metrics_and_its_own():
    always = METRICS | RATIO_METRICS | {"reference/kl_k3"}
    for name in objectives.names():
        own = CLIP_METRICS if objectives.make(name).needs else set()
        own |= {"weight/floor_share"} if name == "asympo" else set()
        _, found, _ = value_metrics_gradient(name, CASE)
        assert set(found) == always | own
        assert all(value.shape == () for value in found.values())


def test_ratios_are_logged_only_where_behaviour_log_probs_are_recorded():
    mask_BT, advantage_B = jnp.asarray(MASK), jnp.asarray(CASE.advantage_B)
    totals = batch_totals(mask_BT, advantage_B, 3)
    batch = PolicyBatch(jnp.asarray(CASE.logp_BT), mask_BT, advantage_B, totals)
    assert set(diagnostics(batch, jnp.ones(MASK.shape))) == METRICS


def test_the_scale_imbalance_compares_negative_with_positive_responses(metrics):
    nll_B = response_means(-CASE.logp_BT)
    positive, negative = nll_B[CASE.advantage_B > 0], nll_B[CASE.advantage_B < 0]
    np.testing.assert_allclose(metrics["nll/positive"], positive.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["nll/negative"], negative.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["nll/ratio"], negative.mean() / positive.mean(), rtol=1e-5)


def test_the_balance_is_the_loss_in_two_halves(metrics):
    value_B = CASE.advantage_B * response_means(-CASE.logp_BT * weight_of_grpo())
    positive = value_B[CASE.advantage_B > 0].sum() / 12
    negative = value_B[CASE.advantage_B < 0].sum() / 12
    np.testing.assert_allclose(metrics["balance/positive"], positive, rtol=1e-5)
    np.testing.assert_allclose(metrics["balance/negative"], negative, rtol=1e-5)
    np.testing.assert_allclose(metrics["balance/net"], positive + negative, rtol=1e-4)


@pytest.mark.parametrize("name", objectives.names())
def test_the_balance_is_the_loss_where_it_is_a_mean_over_responses(name):
    loss, found, _ = value_metrics_gradient(name, CASE)
    if objectives.make(name).aggregation == "response_mean":
        np.testing.assert_allclose(found["balance/net"], loss, rtol=1e-5, atol=1e-7)
    else:
        assert abs(found["balance/net"] - loss) > 1e-4


def test_the_likelihood_of_no_responses_is_not_known():
    case = dataclasses.replace(CASE, advantage_B=-np.abs(CASE.advantage_B))
    found = value_metrics_gradient("grpo", case)[1]
    assert np.isnan(found["nll/positive"]) and np.isnan(found["nll/ratio"])
    assert found["nll/negative"] > 0 and found["balance/positive"] == 0


def test_weights_are_summarised_over_drawn_tokens(metrics):
    weight = weight_of_grpo()[MASK]
    np.testing.assert_allclose(metrics["weight/mean"], weight.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["weight/max"], weight.max(), rtol=1e-5)
    np.testing.assert_allclose(metrics["weight/ess"], effective_share(weight), rtol=1e-5)


def test_ratios_are_summarised_over_drawn_tokens(metrics):
    log_ratio = (CASE.logp_BT - CASE.behaviour_logp_BT)[MASK]
    ratio = np.exp(log_ratio)
    expected = {
        "ratio/mean": ratio.mean(),
        "ratio/max": ratio.max(),
        "ratio/ess": effective_share(ratio),
        "ratio/kl_k1": -log_ratio.mean(),
        "ratio/kl_k3": (ratio - 1 - log_ratio).mean(),
        "ratio/chi2": ((ratio - 1) ** 2).mean(),
        "ratio/m2": (log_ratio**2).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_the_divergence_from_the_reference_is_logged(metrics):
    log_ratio = (CASE.reference_logp_BT - CASE.logp_BT)[MASK]
    expected = (np.exp(log_ratio) - 1 - log_ratio).mean()
    np.testing.assert_allclose(metrics["reference/kl_k3"], expected, rtol=1e-5)


NO = np.nan  # no token
POSITIVE = [0.1, 0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.9, 3.1, 50.0]
NEGATIVE = [0.1, NO, 0.79, 0.81, 1.0, 1.19, 1.21, 2.9, NO, 50.0]
BEHIND = [[1.0] * 10, [6.0] * 3 + [4.0] * 7]
# Of two responses with these ratios: tokens high, low and capped.
CLIPPED: list[tuple[str, dict[str, float], Any, tuple[int, int, int]]] = [
    ("grpo", {}, 1.0, (4, 2, 0)),
    ("grpo", {"clip_low": 0.6, "clip_high": 2.0}, 1.0, (2, 1, 0)),
    ("grpo", {"dual_clip": 3.0}, 1.0, (4, 2, 1)),
    ("dr_grpo", {}, 1.0, (4, 2, 0)),
    ("dapo", {}, 1.0, (3, 2, 1)),
    ("dapo", {"clip_high": 0.2, "dual_clip": 2.0}, 1.0, (4, 2, 2)),
    ("cispo", {}, 1.0, (0, 0, 1 + 1)),
    ("cispo", {"clip_high": 2.0}, 1.0, (0, 0, 2 + 1)),
    ("tis", {}, 1.0, (0, 0, 3 + 2)),
    ("tis", {"cap": 1.0}, 1.0, (0, 0, 5 + 4)),
    # 1/r > 3 at 0.1 where A > 0; r > 3 at 50 where A < 0.
    ("aspo", {}, 1.0, (4, 2, 1 + 1)),
    ("aspo", {"clip_high": 2.0, "cap": 1.2}, 1.0, (2, 2, 4 + 3)),
    ("aspo", {"cap": 0.5}, 1.0, (4, 2, 6 + 6)),
    # Of r > 1 where A > 0 and r < 1 where A < 0: (log r)² of 1.19, 1.21 and 0.81 have a mean of at
    # most 0.04, with 0.79 they would not.
    ("m2po", {}, 1.0, (0, 0, 3 + 2)),
    ("m2po", {"limit": 1e9}, 1.0, (0, 0, 0)),
    ("decoupled_ppo", {}, 1.0, (4, 2, 0)),
    ("decoupled_ppo", {}, BEHIND, (4, 2, 2)),
    ("decoupled_ppo", {"cap": 3.0, "clip_low": 0.0}, BEHIND, (4, 3, 8)),
]


@functools.cache
def compiled_metrics() -> Any:
    variants = [(name, options) for name, options, _, _ in CLIPPED]
    return compiled_together(lambda *x: loss_of(*x)[1], variants, 2)


@pytest.mark.parametrize(("name", "options", "behind_BT", "expected"), CLIPPED, ids=str)
def test_clipped_tokens_are_counted_by_their_bound(name, options, behind_BT, expected):
    case = case_of_ratios([POSITIVE, NEGATIVE], [1, -1], behind_BT)
    metrics = compiled_metrics()(*case.arrays.values())[f"{name} {options}"]
    found = [metrics[f"clip/{bound}"] * 18 for bound in ("high", "low", "cap")]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# Ratios of whole responses: s is 2, 1/2, 2, 1/2 and 1.2; W is 4, 1/8, 2, 1/16 and 1.44.
SEQUENCES = [
    [2.0, 2.0, NO, NO],
    [0.5, 0.25, 1.0, NO],
    [2.0, NO, NO, NO],
    [0.25, 1.0, 1.0, 0.25],
    [NO, 1.2, 1.2, NO],
]


@pytest.mark.parametrize(
    ("name", "options", "high", "low", "cap"),
    [
        ("gspo", {}, 2, 4, 0),
        ("gspo", {"clip_low": 0.6, "clip_high": 0.1}, 2, 0, 0),
        ("gspo", {"clip_low": 0.1, "clip_high": 1.5}, 0, 4, 0),
        ("topr", {}, 0, 0, 1 + 2),
    ],
    ids=str,
)
def test_a_clip_of_whole_responses_is_counted_by_their_tokens(name, options, high, low, cap):
    case = case_of_ratios(SEQUENCES, [1, 1, -1, -1, -1])
    _, metrics, _ = value_metrics_gradient(name, case, **options)
    found = [metrics[f"clip/{bound}"] * 12 for bound in ("high", "low", "cap")]
    np.testing.assert_allclose(found, [high, low, cap], rtol=1e-5)


def test_a_policy_that_has_not_moved_has_ratio_one_and_no_divergence():
    _, metrics, _ = value_metrics_gradient(
        "grpo", dataclasses.replace(CASE, behaviour_logp_BT=CASE.logp_BT)
    )
    for name in ("mean", "max", "ess"):
        np.testing.assert_allclose(metrics[f"ratio/{name}"], 1.0, rtol=1e-6)
    for name in ("kl_k1", "kl_k3", "chi2", "m2"):
        assert metrics[f"ratio/{name}"] == 0


def test_groups_and_lengths_are_counted(metrics):
    np.testing.assert_allclose(metrics["group/degenerate_share"], 1 / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics["response/length"], MASK.sum() / 12, rtol=1e-6)


def test_metrics_carry_no_gradient():
    def total(logp_BT):
        _, metrics = objectives.policy_loss(
            objectives.make("grpo"),
            logp_BT,
            jnp.asarray(MASK),
            jnp.asarray(CASE.advantage_B),
            group_size=3,
            behaviour_logp_BT=jnp.asarray(CASE.behaviour_logp_BT),
        )
        return sum(metrics[name] for name in METRICS | RATIO_METRICS)

    gradient_BT = jax.jit(jax.grad(total))(jnp.asarray(CASE.logp_BT))
    assert (gradient_BT == 0).all()
