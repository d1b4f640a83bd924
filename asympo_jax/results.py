"""The compact results of a sweep: one JSON file an objective, and one on how they came about.

Of each run: the name of its directory, the fields that were varied, accuracy and some metrics at
every evaluation (each metric as its mean over the updates since the one before), the final result,
and the failure if it had one.
"""

import json
import math
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from asympo_jax import laboratory, workdirs
from asympo_jax.runtime.metrics import read_metrics
from asympo_jax.sweep_config import Case

ABOUT = "laboratory.json"
_METRICS = (
    "lag/mean",
    "lag/max",
    "reward/mean",
    "nll/positive",
    "nll/negative",
    "balance/positive",
    "balance/negative",
    "balance/net",
    "grad/norm",
    "policy/entropy",
    "weight/ess",
    "weight/max",
    "weight/floor_share",
    "ratio/ess",
    "clip/high",
    "clip/low",
    "clip/cap",
    "response/length",
)
_SIGNIFICANT_DIGITS = 4


def write(
    cases: Sequence[Case], workdir: pathlib.Path, sweep: Mapping[str, Any], is_new: bool
) -> pathlib.Path:
    """Writes the results of all runs that have ended; returns their directory.

    Args:
        cases: of the sweep.
        workdir: of the sweep.
        sweep: its config.
        is_new: whether a run has just ended: the results are of this machine and these versions.
    """
    out = workdir / "results"
    out.mkdir(exist_ok=True)
    by_objective: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        runs = by_objective.setdefault(case.config.objective.name, [])
        record = _record(case, workdir)
        runs += [] if record is None else [record]
    for objective, runs in by_objective.items():
        path = out / f"{objective.replace(':', '.')}.json"
        if runs or path.exists():
            _write_json(path, {"objective": objective, "runs": runs})
    about = {
        "command": shlex.join(["python", "-m", "asympo_jax.sweep", *_arguments()]),
        "axes": sweep["axes"],
        "settings": sweep["settings"],
        "base": sweep["base"],
    }
    before = json.loads((out / ABOUT).read_text()) if (out / ABOUT).exists() else {}
    made = _made() if is_new or "versions" not in before else before
    _write_json(out / ABOUT, about | {name: made[name] for name in ("machine", "versions")})
    return out


def _made() -> dict[str, Any]:
    """On what, and with what."""
    packages = ("asympo_jax", "jax", "jaxlib", "optax")
    return {
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
    }


def _record(case: Case, workdir: pathlib.Path) -> dict[str, Any] | None:
    """What is kept of a run; None while it has not ended."""
    values = {
        "run": case.name,
        "values": dict(case.values),
        "learning_rate": case.config.optimizer.learning_rate,
        "num_updates": case.config.num_updates,
    }
    result = laboratory.result(workdir, case)
    failure_path = laboratory.job_file(workdir, case, "failure")
    if result is not None:
        ending = {name: result[name] for name in ("parameters_sha256", "wall_s")}
        ending = {"failure": None, **ending}
    elif failure_path.exists():
        failure = json.loads(failure_path.read_text())
        ending = {"failure": failure["cause"], "diverged": failure["diverged"]}
    else:
        return None
    metrics_path = workdir / case.name / "metrics.jsonl"
    lines = read_metrics(metrics_path) if metrics_path.exists() else []
    evaluated = [line for line in lines if line.get("eval/accuracy") is not None]
    updates = [line["update"] for line in evaluated]
    means = {name: _means(lines, updates, name) for name in _METRICS}
    return {
        **values,
        **ending,
        "update": updates,
        "eval/accuracy": [line["eval/accuracy"] for line in evaluated],
        **{name: found for name, found in means.items() if found},
    }


def _means(
    lines: Sequence[Mapping[str, Any]], updates: Sequence[int], name: str
) -> list[float | None]:
    """Mean of a metric over the updates up to each evaluation, since the one before."""
    means = []
    before = -1
    for update in updates:
        values = [
            line[name]
            for line in lines
            if before < line["update"] <= update and line.get(name) is not None
        ]
        mean = sum(values) / len(values) if values else math.nan
        means.append(float(f"{mean:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(mean) else None)
        before = update
    return means if any(mean is not None for mean in means) else []


def _arguments() -> list[str]:
    """The command line's arguments, where they do not tell of this machine's folders."""
    found: list[str] = []
    for argument in sys.argv[1:]:
        if found and found[-1] == "--workdir":
            found[-1] = "--workdir=DIR"
        else:
            is_it = argument.startswith("--workdir=")
            found.append("--workdir=DIR" if is_it else argument)
    return found


def _cpu() -> str:
    """Name of the processor, if the system tells it."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _write_json(path: pathlib.Path, data: Any) -> None:
    """A file with one line for each list of numbers."""
    text = json.dumps(data, indent=1)
    workdirs.replace(path, _on_one_line(text) + "\n")


def _on_one_line(text: str) -> str:
    """JSON text whose innermost lists stand on one line."""
    lines: list[str] = []
    open_list: list[str] | None = None
    for line in text.splitlines():
        stripped = line.strip()
        if open_list is None and stripped.endswith("["):
            open_list = [line]
        elif open_list is not None:
            if stripped.endswith(("{", "[")):  # not an innermost list
                lines += open_list
                open_list = [line] if stripped.endswith("[") else None
                if open_list is None:
                    lines.append(line)
                continue
            open_list.append(stripped)
            if stripped.startswith("]"):
                lines.append("".join([open_list[0], " ".join(open_list[1:-1]), open_list[-1]]))
                open_list = None
        else:
            lines.append(line)
    return "\n".join(lines)
