"""The program of a sampler process; `train` starts it and hands it one end of a private pipe.

Not for use by hand: it needs that pipe and the snapshots of a running learner.
"""

import sys

from asympo_jax import experiment
from asympo_jax.processes import end_with_learner, read_arguments, remove_left_behind
from asympo_jax.runtime import placement
from asympo_jax.runtime.compilation import keep_compiled
from asympo_jax.runtime.local import LocalClient
from asympo_jax.runtime.sampler import SamplerLoop


def main() -> int:
    """Pins itself, connects, samples until the learner closes the pipe."""
    given = read_arguments(__doc__)
    end_with_learner(given)
    client = LocalClient(given.fd, given.submit_fd)
    sampler = given.config.sampler
    # XLA sizes its thread pool when the first array is made: pin before.
    placement.pin(placement.sampler_cores(given.cores, given.index, sampler.cores))
    keep_compiled(given.config.compilation_cache)
    try:
        placement.start_backend("sampler.platform", sampler.platform)
        parts = given.build_parts()
        loop = SamplerLoop(experiment.make_sampler(given.config, parts, given.store), client)
        loop.run(client.fail)
    except placement.NoDevice as error:
        client.fail(str(error))
        return 1
    except Exception as error:
        client.fail(f"{type(error).__name__}: {error}")
        raise
    remove_left_behind(given.store.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
