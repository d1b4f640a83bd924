"""How the processes of a run on several hosts see that they have the same directories."""

import contextlib
import pathlib
import time
from collections.abc import Callable

from asympo_jax.runtime.files import replace

_ATTEMPT = ".attempt"
_SEEN_S, _LOOK_S = 20.0, 0.5  # a network file system may show late what another host wrote


def mark(workdir: pathlib.Path, attempt: str) -> None:
    """Says in the locked directory which attempt at its run this is, for `is_marked`."""
    replace(workdir / _ATTEMPT, attempt)


def is_marked(
    workdir: pathlib.Path, attempt: str, check: Callable[[], None], seen_s: float = _SEEN_S
) -> bool:
    """Whether this is the directory that another process has marked with that attempt.

    Args:
        workdir: the directory.
        attempt: as of `mark`.
        check: called now and then; raises to end the wait.
        seen_s: seconds in which the mark may come.
    """

    def has_mark() -> bool:
        with contextlib.suppress(OSError, ValueError):
            return (workdir / _ATTEMPT).read_text() == attempt
        return False

    return _is_seen(has_mark, check, seen_s)


def is_there(directory: pathlib.Path, check: Callable[[], None], seen_s: float = _SEEN_S) -> bool:
    """Whether a directory that another process has just made is there.

    Args:
        directory: as that process called it.
        check: called now and then; raises to end the wait.
        seen_s: seconds in which it may come.
    """
    return _is_seen(directory.is_dir, check, seen_s)


def _is_seen(look: Callable[[], bool], check: Callable[[], None], seen_s: float) -> bool:
    """Whether something is seen in time."""
    deadline = time.monotonic() + seen_s
    while True:
        check()
        if look():
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_S)
