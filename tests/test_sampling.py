"""Draws follow their distribution; responses depend on parameters, prompt and key alone."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from model_cases import LLAMA, QWEN3, full_logits, full_logp, params_of

from asympo_jax import sampling
from asympo_jax.sampling import EngineConfig, Evaluator, draw_params, generate
from asympo_jax.sampling import engine as engine_module
from asympo_jax.tasks.base import Task
from asympo_jax.tokenizers import CharTokenizer
from asympo_jax.types import Prompt, StopReason

# ---------------------------------------------------------------------------------- one draw

NUM_DRAWS = 20_000
LOGITS = np.array([0.3, -1.0, 2.0, 1.1, -0.4, 0.9, -2.5], np.float32)
draw = jax.jit(sampling.draw)


def draw_many(logits_V: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and log-probs of independent draws from the same logits."""
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V), (NUM_DRAWS, len(logits_V)))
    uniform_B = jax.random.uniform(jax.random.key(0), (NUM_DRAWS,), minval=2.0**-24)
    token_B, logp_B = draw(logits_BV, uniform_B, draw_params(**options))
    return np.asarray(token_B), np.asarray(logp_B)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


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


def assert_drawn_from(counts: np.ndarray, prob: np.ndarray):
    """Chi-square: a right sampler fails one seed in a thousand, and the seeds are fixed."""
    assert (counts[prob == 0] == 0).all()
    likely = prob > 0
    if likely.sum() > 1:
        expected = prob[likely] * counts.sum()
        assert scipy.stats.chisquare(counts[likely], expected).pvalue > 1e-3


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


# ---------------------------------------------------------------------------- whole responses

ENGINE = EngineConfig(
    num_prompts=3,
    group_size=4,
    max_prompt_tokens=5,
    max_response_tokens=6,
    segment=3,
    stop_ids=(5, 3),
    record_logp=True,
)
PROMPTS = [[3, 2], [5, 6, 0, 2, 3], [1]]
KEYS = [(0, 7), (2**32 - 1, 8), (5, 5)]


@functools.cache
def responses(engine: EngineConfig = ENGINE, temperature: float = 0.8) -> sampling.Responses:
    return generate(
        QWEN3, engine, params_of(QWEN3), PROMPTS, KEYS, draw_params(temperature=temperature)
    )


def assert_same(found: sampling.Responses, expected: sampling.Responses, prompts=slice(None)):
    """The same tokens, lengths and reasons, and the same log-probs to rounding."""
    for field in ("token_PGT", "length_PG", "stop_PG"):
        np.testing.assert_array_equal(
            getattr(found, field)[prompts], getattr(expected, field)[prompts]
        )
    assert found.logp_PGT is not None and expected.logp_PGT is not None
    np.testing.assert_allclose(found.logp_PGT[prompts], expected.logp_PGT[prompts], atol=1e-5)


def test_the_responses_to_a_prompt_differ():
    for token_GT in responses().token_PGT:
        assert len({tuple(token_T) for token_T in token_GT}) > 1


def test_the_same_keys_draw_the_same_responses_and_others_do_not():
    params = params_of(QWEN3)
    again = generate(QWEN3, ENGINE, params, PROMPTS, KEYS, draw_params(temperature=0.8))
    assert_same(again, responses())
    other = generate(QWEN3, ENGINE, params, PROMPTS, [(9, 9)] * 3, draw_params(temperature=0.8))
    assert (other.token_PGT != responses().token_PGT).any(axis=(1, 2)).all()


def test_a_response_does_not_depend_on_its_neighbours():
    prompts, keys = [[2], PROMPTS[1], [4, 4, 4]], [(1, 1), KEYS[1], (3, 3)]
    found = generate(QWEN3, ENGINE, params_of(QWEN3), prompts, keys, draw_params(temperature=0.8))
    assert_same(found, responses(), slice(1, 2))
    turned = generate(
        QWEN3,
        ENGINE,
        params_of(QWEN3),
        PROMPTS[::-1],
        KEYS[::-1],
        draw_params(temperature=0.8),
    )
    np.testing.assert_array_equal(turned.token_PGT[::-1], responses().token_PGT)


def test_responses_do_not_depend_on_the_segment():
    assert_same(responses(dataclasses.replace(ENGINE, segment=100)), responses())


