"""Prompts and rewards; one file a task."""

from asympo_jax.tasks.base import Task
from asympo_jax.tasks.registry import make_task

__all__ = ["Task", "make_task"]
