"""The program of a sampler process; `train` starts it and hands it one end of a private pipe.

Not for use by hand: it needs that pipe and the snapshots of a running learner.
"""

import argparse
import sys

from asympo_jax import experiment
from asympo_jax.config import from_plain, read_json, resolve
from asympo_jax.runtime import placement
from asympo_jax.runtime.local import LocalClient
from asympo_jax.runtime.sampler import SamplerLoop
from asympo_jax.runtime.snapshots import SnapshotStore


def main() -> int:
    """Pins itself, connects, samples until the learner closes the pipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="config.json of the run")
    parser.add_argument("--snapshots", required=True, help="directory of the snapshots")
    parser.add_argument("--run_id", required=True, help="identity of the run")
    parser.add_argument("--cores", required=True, help="cores of all samplers, comma-separated")
    parser.add_argument("--index", required=True, type=int, help="number of this sampler")
    parser.add_argument("--fd", required=True, type=int, help="file descriptor of the pipe")
    arguments = parser.parse_args()
    client = LocalClient(arguments.fd)
    config = resolve(from_plain(read_json(arguments.config)))
    shared = [int(core) for core in arguments.cores.split(",")]
    # XLA sizes its thread pool when the first array is made: pin before.
    placement.pin(placement.sampler_cores(shared, arguments.index, config.sampler.cores))
    try:
        placement.start_backend("sampler.platform", config.sampler.platform)
        parts = experiment.build_parts(config)
        store = SnapshotStore(arguments.snapshots, arguments.run_id)
        SamplerLoop(experiment.make_sampler(config, parts, store), client).run()
    except placement.NoDevice as error:
        client.fail(str(error))
        return 1
    except Exception as error:
        client.fail(f"{type(error).__name__}: {error}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
