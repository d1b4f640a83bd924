"""Whether two processes, or two attempts at a run, ask the same prompts."""

import hashlib
from collections.abc import Callable

from asympo_jax.tasks.base import Task
from asympo_jax.types import Prompt

_FIELDS = ("index", "text", "answer")
_MAX_PROMPTS = 64  # of each split; one that is generated may take milliseconds


def prompts_sha256(task: Task) -> str:
    """Hash of a task's prompts and answers: how many there are, and what 64 of each split are.

    Those lie evenly over the split, the first and the last among them; of fewer, it is all. Rows
    that are added, left out or in another order change it; some that are changed in place, in a
    larger split, may not. The reward and the demonstrations are not part of it.

    Raises:
        ValueError: a prompt that is none, or whose fields are of other types.
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
        number = i * (count - 1) // max(1, num_asked - 1)
        one = prompt(number)
        # They go to grading processes as JSON, and must be the same there.
        kinds = [type(getattr(one, name, None)) for name in _FIELDS]
        if type(one) is not Prompt or kinds != [int, str, str]:
            raise ValueError(
                f"prompt {number} of the task is {one!r:.200}: must be a Prompt of an index as int "
                "and of text and answer as str"
            )
        # Not as this Python shows them: what counts as printable grows with its versions.
        update(f"{(one.index, one.text, one.answer)!a}\n".encode())
