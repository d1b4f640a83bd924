"""Grades the responses to a prompt."""

from collections.abc import Sequence

import numpy as np

from asympo_jax.tasks import Task, reward_of
from asympo_jax.types import Prompt


def grade(task: Task, prompt: Prompt, texts: Sequence[str]) -> np.ndarray:
    """float32 rewards of the responses to one prompt.

    Raises:
        RewardError: a reward raised, or is not a finite number.
    """
    return np.array([reward_of(task, prompt, text) for text in texts], np.float32)
