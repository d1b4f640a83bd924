"""Trains, or carries a run on.

    python -m asympo_jax.train --config=configs/arithmetic.py
    python -m asympo_jax.train --config=configs/arithmetic.py --config.lag=64 --workdir=runs/lag64

The same command carries on where it stopped; with a larger num_updates it makes a run longer.
SIGTERM and Ctrl-C save, then stop; a second Ctrl-C stops at once.

Exit codes: 0 done · 1 the run failed, the last line says why · 2 wrong input, nothing was started ·
3 numbers are no longer finite, as they would be again · 75 asked to stop, and everything is saved,
or another run has the workdir, or one of several processes is missing · 130 interrupted ·
143 terminated before it could save. docs/faults.md says what to do after each.

With --distributed the same command on several hosts is one run: docs/sharding.md.
"""

import contextlib

from absl import flags

from asympo_jax import cluster, command, following, hosts, run_names, training
from asympo_jax.config import resolve
from asympo_jax.progress import say

_TIMEOUT_S = 300.0

_CONFIG = command.define_config_flag()
flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run. Without it, runs/TASK-OBJECTIVE-lagLAG-seedSEED-HASH, with a hash of "
    "the fields that differ from their defaults.",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Train together with the processes that the same command starts on other hosts; Cloud TPU VMs, "
    "Slurm and GKE tell where they are, elsewhere the next three flags do.",
)
_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where all processes meet."
)
_COUNT = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
_INDEX = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.")
_TIMEOUT = flags.DEFINE_float(
    "initialization_timeout_s", None, f"Seconds to wait for all of them; {_TIMEOUT_S:g}."
)


def main() -> None:
    """Checks the config, runs the experiment, says what came out."""
    with contextlib.ExitStack() as stack:
        with command.refusals():
            config = resolve(_CONFIG.value)
            given = command.directory(_WORKDIR) if _WORKDIR.present else None
            workdir = given or run_names.default_workdir(config)
            joined = stack.enter_context(hosts.joined(_cluster()))
            config.learner.mesh.check_processes(joined.count)
        if joined.index:
            with command.refusals():
                following.follow(config, workdir, joined)
            return
        with command.refusals():
            prepared = training.prepare(config, workdir)
        say(f"run: {workdir}" + (", already complete" if prepared.result is not None else ""))
        result = prepared.run(joined)
    command.tell(
        f"{workdir}: {result['updates']} updates, accuracy {result['eval/accuracy']:.3f} sampled, "
        f"{result['eval/accuracy_greedy']:.3f} greedy, "
        f"parameters_sha256 {result['parameters_sha256'][:16]}…, {result['wall_s']:.0f} s\n"
    )


def _cluster() -> cluster.Cluster | None:
    """Where the other processes are; None if there are none.

    Raises:
        ValueError: the flags contradict each other.
    """
    given = {
        "coordinator_address": _ADDRESS.value,
        "num_processes": _COUNT.value,
        "process_id": _INDEX.value,
        "initialization_timeout_s": _TIMEOUT.value,
    }
    names = [f"--{name}" for name, value in given.items() if value is not None]
    is_wanted = _DISTRIBUTED.value or (_DISTRIBUTED.value is None and _ADDRESS.value is not None)
    if not is_wanted:
        if names:
            raise ValueError(f"{names[0]}: is for several processes, add --distributed")
        return None
    timeout_s = _TIMEOUT_S if _TIMEOUT.value is None else _TIMEOUT.value
    return cluster.Cluster(_ADDRESS.value, _COUNT.value, _INDEX.value, timeout_s)


if __name__ == "__main__":
    command.run(main)
