"""Accuracy: the share of responses that the task calls right."""

import dataclasses

import numpy as np
import pytest
from model_cases import LLAMA, full_logits, params_of
from sampling_cases import ENGINE

from asympo_jax.sampling import Evaluator, draw_params, generate
from asympo_jax.tasks.base import Task
from asympo_jax.tokenizers import CharTokenizer
from asympo_jax.types import Prompt


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
