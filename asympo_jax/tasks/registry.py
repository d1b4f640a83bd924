"""Finds a task by name or by import path."""

import inspect
from typing import Any

from asympo_jax import import_path, nearest
from asympo_jax.tasks.base import Task

_TASKS = {
    "arithmetic": "asympo_jax.tasks.arithmetic:Arithmetic",
    "countdown": "asympo_jax.tasks.countdown:Countdown",
    "gsm8k": "asympo_jax.tasks.gsm8k:Gsm8k",
    "math": "asympo_jax.tasks.math:Math",
}

_OF_A_TOKENIZER = ("vocab_size", "stop_ids", "encode", "encode_prompt", "decode")


def make_task(name: str, **options: Any) -> Task:
    """The task called `name`, or the class at import path `my_module:MyTask`.

    Args:
        name: a name of this package or an import path.
        **options: keyword arguments of the task's constructor.

    Raises:
        ValueError: an unknown name, a path that does not lead to a `Task`, an unknown option, or a
            task without a whole tokenizer.
    """
    path = name if ":" in name else _TASKS.get(name)
    if path is None:
        raise ValueError(
            f"task.name={name!r}{nearest.hint(name, _TASKS)}: must be one of {sorted(_TASKS)} or "
            "an import path like 'my_module:MyTask'"
        )
    found = import_path.load(
        "task.name",
        path,
        "a subclass of asympo_jax.tasks.Task with all of its methods",
        _is_complete_task,
    )
    allowed = [p for p in inspect.signature(found).parameters if p != "self"]
    for option in options:
        if option not in allowed:
            raise ValueError(f"task.{option} is not an option of task {name!r}; it has {allowed}")
    try:
        task = found(**options)
    except ValueError:
        raise  # names the option, as ours do
    except Exception as error:
        raise ValueError(
            f"task.name={name!r}: cannot be made ({type(error).__name__}: {error})"
        ) from error
    tokenizer = getattr(task, "tokenizer", None)
    missing = [part for part in _OF_A_TOKENIZER if not hasattr(tokenizer, part)]
    if missing:
        raise ValueError(
            f"task.name={name!r}: its tokenizer, {tokenizer!r:.80}, has no {', '.join(missing)}; "
            "derive its class from asympo_jax.tokenizers.Tokenizer"
        )
    return task


def is_of_package(task: Task) -> bool:
    """Whether a task's class is one of this package, and not of a user who derives from one."""
    return type(task).__module__.startswith(f"{__name__.partition('.')[0]}.")


def _is_complete_task(found: Any) -> bool:
    """Whether something is a task that can be made."""
    return inspect.isclass(found) and issubclass(found, Task) and not inspect.isabstract(found)
