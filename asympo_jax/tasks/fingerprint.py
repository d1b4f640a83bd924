"""Whether two processes, or two attempts at a run, ask the same prompts."""

import hashlib
from collections.abc import Callable

from asympo_jax.tasks.base import Task
from asympo_jax.types import Prompt

_MAX_PROMPTS = 64  # of each split; one that is generated may take milliseconds


def prompts_sha256(task: Task) -> str:
    """Hash of a task's prompts and answers: how many there are, and what 64 of each split are.

    Those lie evenly over the split, the first and the last among them; of fewer, it is all. Rows
    that are added, left out or in another order change it; some that are changed in place, in a
    larger split, may not. The reward and the demonstrations are not part of it.
    """
    digest = hashlib.sha256()
    _add(digest.update, task.train_prompt, task.num_train)
    _add(digest.update, task.eval_prompt, task.num_eval)
    return digest.hexdigest()


def _add(update: Callable[[bytes], None], prompt: Callable[[int], Prompt], count: int) -> None:
    """Adds a split."""
    num_asked = min(count, _MAX_PROMPTS)
    update(f"{count}\n".encode())
    for i in range(num_asked):
        one = prompt(i * (count - 1) // max(1, num_asked - 1))
        # As plain values: how others are written depends on the versions of their libraries.
        update(f"{(int(one.index), str(one.text), str(one.answer))!r}\n".encode())
