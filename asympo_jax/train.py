"""Trains: `python -m asympo_jax.train --config=configs/arithmetic.py --workdir=DIR`.

The same command on the same workdir carries on where it stopped. SIGTERM saves, then stops.
Exit codes: 0 done · 1 the run failed, the last line says why · 2 wrong input, nothing was started ·
3 numbers are no longer finite, as they would be again · 75 asked to stop, and everything is saved,
or another run has the workdir · 130 interrupted · 143 terminated before it could save.
docs/faults.md says what to do after each.
"""

from absl import flags

from asympo_jax import command, training
from asympo_jax.config import resolve
from asympo_jax.progress import say

_CONFIG = command.define_config_flag()
flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)


def main() -> None:
    """Checks the config, runs the experiment, says what came out."""
    with command.refusals():
        workdir = command.directory(_WORKDIR)
        prepared = training.prepare(resolve(_CONFIG.value), workdir)
    if prepared.result is not None:
        say(f"{workdir}: already complete")
    result = prepared.run()
    command.tell(
        f"{workdir}: {result['updates']} updates, accuracy {result['eval/accuracy']:.3f} sampled, "
        f"{result['eval/accuracy_greedy']:.3f} greedy, "
        f"parameters_sha256 {result['parameters_sha256'][:16]}…, {result['wall_s']:.0f} s\n"
    )


if __name__ == "__main__":
    command.run(main)
