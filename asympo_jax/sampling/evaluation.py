"""Responses to held-out prompts and their accuracy: sampled (avg@k) and greedy."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from asympo_jax.models import ModelConfig
from asympo_jax.sampling.draw import DrawParams, draw_params
from asympo_jax.sampling.engine import EngineConfig, generate
from asympo_jax.tasks import Task, is_correct
from asympo_jax.types import Prompt


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Accuracy over held-out prompts.

    Attributes:
        mean: share of right responses, avg@k: mean over prompts of the mean over k responses.
        standard_error: of `mean`, over prompts; NaN for a single prompt.
        correct_PK: which response to which prompt was right.
    """

    mean: float
    standard_error: float
    correct_PK: np.ndarray


@dataclasses.dataclass(frozen=True)
class Answers:
    """k responses to each of some prompts, not graded yet.

    Attributes:
        prompts: P of them.
        texts: P times k, without stop tokens.
        length_PK: int32, drawn tokens, stop token included.
        stop_PK: int8, a `StopReason` each.
    """

    prompts: tuple[Prompt, ...]
    texts: tuple[tuple[str, ...], ...]
    length_PK: np.ndarray
    stop_PK: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates parameters on the first held-out prompts of a task.

    The draws are the same at every call, so that only the parameters tell two calls apart. Those of
    a response depend on the seed, its prompt's index and its own place among the k: not on the
    number of prompts, of responses and of rows.

    Attributes:
        task: prompts and what is right.
        model: the decoder's shape.
        engine: shapes of the sampler's engine, of which lengths and stop ids are taken.
        num_prompts: held-out prompts.
        samples_per_prompt: k.
        draw: temperature and cuts of sampled responses.
        correct: which of many responses to prompts are right; None to ask the task here.
        seed: of the draws, from 0 to 2**32 - 1.
        max_rows: responses worked at once; those to one prompt always are.
    """

    task: Task
    model: ModelConfig
    engine: EngineConfig
    num_prompts: int
    samples_per_prompt: int
    draw: DrawParams
    correct: Callable[[Sequence[tuple[Prompt, str]]], Sequence[bool]] | None = None
    seed: int = 0
    max_rows: int = 512

    def sampled(self, params: Any) -> Accuracy:
        """Accuracy of k sampled responses a prompt."""
        return self._accuracy(self.sampled_answers(params))

    def greedy(self, params: Any) -> Accuracy:
        """Accuracy of the most probable response, token by token."""
        return self._accuracy(self.greedy_answers(params))

    def sampled_answers(self, params: Any) -> Iterator[Answers]:
        """Sampled responses, k to each prompt, some prompts at a time, in their order."""
        return self._answers(params, self.samples_per_prompt, self.draw)

    def greedy_answers(self, params: Any) -> Iterator[Answers]:
        """The most probable response to each prompt, some prompts at a time, in their order."""
        return self._answers(params, 1, draw_params(temperature=0.0))

    def grade(self, answers: Answers) -> np.ndarray:
        """Which responses are right, `correct_PK`."""
        pairs = [
            (prompt, text)
            for prompt, texts in zip(answers.prompts, answers.texts, strict=True)
            for text in texts
        ]
        if self.correct is not None:
            right = self.correct(pairs)
        else:
            right = [is_correct(self.task, prompt, text) for prompt, text in pairs]
        return np.array(right, bool).reshape(answers.length_PK.shape)

    def _accuracy(self, parts: Iterator[Answers]) -> Accuracy:
        """Accuracy of all responses."""
        correct_PK = np.concatenate([self.grade(answers) for answers in parts])
        per_prompt_P = correct_PK.mean(axis=1)
        spread = float(per_prompt_P.std(ddof=1)) if self.num_prompts > 1 else math.nan
        return Accuracy(
            float(per_prompt_P.mean()), spread / math.sqrt(self.num_prompts), correct_PK
        )

    def _answers(self, params: Any, samples: int, draw: DrawParams) -> Iterator[Answers]:
        """Generates in chunks of one shape."""
        chunk = max(1, min(self.num_prompts, self.max_rows // samples))
        engine = dataclasses.replace(
            self.engine, num_prompts=chunk, group_size=samples, record_logp=False, lanes=0
        )
        decode = self.task.tokenizer.decode
        for start in range(0, self.num_prompts, chunk):
            # The last chunk is filled up with prompts from the start, whose answers do not count.
            indices = [i % self.num_prompts for i in range(start, start + chunk)]
            prompts = [self.task.eval_prompt(i) for i in indices]
            ids = [self.task.tokenizer.encode_prompt(prompt.text) for prompt in prompts]
            keys = [(self.seed, i) for i in indices]
            out = generate(self.model, engine, params, ids, keys, draw)
            counted = min(chunk, self.num_prompts - start)
            yield Answers(
                prompts=tuple(prompts[:counted]),
                texts=tuple(
                    tuple(
                        decode(row[:length].tolist())
                        for row, length in zip(out.token_PGT[p], out.length_PG[p], strict=True)
                    )
                    for p in range(counted)
                ),
                length_PK=out.length_PG[:counted],
                stop_PK=out.stop_PG[:counted],
            )
