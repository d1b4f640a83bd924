"""Prompts and rewards; one file a task."""

from asympo_jax.tasks.base import Task
from asympo_jax.tasks.checked import RewardError, is_correct, reward_of
from asympo_jax.tasks.registry import make_task

__all__ = ["RewardError", "Task", "is_correct", "make_task", "reward_of"]
