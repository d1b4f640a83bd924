"""Draws follow their distribution, cut and at the borders."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sampling_cases import assert_drawn_from, softmax

from asympo_jax import sampling
from asympo_jax.sampling import draw_params

NUM_DRAWS = 20_000
LOGITS = np.array([0.3, -1.0, 2.0, 1.1, -0.4, 0.9, -2.5], np.float32)
draw = jax.jit(sampling.draw)


def draw_many(logits_V: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and log-probs of independent draws from the same logits."""
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V), (NUM_DRAWS, len(logits_V)))
    uniform_B = jax.random.uniform(jax.random.key(0), (NUM_DRAWS,), minval=2.0**-24)
    token_B, logp_B = draw(logits_BV, uniform_B, draw_params(**options))
    return np.asarray(token_B), np.asarray(logp_B)


def distribution(
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """What `draw` follows, token by token from the most probable one."""
    prob_V = softmax(LOGITS / temperature)
    kept, mass = [], 0.0
    for rank, token in enumerate(np.argsort(-prob_V)):
        if (top_k and rank >= top_k) or mass >= top_p or prob_V[token] < min_p * prob_V.max():
            break
        kept.append(token)
        mass += prob_V[token]
    cut_V = np.zeros_like(prob_V)
    cut_V[kept] = prob_V[kept] / mass
    return cut_V


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.2},
        {"top_p": 0.6},
        {"top_p": 0.9, "temperature": 2.0},
        {"min_p": 0.3},
        {"min_p": 1.0},
        {"top_k": 5, "top_p": 0.8, "min_p": 0.05, "temperature": 1.5},
    ],
    ids=str,
)
def test_draws_follow_the_cut_and_renormalised_softmax(options):
    token_B, logp_B = draw_many(LOGITS, **options)
    assert_drawn_from(np.bincount(token_B, minlength=7), distribution(**options))
    # What is recorded is from before the cuts.
    temperature = options.get("temperature", 1.0)
    np.testing.assert_allclose(
        logp_B, np.log(softmax(LOGITS / temperature))[token_B], rtol=1e-5, atol=1e-6
    )


def test_the_token_that_crosses_top_p_is_kept():
    prob_V = np.sort(softmax(LOGITS))[::-1]
    assert prob_V[0] < 0.6 < prob_V[:2].sum()
    assert (distribution(top_p=0.6) > 0).sum() == 2
    assert len(set(draw_many(LOGITS, top_p=0.6)[0])) == 2


def test_a_top_p_too_small_for_float32_keeps_the_most_probable_token():
    tokens, _ = draw_many(np.log(np.array([0.05, 0.15, 0.3, 0.5])), top_p=1e-320)
    assert (tokens == 3).all()


def test_temperature_zero_takes_the_most_probable_token():
    token_B, logp_B = draw_many(LOGITS, temperature=0.0)
    assert (token_B == 2).all()
    np.testing.assert_allclose(logp_B, np.log(softmax(LOGITS))[2], rtol=1e-5)


@pytest.mark.parametrize("impossible", [-np.inf, -1e30])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.99}, {"top_k": 6}], ids=str)
def test_impossible_tokens_are_never_drawn(impossible, options):
    logits_V = np.array([impossible, impossible, 1.0, impossible, 0.0, 50.0, impossible])
    certain_B, logp_B = draw_many(logits_V.astype(np.float32), **options)
    assert (certain_B == 5).all()
    np.testing.assert_allclose(logp_B, 0.0, atol=1e-6)
    logits_V[5] = impossible
    token_B, _ = draw_many(logits_V.astype(np.float32), **options)
    assert set(token_B) == {2, 4}


def test_the_ends_of_the_unit_interval_draw_tokens_that_have_mass():
    logits_BV = jnp.full((2, 7), -jnp.inf).at[:, 2:5].set(0.0)
    for top_p in (1.0, 0.9):
        token_B, _ = draw(
            logits_BV, jnp.array([2.0**-24, 1 - 2.0**-24], jnp.float32), draw_params(top_p=top_p)
        )
        assert token_B.tolist() == [2, 4]


@pytest.mark.parametrize("options", [{"top_k": 20}, {"top_p": 0.9}], ids=str)
def test_rounding_at_the_borders_between_tokens_never_draws_an_excluded_one(options):
    # Sums over a large vocabulary are taken in parallel, so they round differently at every token.
    logits_V = np.random.default_rng(0).normal(0, 2, 1000).astype(np.float32)
    prob_V = softmax(logits_V)
    order = np.argsort(-prob_V)
    num_kept = options.get("top_k") or 1 + int((np.cumsum(prob_V[order]) < 0.9).sum())
    # One more may be kept where the sum reaches top_p within rounding.
    allowed = set(order[: num_kept + ("top_p" in options)])
    kept_V = np.zeros(1000)
    kept_V[order[:num_kept]] = prob_V[order[:num_kept]]
    borders = np.cumsum(kept_V)[np.sort(order[:num_kept])] / kept_V.sum()
    shifts = np.arange(-6, 7) * 2.0**-23 + 2.0**-24
    uniform_B = (np.round(borders * 2**23) / 2**23)[:, None] + shifts
    uniform_B = uniform_B[(uniform_B > 0) & (uniform_B < 1)].astype(np.float32)
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V), (len(uniform_B), 1000))
    token_B, _ = draw(logits_BV, jnp.asarray(uniform_B), draw_params(**options))
    assert set(np.asarray(token_B)) <= allowed


