"""Tasks that tests name by import path, as a user names theirs."""

import os
import signal
import sys

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
