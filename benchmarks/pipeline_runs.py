"""Holds the simulated pipeline against real runs on this machine.

    python benchmarks/pipeline_runs.py --out=DIR [--json=docs/pipeline_sim.json]

Runs `train` in the shapes of configs/arithmetic.py: two widths, several lags, one sampler and two
that share its core, both orders, with and without evaluation. Each run is then simulated twice:
from the times of its own parts, which says how good the model of the pipeline is, and from those of
the first run of its width, which says what a prediction is worth, other work on the machine
included; how much of that there was is told. A run that is complete in DIR is not done again.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

import pipeline_roles
import tables
from pipeline_sim import compare, format_rows

UPDATES = 48
_LEASES = {
    "sampler.prompts_per_lease": 16
}  # two an update, so that two samplers have work at lag 0
_EVALUATED = {"eval.every_updates": 10, "eval.num_prompts": 128, "eval.process": True}
# The first of each width is the one that the others are predicted from.
RUNS: dict[str, dict[str, Any]] = {
    "64, lag 2": {"lag": 2},
    "64, lag 0": {"lag": 0},
    "64, lag 1": {"lag": 1},
    "64, lag 4": {"lag": 4},
    "64, lag 0, 2 samplers": {"lag": 0, "sampler.count": 2},
    "64, lag 2, 2 samplers": {"lag": 2, "sampler.count": 2},
    "64, lag 2, 2 samplers, completion": {"lag": 2, "sampler.count": 2, "order": "completion"},
    "64, lag 2, evaluated": {"lag": 2, **_EVALUATED},
    "128, lag 2": {"lag": 2},
    "128, lag 0": {"lag": 0},
    "128, lag 4, 2 samplers": {"lag": 4, "sampler.count": 2},
}


def main() -> None:
    """Runs what is not there, compares, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="workdirs go here")
    parser.add_argument("--json", type=pathlib.Path, help="where the numbers are written")
    parser.add_argument("--only", help="runs whose names begin so")
    given = parser.parse_args()
    names = [name for name in RUNS if name.startswith(given.only or "")]
    others = {name: _run(given.out / name, name) for name in names}
    directories = [given.out / name for name in names]
    first = {name.split(",")[0]: given.out / name for name in reversed(names)}
    of_own = compare(directories, lambda own: own)
    of_first = compare(directories, lambda own: first[own.name.split(",")[0]])
    for rows in (of_own, of_first):
        for row in rows:
            row["others_share_of_cores"] = others[row["run"]]
        print(format_rows(rows))
    found = {"own_times": of_own, "times_of_first": of_first, "machine": tables.machine()}
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


def _run(directory: pathlib.Path, name: str) -> float:
    """A run, unless it is there; the share of the machine's cores that others used meanwhile."""
    note = directory.with_suffix(".others")
    if note.exists() and (directory / "result.json").exists():
        return float(note.read_text())
    width = int(name.split(",")[0])
    shape = argparse.Namespace(width=width, prompts=16, response=24)
    fields = {**pipeline_roles.shape(shape), "num_updates": UPDATES, **_LEASES, **RUNS[name]}
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    busy, own, start = _busy_s(), _own_s(), time.monotonic()
    command = [sys.executable, "-m", "asympo_jax.train", f"--workdir={directory}", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    room = (time.monotonic() - start) * (os.cpu_count() or 1)
    share = max(0.0, (_busy_s() - busy) - (_own_s() - own)) / room
    note.write_text(f"{share:.3f}")
    print(f"{name}: others used {share:.0%} of the cores", file=sys.stderr, flush=True)
    return round(share, 3)


def _own_s() -> float:
    """CPU seconds of the runs so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _busy_s() -> float:
    """CPU seconds that the machine's cores have worked, for whomever."""
    user, nice, system, *_ = pathlib.Path("/proc/stat").read_text().split()[1:]
    return sum(map(int, (user, nice, system))) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
