"""Accuracy on held-out prompts: sampled (avg@k) and greedy."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asympo_jax.models import ModelConfig
from asympo_jax.sampling.draw import DrawParams, draw_params
from asympo_jax.sampling.engine import EngineConfig, generate
from asympo_jax.tasks import Task, is_correct
from asympo_jax.types import Prompt

_MAX_ROWS = 512  # responses worked at once


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
class Evaluator:
    """Evaluates parameters on the first held-out prompts of a task.

    The draws are the same at every call, so that only the parameters tell two calls apart.

    Attributes:
        task: prompts and what is right.
        model: the decoder's shape.
        engine: shapes of the sampler's engine, of which lengths and stop ids are taken.
        num_prompts: held-out prompts.
        samples_per_prompt: k.
        draw: temperature and cuts of sampled responses.
        correct: which of many responses to prompts are right; None to ask the task here.
    """

    task: Task
    model: ModelConfig
    engine: EngineConfig
    num_prompts: int
    samples_per_prompt: int
    draw: DrawParams
    correct: Callable[[Sequence[tuple[Prompt, str]]], Sequence[bool]] | None = None

    def sampled(self, params: Any) -> Accuracy:
        """Accuracy of k sampled responses a prompt."""
        return self._accuracy(params, self.samples_per_prompt, self.draw)

    def greedy(self, params: Any) -> Accuracy:
        """Accuracy of the most probable response, token by token."""
        return self._accuracy(params, 1, draw_params(temperature=0.0))

    def _accuracy(self, params: Any, samples: int, draw: DrawParams) -> Accuracy:
        """Generates and grades in chunks of one shape."""
        chunk = max(1, min(self.num_prompts, _MAX_ROWS // samples))
        engine = dataclasses.replace(
            self.engine, num_prompts=chunk, group_size=samples, record_logp=False
        )
        correct_PK = np.zeros((self.num_prompts, samples), bool)
        for start in range(0, self.num_prompts, chunk):
            # The last chunk is filled up with prompts from the start, whose answers do not count.
            indices = [i % self.num_prompts for i in range(start, start + chunk)]
            prompts = [self.task.eval_prompt(i) for i in indices]
            ids = [self.task.tokenizer.encode_prompt(prompt.text) for prompt in prompts]
            out = generate(self.model, engine, params, ids, [(0, i) for i in indices], draw)
            counted = prompts[: self.num_prompts - start]
            pairs = [
                (prompt, self.task.tokenizer.decode(row[:length].tolist()))
                for p, prompt in enumerate(counted)
                for row, length in zip(out.token_PGT[p], out.length_PG[p], strict=True)
            ]
            right = np.array(self._are_correct(pairs), bool).reshape(len(counted), samples)
            correct_PK[start : start + len(counted)] = right
        per_prompt_P = correct_PK.mean(axis=1)
        spread = float(per_prompt_P.std(ddof=1)) if self.num_prompts > 1 else math.nan
        return Accuracy(
            float(per_prompt_P.mean()), spread / math.sqrt(self.num_prompts), correct_PK
        )

    def _are_correct(self, pairs: Sequence[tuple[Prompt, str]]) -> Sequence[bool]:
        """Which responses are right."""
        if self.correct is not None:
            return self.correct(pairs)
        return [is_correct(self.task, prompt, text) for prompt, text in pairs]
