"""Tasks that tests name by import path, as a user names theirs."""

import os
import pathlib
import signal
import sys
import time
from typing import Any

import jax.numpy as jnp

from asympo_jax.objectives import Objective
from asympo_jax.tasks import Task
from asympo_jax.tasks.arithmetic import Arithmetic


class Digits(Arithmetic):
    """Rewards the share of digits, so that an untrained model has something to learn."""

    def reward(self, prompt, text):
        return sum(character.isdigit() for character in text) / max(1, len(text))


def in_sampler() -> bool:
    """Whether this is a sampler's process; the learner grades too, when it evaluates."""
    spec = sys.modules["__main__"].__spec__
    return spec is not None and spec.name == "asympo_jax.sample"


class RaisesInSampler(Digits):
    def reward(self, prompt, text):
        if in_sampler():
            raise RuntimeError("the grader fell over")
        return super().reward(prompt, text)


class RaisesInEvaluation(Digits):
    def correct(self, prompt, text):
        raise RuntimeError("the grader fell over")


class FailsOnSome(Digits):
    """Grading is late where a response starts with 3, and dies where with 7."""

    grades_in_pool = True

    def correct(self, prompt, text):
        if text.startswith("3"):
            raise TimeoutError
        if text.startswith("7"):
            os._exit(3)
        return super().correct(prompt, text)


class AnswersNumbers(Digits):
    def answer(self, text) -> Any:
        return 7


class NanInSampler(Digits):
    def reward(self, prompt, text):
        return float("nan") if in_sampler() else super().reward(prompt, text)


class KillsSampler(Digits):
    def reward(self, prompt, text):
        if in_sampler():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reward(prompt, text)


class WithoutDemonstrations(Digits):
    demonstration = Task.demonstration


class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


class SwallowsSignal(Digits):
    """Terminates its process where Python ignores exceptions."""

    def reward(self, prompt, text):
        Dying()
        return super().reward(prompt, text)


class Rarely(Digits):
    """Rewards few responses, so that many groups have nothing to teach."""

    def reward(self, prompt, text):
        return float(text.startswith("7"))


class CannotBeMade(Digits):
    def __init__(self):
        raise ZeroDivisionError


class ExitsInSampler(Digits):
    def reward(self, prompt, text):
        if in_sampler():
            raise SystemExit(0)
        return super().reward(prompt, text)


def share_of_nines(prompt, text):
    """A reward of a user's own."""
    return text.count("9") / max(1, len(text))


def scaled_weight(batch, factor=1.0):
    return jnp.full_like(batch.advantage_B, factor)[:, None]


scaled = Objective("scaled", scaled_weight)
divided = Objective("divided", scaled_weight, "constant", constant=7.0, kl_coefficient=0.1)


def length_of_text(prompt, text):
    """A reward that any response gets something of, and that differs within a group."""
    return float(len(text) % 5)


class HeldUp(Digits):
    """Cannot tell what is right in an evaluation before a file is there."""

    def correct(self, prompt, text):
        while not pathlib.Path(os.environ["GO_FILE"]).exists():
            time.sleep(0.01)
        return super().correct(prompt, text)


class HalfATokenizer:
    vocab_size, stop_ids = 3, (1,)

    def encode(self, text):
        return [2 for _ in text]

    def decode(self, ids):
        return "" * len(ids)


class OldTokenizer(Digits):
    """Has a tokenizer that is no `Tokenizer` by birth."""

    def __init__(self):
        super().__init__()
        self.tokenizer = HalfATokenizer()  # pyright: ignore[reportAttributeAccessIssue]


class RaisesInPool(Digits):
    """Unlike its accuracies, its rewards always raise."""

    def reward(self, prompt, text):
        raise RuntimeError("the grader fell over")

    def correct(self, prompt, text):
        return False


class Few(Digits):
    """Has fewer prompts than an update trains on."""

    def __init__(self):
        super().__init__()
        self.num_train = 3


class AllTheSame(Digits):
    """Rewards every response alike."""

    def reward(self, prompt, text):
        return 0.5