def test_responses_end_at_a_stop_token_or_at_the_limit_and_say_which():
    out = responses()
    reasons = collections.Counter(out.stop_PG.reshape(-1).tolist())
    assert set(reasons) == {StopReason.STOP_TOKEN, StopReason.LENGTH}, "the case has both"
    for token_T, length, stop in zip(
        out.token_PGT.reshape(-1, 6),
        out.length_PG.reshape(-1),
        out.stop_PG.reshape(-1),
        strict=True,
    ):
        is_stop_T = np.isin(token_T[:length], ENGINE.stop_ids)
        assert not is_stop_T[:-1].any()
        assert is_stop_T[-1] == (stop == StopReason.STOP_TOKEN)
        assert length == 6 or stop == StopReason.STOP_TOKEN
        assert (token_T[length:] == 0).all()


def test_recorded_log_probs_are_those_that_a_learner_computes():
    out = responses()
    assert out.logp_PGT is not None
    params = params_of(QWEN3)
    for prompt, token_GT, length_G, logp_GT in zip(
        PROMPTS, out.token_PGT, out.length_PG, out.logp_PGT, strict=True
    ):
        rows = np.zeros((4, 11), np.int32)
        rows[:, : len(prompt)] = prompt
        rows[:, len(prompt) : len(prompt) + 6] = token_GT
        learner_GT = np.asarray(full_logp(QWEN3, params, rows, 0.8))[:, len(prompt) :][:, :6]
        drawn_GT = np.arange(6)[None] < length_G[:, None]
        np.testing.assert_allclose(logp_GT[drawn_GT], learner_GT[drawn_GT], atol=1e-4)
        assert (logp_GT[~drawn_GT] == 0).all()


def test_decoding_ends_with_the_longest_live_response(monkeypatch):
    columns = []
    decode = engine_module.decode

    def counting(fixed, params, draw_params, lanes, enough):
        lanes = decode(fixed, params, draw_params, lanes, enough)
        columns.append((int(lanes.column), lanes.num_columns))
        return lanes

    monkeypatch.setattr(engine_module, "decode", counting)
    # Every token stops, the first that the prompt draws.
    out = responses(dataclasses.replace(ENGINE, stop_ids=tuple(range(7))))
    assert columns == [(0, 3)]
    assert (out.length_PG == 1).all() and (out.token_PGT[:, :, 1:] == 0).all()
    assert (out.stop_PG == StopReason.STOP_TOKEN).all()
    # No token does.
    columns.clear()
    out = responses(dataclasses.replace(ENGINE, stop_ids=(), segment=6))
    assert columns == [(5, 6)]
    assert (out.length_PG == 6).all() and (out.stop_PG == StopReason.LENGTH).all()


# ------------------------------------------------------------------------------------- lanes

ONE_LAYER = dataclasses.replace(QWEN3, num_layers=1)
MANY = dataclasses.replace(
    ENGINE, num_prompts=9, group_size=2, max_response_tokens=12, segment=4, stop_ids=(5,)
)
MANY_PROMPTS = [[1 + i % 5] * (1 + i % 4) for i in range(9)]
MANY_KEYS = [(1, i) for i in range(9)]
# One of eighteen is four times as long as the others may be.
LIMITS = np.full((9, 2), 3)
LIMITS[4, 1] = 12


def many(limit_PG: np.ndarray | None = None, **options: Any) -> sampling.Responses:
    """Responses to nine prompts, in more or fewer lanes."""
    engine = dataclasses.replace(MANY, **options)
    params = params_of(ONE_LAYER)
    return generate(ONE_LAYER, engine, params, MANY_PROMPTS, MANY_KEYS, draw_params(), limit_PG)


