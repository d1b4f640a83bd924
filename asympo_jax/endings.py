"""How a command ends: the exit codes, and the ways in which a run ends without its result."""

import contextlib
from collections.abc import Iterator

import jax

FAILED = 1
REFUSED = 2
DIVERGED = 3
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the user is invited to retry
INTERRUPTED = 130
TERMINATED = 143


class RunFailed(Exception):
    """A run that ended without its result; the message is one sentence of cause."""

    exit_code = FAILED


class Diverged(RunFailed):
    """One whose numbers are no longer finite, as another attempt would find again."""

    exit_code = DIVERGED


class Stopped(RunFailed):
    """One that was asked to end, and has saved all that it did."""

    exit_code, verb = STOPPED, "stopped as asked"


class Interrupted(RunFailed):
    """One that a person interrupted, and that has saved all that it did."""

    exit_code, verb = INTERRUPTED, "interrupted"


class InUse(RunFailed):
    """One that did not begin, as another has its directory: later the same may work."""

    exit_code = STOPPED


class NotStarted(RunFailed):
    """One that did not begin, as the machines that it was given are not fit for it."""

    exit_code = REFUSED


@contextlib.contextmanager
def failures(*kinds: type[Exception], advice: str = "") -> Iterator[None]:
    """Within it what is no fault of this program becomes `RunFailed`, in one sentence.

    Args:
        kinds: exceptions whose own words are that sentence; memory that is full is, too.
        advice: to whom the memory is full.
    """
    try:
        yield
    except kinds as failure:
        raise RunFailed(str(failure)) from failure
    except (MemoryError, jax.errors.JaxRuntimeError) as failure:
        if isinstance(failure, MemoryError) or "RESOURCE_EXHAUSTED" in str(failure):
            words = (str(failure).splitlines() or ["no words on how much"])[0]
            raise RunFailed(f"out of memory{advice}: {words}") from failure
        raise
