"""A disk without room, for what a test writes."""

import contextlib
import resource


@contextlib.contextmanager
def no_room(num_bytes: int = 0):
    """Within it no file of this process can grow beyond some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