class Watched:
    """`decode` of the engine, with an account of what each call did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.rows, self.steps, self.columns = [], [], []
        self._decode = engine_module.decode
        monkeypatch.setattr(engine_module, "decode", self)

    def __call__(self, fixed: Any, params: Any, draw: Any, lanes: Any, enough: Any) -> Any:
        before, num_rows = int(lanes.column), len(lanes.length_B)
        lanes = self._decode(fixed, params, draw, lanes, enough)
        self.rows.append(num_rows)
        self.steps.append(int(lanes.column) - before)
        self.columns.append(lanes.num_columns)
        return lanes

    @property
    def work(self) -> int:
        """Rows times steps."""
        return sum(rows * steps for rows, steps in zip(self.rows, self.steps, strict=True))


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("limit_PG", [None, LIMITS], ids=["alike", "one long"])
def test_responses_do_not_depend_on_the_lanes(lanes, limit_PG):
    found = many(limit_PG, lanes=lanes)
    assert_same(found, many(limit_PG))
    assert len({tuple(token_T) for token_T in found.token_PGT.reshape(18, -1)}) > 12


def test_a_response_with_a_limit_is_the_beginning_of_the_one_without():
    limited, free = many(LIMITS), many()
    assert (free.length_PG > LIMITS).any() and (free.length_PG < LIMITS).any()
    np.testing.assert_array_equal(limited.length_PG, np.minimum(free.length_PG, LIMITS))
    drawn_PGT = np.arange(12) < limited.length_PG[:, :, None]
    np.testing.assert_array_equal(limited.token_PGT, np.where(drawn_PGT, free.token_PGT, 0))
    at_limit = limited.stop_PG == StopReason.LENGTH
    np.testing.assert_array_equal(at_limit, ~(limited.token_PGT == 5).any(axis=2))


def test_lanes_that_are_done_take_the_prompts_that_wait(monkeypatch):
    watched = Watched(monkeypatch)
    many(LIMITS, lanes=4, stop_ids=())
    # Batches of four prompts would end with the longest of each, after 2, 11 and 2 steps.
    assert sum(watched.steps) <= 11 + 2
    assert watched.rows[0] == 8 and watched.rows[-1] == 2


def test_lanes_at_work_are_moved_together_when_no_prompt_waits(monkeypatch):
    watched = Watched(monkeypatch)
    many(LIMITS, stop_ids=())
    assert watched.rows[0] == 18 and watched.rows[-1] == 4
    assert watched.work == 18 * 2 + 4 * 9, "two steps of all, the rest of two lanes' room"


def test_columns_that_nobody_needs_are_given_up(monkeypatch):
    watched = Watched(monkeypatch)
    many(np.full((9, 2), 3), lanes=1, stop_ids=())
    assert sum(watched.steps) == 9 * 2
    assert max(watched.columns) <= 8, "three of a response at work, and a segment"


@pytest.mark.parametrize("lanes", [0, 4])
def test_devices_that_have_the_parameters_share_the_prompts(lanes, monkeypatch):
    # Nine lanes go to three of four devices, four lanes to all.
    params = sampling.on_devices(params_of(ONE_LAYER), 4)
    engine, used = dataclasses.replace(MANY, lanes=lanes), collections.Counter()
    decode = engine_module.decode

    def watched(*args: Any) -> Any:
        lanes = decode(*args)
        used.update(lanes.length_B.devices())
        return lanes

    monkeypatch.setattr(engine_module, "decode", watched)
    out = generate(ONE_LAYER, engine, params, MANY_PROMPTS, MANY_KEYS, draw_params(), LIMITS)
    assert_same(out, many(LIMITS))
    assert len(used) == (4 if lanes else 3)


def test_more_devices_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"sampler\.devices=9: this process has 8 cpu devices"):
        sampling.on_devices({}, 9)


@pytest.mark.parametrize("limit", [0, 13])
def test_limits_out_of_range_are_refused(limit):
    limits = LIMITS.copy()
    limits[2, 0] = limit
    with pytest.raises(ValueError, match=r"must have shape .* from 1 to sampler\.max_resp"):
        many(limits)
    with pytest.raises(ValueError, match=r"limit_PG: shape \(9,\)"):
        many(LIMITS[:, 0])


@pytest.mark.parametrize(
    ("prompts", "keys", "message"),
    [
        (PROMPTS[:2], KEYS, "prompts: 2 for num_prompts=3"),
        (PROMPTS, KEYS[:2], "keys: 2 for num_prompts=3"),
        ([[1], [], [2]], KEYS, "a prompt of 0 tokens: must have from 1 to sampler.max_prompt_tok"),
        ([[1], [2] * 6, [2]], KEYS, "a prompt of 6 tokens: must have from 1 to"),
    ],
)
def test_prompts_and_keys_that_do_not_fit_are_refused(prompts, keys, message):
    with pytest.raises(ValueError) as error:
        generate(QWEN3, ENGINE, params_of(QWEN3), prompts, keys, draw_params())
    assert message in str(error.value)


def test_whole_responses_follow_the_product_of_the_models_distributions():
    config = dataclasses.replace(LLAMA, vocab_size=4)
    params = params_of(config)
    engine = EngineConfig(64, 64, 3, 2, 2, (1,), False)
    temperature = 1.5
    prompt = [2, 3]

    logits_BTV = full_logits(config, params, [[*prompt, a] for a in range(4)])
    prob_BTV = softmax(np.asarray(logits_BTV) / temperature)
    first_V, second_VV = prob_BTV[0, 1], prob_BTV[:, 2]
    expected = {(1, 0): first_V[1]}  # token 1 stops
    for a in (0, 2, 3):
        expected |= {(a, b): first_V[a] * second_VV[a, b] for b in range(4)}
    assert sum(expected.values()) == pytest.approx(1)
    assert min(expected.values()) * 3 * 64 * 64 > 5

    counts = collections.Counter()
    for call in range(3):
        keys = [(call, i) for i in range(64)]
        out = generate(config, engine, params, [prompt] * 64, keys, draw_params(temperature))
        counts.update(map(tuple, out.token_PGT.reshape(-1, 2).tolist()))
    assert set(counts) <= set(expected)
    assert_drawn_from(
        np.array([counts[pair] for pair in expected]), np.array(list(expected.values()))
    )


# ----------------------------------------------------------------------------------- accuracy


class Parity(Task):
    """Prompts of one to three letters; right where the grader that it is given says so."""

    tokenizer = CharTokenizer("abcde")
    num_train = 1
    num_eval = 7

    def __init__(self, is_right):
        self.is_right = is_right

    def train_prompt(self, index: int) -> Prompt:
        raise AssertionError("accuracy is of held-out prompts")

    def eval_prompt(self, index: int) -> Prompt:
        assert 0 <= index < self.num_eval
        return Prompt(index, "abcdeab"[index : index + 1 + index % 3], str(index))

    def reward(self, prompt: Prompt, text: str) -> float:
        return float(self.is_right(prompt, text))


def evaluator(is_right, num_prompts: int = 7, samples: int = 2) -> Evaluator:
    engine = dataclasses.replace(ENGINE, max_prompt_tokens=3, max_response_tokens=4, segment=4)
    return Evaluator(
        Parity(is_right), LLAMA, engine, num_prompts, samples, draw_params(temperature=1.0)
    )


def test_accuracy_is_the_share_of_responses_that_the_task_calls_right():
    params = params_of(LLAMA)
    accuracy = evaluator(lambda prompt, text: prompt.index % 2 == 0).sampled(params)
    assert accuracy.correct_PK.tolist() == [[i % 2 == 0] * 2 for i in range(7)]
    assert accuracy.mean == pytest.approx(4 / 7)
    spread = np.std([1, 0, 1, 0, 1, 0, 1], ddof=1)
    assert accuracy.standard_error == pytest.approx(spread / np.sqrt(7))
    assert evaluator(lambda prompt, text: True).sampled(params).mean == 1.0
    assert evaluator(lambda prompt, text: False).sampled(params).mean == 0.0


def test_responses_are_graded_as_text_without_their_stop_token():
    texts = []
    evaluator(lambda prompt, text: texts.append((prompt.index, text)) or 1).sampled(
        params_of(LLAMA)
    )
    engine = dataclasses.replace(
        ENGINE,
        num_prompts=7,
        group_size=2,
        max_prompt_tokens=3,
        max_response_tokens=4,
        segment=4,
        record_logp=False,
    )
    task = Parity(None)
    prompts = [task.tokenizer.encode(task.eval_prompt(i).text) for i in range(7)]
    keys = [(0, i) for i in range(7)]
    out = generate(LLAMA, engine, params_of(LLAMA), prompts, keys, draw_params())
    assert out.logp_PGT is None
    expected = [
        (p, "".join("abcde"[token - 2] for token in token_T[:length] if token >= 2))
        for p in range(7)
        for token_T, length in zip(out.token_PGT[p], out.length_PG[p], strict=True)
    ]
    assert texts == expected
    assert len({text for _, text in texts}) > 3


def test_accuracy_is_the_same_at_every_call_and_for_every_chunk():
    params = params_of(LLAMA)
    ends_in_a = evaluator(lambda prompt, text: "a" in text or "c" in text)
    first = ends_in_a.sampled(params)
    assert 0 < first.mean < 1
    np.testing.assert_array_equal(ends_in_a.sampled(params).correct_PK, first.correct_PK)
    in_chunks = dataclasses.replace(ends_in_a, max_rows=6)  # three prompts at a time, of seven
    np.testing.assert_array_equal(in_chunks.sampled(params).correct_PK, first.correct_PK)


def test_greedy_accuracy_is_of_the_one_most_probable_response():
    texts = []
    params = params_of(LLAMA)
    one_prompt = evaluator(lambda prompt, text: texts.append(text) or True, num_prompts=1)
    accuracy = one_prompt.greedy(params)
    assert accuracy.correct_PK.tolist() == [[True]]
    assert np.isnan(accuracy.standard_error)  # of a single prompt
    tokens = [2]  # the prompt "a"
    for _ in range(4):
        padded = np.pad(tokens, (0, 5 - len(tokens)))[None]
        tokens.append(int(full_logits(LLAMA, params, padded)[0, len(tokens) - 1].argmax()))
        if tokens[-1] in ENGINE.stop_ids:
            break
    assert texts == ["".join("abcde"[token - 2] for token in tokens[1:] if token >= 2)]
