"""Prompts and rewards; one file a task."""

from asympo_jax.tasks.base import Task
from asympo_jax.tasks.checked import RewardError, answer_of, is_correct, reward_of
from asympo_jax.tasks.fingerprint import prompts_sha256
from asympo_jax.tasks.registry import is_of_package, make_task

__all__ = [
    "RewardError",
    "Task",
    "answer_of",
    "is_correct",
    "is_of_package",
    "make_task",
    "prompts_sha256",
    "reward_of",
]
