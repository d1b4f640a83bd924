"""How a command ends: the exit codes, and the two ways in which a run breaks."""

FAILED = 1
REFUSED = 2
DIVERGED = 3
INTERRUPTED = 130
TERMINATED = 143


class RunFailed(Exception):
    """A run that ended without its result; the message is one sentence of cause."""

    exit_code = FAILED


class Diverged(RunFailed):
    """One whose numbers are no longer finite, as another attempt would find again."""

    exit_code = DIVERGED
