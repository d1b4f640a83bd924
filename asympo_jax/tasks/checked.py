"""A task's own code, called with care: what it raises or returns is checked before use."""

from collections.abc import Callable

import numpy as np

from asympo_jax.tasks.base import Task
from asympo_jax.types import Prompt

LARGEST_REWARD = 1e30  # sums of squares of groups of them stay in the range of float32's exponent


class RewardError(Exception):
    """A reward that raised, or that is not a finite number; never trained on as 0."""


def reward_of(reward: Callable[[Prompt, str], float], prompt: Prompt, text: str) -> float:
    """The reward of a response.

    Raises:
        RewardError: naming the function, the prompt and the response.
    """
    try:
        value = reward(prompt, text)
    except (Exception, SystemExit) as error:
        raise RewardError(f"{_call(reward, prompt, text)} raised {_words(error)}") from error
    is_number = isinstance(value, int | float | np.floating | np.integer)
    if not is_number or not abs(value) <= LARGEST_REWARD:
        raise RewardError(
            f"{_call(reward, prompt, text)} returned {value!r:.80}: must be a number of at most "
            f"{LARGEST_REWARD:g} in size, and finite"
        )
    return float(value)


def is_correct(task: Task, prompt: Prompt, text: str) -> bool:
    """Whether the task counts a response as right.

    Raises:
        RewardError: naming the function, the prompt and the response.
    """
    try:
        return bool(task.correct(prompt, text))
    except (Exception, SystemExit) as error:
        raise RewardError(f"{_call(task.correct, prompt, text)} raised {_words(error)}") from error


def answer_of(task: Task, prompt: Prompt, text: str) -> str | None:
    """The final answer of a response to a prompt, by which it votes.

    Raises:
        RewardError: naming the function, the prompt and the response.
    """
    try:
        found = task.answer(text)
    except (Exception, SystemExit) as error:
        raise RewardError(f"{_call(task.answer, prompt, text)} raised {_words(error)}") from error
    if not isinstance(found, str | None):
        raise RewardError(
            f"{_call(task.answer, prompt, text)} returned {found!r:.80}: must be text or None"
        )
    return found


def _call(function: Callable[..., object], prompt: Prompt, text: str) -> str:
    """Which call it was."""
    name = getattr(function, "__qualname__", repr(function))
    return f"{name} for prompt {prompt.index}, response {text[:80]!r},"


def _words(error: BaseException) -> str:
    """An exception as words."""
    return f"{type(error).__name__}: {error}"
