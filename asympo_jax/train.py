"""Trains, or carries a run on.

    python -m asympo_jax.train --config=configs/arithmetic.py
    python -m asympo_jax.train --config=configs/arithmetic.py --config.lag=64 --workdir=runs/lag64

The same command carries on where it stopped; with a larger num_updates it makes a run longer.
SIGTERM and Ctrl-C save, then stop; a second Ctrl-C stops at once.

Exit codes: 0 done · 1 the run failed, the last line says why · 2 wrong input, nothing was started ·
3 numbers are no longer finite, as they would be again · 75 asked to stop, and everything is saved,
or another run has the workdir · 130 interrupted · 143 terminated before it could save.
docs/faults.md says what to do after each.
"""

from absl import flags

from asympo_jax import command, run_names, training
from asympo_jax.config import resolve
from asympo_jax.progress import say

_CONFIG = command.define_config_flag()
flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run. Without it, runs/TASK-OBJECTIVE-lagLAG-seedSEED-HASH, with a hash of "
    "the fields that differ from their defaults.",
)


def main() -> None:
    """Checks the config, runs the experiment, says what came out."""
    with command.refusals():
        config = resolve(_CONFIG.value)
        given = command.directory(_WORKDIR) if _WORKDIR.present else None
        workdir = given or run_names.default_workdir(config)
        prepared = training.prepare(config, workdir)
    say(f"run: {workdir}" + (", already complete" if prepared.result is not None else ""))
    result = prepared.run()
    command.tell(
        f"{workdir}: {result['updates']} updates, accuracy {result['eval/accuracy']:.3f} sampled, "
        f"{result['eval/accuracy_greedy']:.3f} greedy, "
        f"parameters_sha256 {result['parameters_sha256'][:16]}…, {result['wall_s']:.0f} s\n"
    )


if __name__ == "__main__":
    command.run(main)
