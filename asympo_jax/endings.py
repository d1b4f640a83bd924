"""How a command ends: the exit codes, and the ways in which a run ends without its result."""

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

    exit_code = STOPPED
