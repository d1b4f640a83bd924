"""Repeats an experiment over values of its fields.

    python -m asympo_jax.sweep --config=configs/staleness.py --workdir=runs/staleness
    python -m asympo_jax.sweep --config=configs/staleness.py:periodic --workdir=runs/periodic

`--config.base.FIELD=VALUE` changes the experiment, `--config.axes.FIELD="(A, B)"` what is varied.
The same command on the same workdir goes on: what is done is not repeated. Compact results are in
DIR/results after each run; `python -m asympo_jax.report DIR` makes the table and the pictures.
Runs are many: configs/staleness.py says how long its studies took. Ctrl-C and SIGTERM let the runs
at work save and end, which takes checkpoint.grace_s plus 18 s at most; a second one kills them.

Exit codes: 0 done · 1 a run failed · 2 wrong input · 75 another sweep has the workdir ·
130 interrupted · 143 terminated, or the terminal was closed.
"""

import os
import pathlib

from absl import flags

from asympo_jax import command, interrupts, laboratory, results, sweep_config, workdirs
from asympo_jax.endings import RunFailed
from asympo_jax.progress import say
from asympo_jax.runtime import placement

_CONFIG = command.define_config_flag("The config file of a sweep, such as configs/staleness.py.")
flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "Runs at a time. Without it, as many as there are cores.", lower_bound=1
)


def main() -> None:
    """Checks all configs, runs what is missing, writes the compact results."""
    sweep = _CONFIG.value

    def keep(is_new: bool) -> pathlib.Path:
        return results.write(cases, workdir, sweep.to_dict(), is_new)

    with command.refusals():
        workdir = command.directory(_WORKDIR)
        if any(section not in sweep for section in ("base", "axes", "settings")):
            raise ValueError("--config: must be the config of a sweep, with base, axes, settings")
        cases = sweep_config.cases(sweep)
        workdirs.check_writable("workdir", workdir)
        lock = workdirs.lock(workdir)
        lab = laboratory.Laboratory(
            cases,
            workdir,
            _PROCESSES.value or len(placement.available_cores()),
            _environment(workdir),
            say,
            ended=lambda: keep(is_new=True),
        )
    interrupts.allow(lab.end_s + interrupts.END_S)
    with lock, interrupts.cleaning(lab.kill):
        try:
            failed = lab.run()
            out = keep(is_new=False)
        except OSError as error:  # a full disk, a directory that is gone
            raise RunFailed(str(error)) from error
    say(f"results: {out}; python -m asympo_jax.report {out} makes the table and the pictures")
    if failed:
        raise RunFailed(f"{len(failed)} of {len(cases)} runs failed: {', '.join(failed)}")


def _environment(workdir: pathlib.Path) -> dict[str, str]:
    """This process's environment; programs compiled by one run are kept for the others."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str((workdir / "compiled").absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        **os.environ,
    }


if __name__ == "__main__":
    command.run(main)