@pytest.mark.parametrize("holes", [False, True])
def test_draws_invert_the_distribution_function_also_where_blocks_of_tokens_meet(holes):
    logits_LV = np.random.default_rng(1).normal(0, 2, (40, 4000)).astype(np.float32)
    if holes:  # blocks without any mass
        logits_LV[:, np.arange(4000) // 128 % 4 > 1] = -np.inf
    below_LV = np.cumsum(softmax(logits_LV), axis=1)
    # All float32 numbers next to where a block ends, as sums round differently in many rows.
    borders = below_LV[:, 127:-128:128].astype(np.float32)
    near = borders[:, :, None] + np.arange(-3, 4) * np.spacing(borders)[:, :, None]
    row_B, uniform_B = np.repeat(np.arange(40), near[0].size), near.reshape(-1)
    uniform_B = np.clip(uniform_B, 2.0**-24, 1 - 2.0**-24)
    token_B, _ = draw(jnp.asarray(logits_LV[row_B]), jnp.asarray(uniform_B), draw_params())
    token_B = np.asarray(token_B)
    before_LV = np.pad(below_LV, ((0, 0), (1, 0)))[:, :-1]
    assert (before_LV[row_B, token_B] <= uniform_B + 1e-5).all()
    assert (uniform_B - 1e-5 <= below_LV[row_B, token_B]).all()
    assert np.isfinite(logits_LV[row_B, token_B]).all()


@pytest.mark.parametrize("vocab_size", [7, 2000])
def test_the_first_few_by_falling_scores_are_kept_and_of_ties_the_first_tokens(vocab_size):
    rng = np.random.default_rng(vocab_size)
    # Rounded, so that several tokens tie with the last that is kept; some are impossible.
    logits_BV = np.round(rng.normal(0, 2, (40, vocab_size)), 1).astype(np.float32)
    logits_BV[rng.random(logits_BV.shape) < 0.2] = -np.inf
    logits_BV[:, 3] = 0.0
    uniform_B = rng.uniform(0.01, 0.99, 40).astype(np.float32)
    cuts: list[dict[str, Any]] = [{"top_k": 3}, {"top_k": vocab_size - 1}]
    for options in [*cuts, {"top_p": 0.7}, {"min_p": 0.4}]:
        found_B, _ = draw(logits_BV, uniform_B, draw_params(**options))
        kept_BV = np.stack([_first_few(logits_V, options) for logits_V in logits_BV])
        expected_B, _ = draw(np.where(kept_BV, logits_BV, -np.inf), uniform_B, draw_params())
        assert np.array_equal(found_B, expected_B), options


def _first_few(logits_V: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Which tokens are kept, by their order: the most probable first, of ties the first token."""
    prob_V, order = softmax(logits_V), np.argsort(-logits_V, kind="stable")
    before = np.cumsum(prob_V[order]) - prob_V[order]
    keep = np.arange(len(order)) < options.get("top_k", len(order))
    keep &= before < options.get("top_p", 1.1)
    keep &= prob_V[order] >= options.get("min_p", 0.0) * prob_V.max() * (1 - 1e-6)
    kept_V = np.zeros(len(order), bool)
    kept_V[order[keep]] = True
    return kept_V


def test_uniforms_lie_strictly_inside_the_unit_interval():
    keys = jnp.arange(2000, dtype=jnp.uint32).reshape(-1, 2)
    uniform_B = np.asarray(sampling.uniforms(keys, jnp.full(1000, 3)), np.float64)
    cell_B = uniform_B * 2**24
    assert (cell_B % 2 == 1).all(), "centres of 2^23 cells, so neither 0 nor 1"
    assert cell_B.min() >= 1 and cell_B.max() < 2**24
    assert scipy.stats.kstest(uniform_B, "uniform").pvalue > 1e-3


def test_uniforms_depend_on_key_and_position_only():
    keys = jnp.arange(8, dtype=jnp.uint32).reshape(-1, 2)
    first = np.asarray(sampling.uniforms(keys, jnp.zeros(4, jnp.int32)))
    assert len(set(first)) == 4
    np.testing.assert_array_equal(
        sampling.uniforms(keys[::-1], jnp.zeros(4, jnp.int32)), first[::-1]
    )
    assert set(first).isdisjoint(
        np.asarray(sampling.uniforms(keys, jnp.ones(4, jnp.int32))).tolist()
    )
