"""Responses depend on parameters, prompt and key alone."""

import collections
import dataclasses
import functools

import numpy as np
import pytest
from model_cases import LLAMA, QWEN3, full_logits, full_logp, params_of
from sampling_cases import ENGINE, KEYS, PROMPTS, assert_drawn_from, assert_same, softmax

from asympo_jax import sampling
from asympo_jax.sampling import EngineConfig, draw_params, generate
from asympo_jax.sampling import engine as engine_module
from asympo_jax.types import StopReason


@functools.cache
def responses(engine: EngineConfig = ENGINE, temperature: float = 0.8) -> sampling.Responses:
    return generate(
        QWEN3, engine, params_of(QWEN3), PROMPTS, KEYS, draw_params(temperature=temperature)
    )


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
