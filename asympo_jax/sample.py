"""The program of a sampler process; `train` starts it and hands it one end of a private pipe.

Not for use by hand: it needs that pipe and the snapshots of a running learner.
"""

import sys

from asympo_jax.processes import end_with_learner, read_arguments, remove_left_behind, sample
from asympo_jax.runtime.local import LocalClient


def main() -> int:
    """Connects, samples until the learner closes the pipe."""
    given = read_arguments(__doc__)
    end_with_learner(given)
    if not sample(given, LocalClient(given.fd, given.submit_fd)):
        return 1
    remove_left_behind(given.store.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
