"""Holds the simulated pipeline against real runs on this machine.

    python benchmarks/pipeline_runs.py
    python benchmarks/pipeline_runs.py --out=DIR [--json=docs/pipeline_sim.json]

First the runs of benchmarks/README.md, which `pipeline.py` measured on a quiet machine: each is
simulated from the times of a sampler and of a learner, alone or, where the lag lets them work at
the same time, beside each other.

Then, with --out, runs of its own: `train` in the shapes of configs/arithmetic.py, two widths,
several lags, one sampler and two that share its core, both orders, with and without evaluation.
Each is simulated twice: from the times of its own parts, which says how good the model of the
pipeline is, and from those of the first run of its width, which says what a prediction is worth,
other work on the machine included; how much of that there was is told. A run that is complete in
DIR is not done again.
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
from pipeline_sim import Setup, Simulation, compare
from pipeline_times import Times, format_rows

from asympo_jax.runtime.tickets import Pacing

UPDATES = 48
_EVALUATED = {"eval.every_updates": 10, "eval.num_prompts": 128, "eval.process": True}
# The first of each width is the one that the others are predicted from.
RUNS: dict[str, dict[str, Any]] = {
    "64, lag 2": {"lag": 2},
    "64, lag 0": {"lag": 0},
    "64, lag 1": {"lag": 1},
    "64, lag 4": {"lag": 4},
    "64, lag 8": {"lag": 8},
    "64, lag 2, 2 samplers": {"lag": 2, "sampler.count": 2},
    "64, lag 2, 2 samplers, completion": {"lag": 2, "sampler.count": 2, "order": "completion"},
    "64, lag 2, evaluated": {"lag": 2, **_EVALUATED},
    "128, lag 2": {"lag": 2},
    "128, lag 0": {"lag": 0},
    "128, lag 8": {"lag": 8},
    "128, lag 4, 2 samplers": {"lag": 4, "sampler.count": 2},
}


# As `pipeline.py --width=128` measured them: seconds of an update's groups and of an update, each
# side alone and both at work, of a snapshot; then real runs of 32 prompts an update.
_ALONE_S, _TOGETHER_S, _PUBLISH_S = (0.185, 0.370), (0.210, 0.404), 0.010
_IN_STEP_S, _BESIDE_S = 0.546, 0.388
# Trained tokens a second, by samplers and lag.
_TOKENS_S = {
    1: {0: 7471, 1: 10004, 2: 10420, 4: 10426, 8: 8846},
    2: {0: 7274, 1: 9723, 2: 10931, 4: 9874, 8: 10712},
}
_PROMPTS = 32


def main() -> None:
    """Runs what is not there, compares, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, help="runs of its own, whose workdirs go here")
    parser.add_argument("--json", type=pathlib.Path, help="where the numbers are written")
    parser.add_argument("--only", help="runs whose names begin so")
    given = parser.parse_args()
    quiet = quiet_runs()
    print(format_quiet(quiet))
    if given.out is None:
        return
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
    found = {
        "quiet": quiet,
        "own_times": of_own,
        "times_of_first": of_first,
        "machine": tables.machine(),
    }
    if given.json is not None:
        given.json.write_text(json.dumps(_rounded(found), indent=1) + "\n")


def _rounded(found: Any) -> Any:
    """Five digits of every number."""
    match found:
        case float():
            return float(f"{found:.5g}")
        case dict():
            return {name: _rounded(value) for name, value in found.items()}
        case list():
            return [_rounded(value) for value in found]
    return found


def quiet_runs() -> list[dict[str, Any]]:
    """The runs of benchmarks/README.md: measured and simulated seconds an update."""
    rows = [
        _quiet("one process", _IN_STEP_S, 0, 1, _PROMPTS, in_step=True),
        _quiet("lag 2, a queue of one batch", _BESIDE_S, 2, 1, _PROMPTS, capacity=_PROMPTS),
    ]
    # Tokens of an update, by the run that is not predicted.
    tokens = _TOKENS_S[1][2] * _quiet("", 1.0, 2, 1, _PROMPTS // 2)["simulated_s"]
    for count, by_lag in _TOKENS_S.items():
        for lag, tokens_s in by_lag.items():
            name = f"lag {lag}, samplers {count}"
            if (lag, count) != (2, 1):
                rows.append(_quiet(name, tokens / tokens_s, lag, count, _PROMPTS // 2))
    return rows


def _quiet(
    name: str, measured_s: float, lag: int, count: int, lease: int, **fields: Any
) -> dict[str, Any]:
    """A row of `quiet_runs`: sampler and learner work at the same time where the lag lets them."""
    sample_s, train_s = _TOGETHER_S if lag else _ALONE_S
    pacing = Pacing("ticket", lag, UPDATES, _PROMPTS, lease)
    setup = Setup(
        pacing,
        **{"capacity": max(1, lag) * _PROMPTS, **fields},
        num_samplers=count,
        sampler_cores=1,
    )
    times = Times([sample_s * lease / _PROMPTS], [train_s], [_PUBLISH_S])
    simulated_s = Simulation(setup, times).run().update_s
    error = simulated_s / measured_s - 1
    return {"run": name, "measured_s": measured_s, "simulated_s": simulated_s, "error": error}


def format_quiet(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    text = "| run | measured, s | simulated, s | error |\n|---|---|---|---|\n"
    for row in rows:
        seconds = f"{row['measured_s']:.3f} | {row['simulated_s']:.3f}"
        text += f"| {row['run']} | {seconds} | {row['error']:+.1%} |\n"
    return text


def _run(directory: pathlib.Path, name: str) -> float:
    """A run, unless it is there; the share of the machine's cores that others used meanwhile."""
    note = directory.with_suffix(".others")
    if note.exists() and (directory / "result.json").exists():
        return float(note.read_text())
    width = int(name.split(",")[0])
    shape = argparse.Namespace(width=width, prompts=16, response=24)
    fields = {**pipeline_roles.shape(shape), "num_updates": UPDATES, **RUNS[name]}
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
