"""Grades responses: the task's reward for each, checked before anyone trains on it."""

import math
from collections.abc import Sequence

import numpy as np

from asympo_jax.tasks.base import Task
from asympo_jax.types import Prompt


class RewardError(Exception):
    """A reward that raised, or returned something that is not a finite number."""


def grade(task: Task, prompt: Prompt, texts: Sequence[str]) -> np.ndarray:
    """float32 rewards of the responses to one prompt.

    Raises:
        RewardError: naming the task, the prompt and the response; an error is never a reward of 0.
    """
    rewards = np.empty(len(texts), np.float32)
    for i, text in enumerate(texts):
        where = f"{type(task).__name__}.reward on prompt {prompt.index}, response {text[:80]!r}"
        try:
            reward = task.reward(prompt, text)
        except Exception as error:
            raise RewardError(f"{where} raised {type(error).__name__}: {error}") from error
        is_number = isinstance(reward, int | float | np.floating | np.integer)
        if not is_number or not math.isfinite(reward):
            raise RewardError(f"{where} returned {reward!r}: must be a finite number")
        rewards[i] = reward
    return rewards
