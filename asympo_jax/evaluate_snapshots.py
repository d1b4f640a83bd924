"""The program that evaluates snapshots during training; `train` starts it with a private pipe.

Not for use by hand: it needs that pipe and the snapshots of a running learner. `evaluate` is the
command for checkpoints.
"""

import functools
import sys

from asympo_jax import experiment
from asympo_jax.processes import end_with_learner, read_arguments, remove_left_behind
from asympo_jax.runtime import placement
from asympo_jax.runtime.compilation import keep_compiled
from asympo_jax.runtime.evaluator import EvaluatorLoop
from asympo_jax.sampling import make_place
from asympo_jax.tasks import RewardError


def main() -> int:
    """Pins itself, evaluates what the learner asks for until that closes the pipe."""
    given = read_arguments(__doc__)
    end_with_learner(given)
    loop = EvaluatorLoop(given.fd)
    # XLA sizes its thread pool when the first array is made: pin before.
    placement.pin(given.cores)
    keep_compiled(given.config.compilation_cache)
    try:
        tensor = given.config.sampler.tensor
        placement.start_backend("eval.platform", given.config.eval.platform)
        parts = given.build_parts()
        read_policy = functools.partial(given.store.read_policy, place=make_place(tensor, tensor))
        loop.run(experiment.make_evaluate(given.config, parts), read_policy)
    except placement.NoDevice as error:
        loop.fail(str(error))
        return 1
    except RewardError as error:  # a fault of what others wrote, whose words say all
        loop.fail(f"RewardError: {error}")
        return 1
    except Exception as error:
        loop.fail(f"{type(error).__name__}: {error}")
        raise
    remove_left_behind(given.store.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
