"""A task's own code, called with care: what it raises or returns is checked before use."""

import math

import numpy as np

from asympo_jax.tasks.base import Task
from asympo_jax.types import Prompt


class RewardError(Exception):
    """A reward that raised, or that is not a finite number; never trained on as 0."""


def reward_of(task: Task, prompt: Prompt, text: str) -> float:
    """The task's reward for a response.

    Raises:
        RewardError: naming the task, the prompt and the response.
    """
    try:
        reward = task.reward(prompt, text)
    except Exception as error:
        raise RewardError(f"{_call(task, prompt, text)} raised {_words(error)}") from error
    is_number = isinstance(reward, int | float | np.floating | np.integer)
    if not is_number or not math.isfinite(reward):
        raise RewardError(
            f"{_call(task, prompt, text)} returned {reward!r:.80}: must be a finite number"
        )
    return float(reward)


def is_correct(task: Task, prompt: Prompt, text: str) -> bool:
    """Whether the task counts a response as right.

    Raises:
        RewardError: naming the task, the prompt and the response.
    """
    try:
        return bool(task.correct(prompt, text))
    except Exception as error:
        raise RewardError(f"{_call(task, prompt, text)} raised {_words(error)}") from error


def _call(task: Task, prompt: Prompt, text: str) -> str:
    """Which call it was."""
    return f"the reward of {type(task).__name__} for prompt {prompt.index}, response {text[:80]!r},"


def _words(error: Exception) -> str:
    """An exception as words."""
    return f"{type(error).__name__}: {error}"
