"""The program of a grading process, run by `reward_guard`; it talks to a pool in lines of JSON."""

import contextlib
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from asympo_jax import import_path
from asympo_jax.tasks import RewardError, is_correct, make_task, reward_of
from asympo_jax.types import Prompt

_MEMORY_BYTES = 4 * 2**30  # of a grader's data; beyond it, it gets a MemoryError
_DIED = 70


def main() -> None:
    """Makes the task, then answers requests until the pool closes the pipe."""
    requests, answers = _private_pipes()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    setup = json.loads(requests.readline())
    calls = _calls(setup)
    _answer(answers, {"ready": True})
    for line in requests:
        request = json.loads(line)
        child = os.fork() if setup["isolate"] else 0
        if child:
            _, status = os.waitpid(child, 0)
            if status:
                os._exit(_DIED)
            continue
        process = os.getpid()
        answer = _grade(calls[request["call"]], Prompt(**request["prompt"]), request["text"])
        if os.getpid() != process:
            os._exit(0)  # A copy of this process that a grader made; the original answers.
        _answer(answers, answer)
        if setup["isolate"]:
            os._exit(0)


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes of the pool, out of reach of a grader that prints or reads."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, answers


def _calls(setup: dict[str, Any]) -> dict[str, Callable[[Prompt, str], float]]:
    """What can be asked for."""
    task = make_task(setup["task_name"], **setup["task_options"])
    reward = task.reward
    if setup["function"] is not None:
        reward = import_path.load("reward.function", setup["function"], "a function", callable)
    return {
        "reward": lambda prompt, text: reward_of(reward, prompt, text),
        "correct": lambda prompt, text: float(is_correct(task, prompt, text)),
    }


def _grade(call: Callable[[Prompt, str], float], prompt: Prompt, text: str) -> dict[str, Any]:
    """The answer to a request."""
    try:
        return {"value": call(prompt, text)}
    except RewardError as error:
        if isinstance(error.__cause__, TimeoutError):
            return {"timeout": True}
        if isinstance(error.__cause__, MemoryError):
            os._exit(_DIED)
        return {"error": str(error)[:2000]}


def _answer(answers: BinaryIO, answer: dict[str, Any]) -> None:
    """Writes one line."""
    with contextlib.suppress(BrokenPipeError):
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    sys.exit(main())
