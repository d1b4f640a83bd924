"""How near asynchronous runs come to the ideal pipeline, and what it costs to publish a snapshot.

    python benchmarks/pipeline.py
    python benchmarks/pipeline.py --width=128 --repeats=5
    python benchmarks/pipeline.py --skip_sweep

The ideal time of an update is the larger of the time that a sampler alone needs for its groups and
the time that a learner alone needs to train on them. Both are measured twice, in processes of their
own on the cores that they have in a run: each alone, and both at work at the same time but not on
each other's results (contention: caches, memory, the kernel). Then real runs of `train`, in turns,
of the shapes of configs/arithmetic.py from random parameters: asynchronous at lag 2 with a queue of
one batch and one sampler on its own core, and the synchronous loop, which has the learner's core
alone; windows of updates in which a program was compiled are left out. A published snapshot is
measured in one learner that publishes in every second block of ten updates, each block beside those
around it, also in CPU time, which other work disturbs less. Last, time of an update by lag and
number of samplers with the default queue. Everything is a median over the repeats. Prints a table
and, as its last line, JSON.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from typing import Any

import pipeline_roles
import tables

from asympo_jax.runtime.metrics import read_metrics

LAGS, SAMPLERS = (0, 1, 2, 4, 8), (1, 2)
SETTLED = 3  # updates after which a run is in its steady state
UPDATES, WINDOW = 83, 20  # of a real run, and those that its metrics are means over


def main() -> None:
    """Measures and prints; with `--role` it is one of the processes that are measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=64, help="of the decoder (64)")
    parser.add_argument("--prompts", type=int, default=32, help="prompts an update (32)")
    parser.add_argument("--response", type=int, default=24, help="longest response (24)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a measurement alone (15)")
    parser.add_argument("--repeats", type=int, default=3, help="of everything (3)")
    parser.add_argument("--skip_sweep", action="store_true", help="no table by lag and samplers")
    parser.add_argument("--role", choices=("sampler", "learner"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        pipeline_roles.SERVE[arguments.role](arguments)
        return
    rows = measure(arguments)
    for name, value in rows.items():
        print(f"{name:44}{value:10.4f}" if isinstance(value, float) else f"{name:44}{value}")
    print(json.dumps({"benchmark": "pipeline", **rows, "machine": _machine()}))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements, medians; times in seconds an update."""
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    with _Role("sampler", arguments) as sampler, _Role("learner", arguments) as learner:
        for _ in range(arguments.repeats):
            add("alone/sampler_s", sampler.measured("publish")[0])
            add("alone/learner_s", learner.measured("publish")[0])
            costs = zip(("cost", "cost_in_cpu_time"), learner.measured("in turn"), strict=True)
            for name, cost in costs:
                add(f"snapshot/{name}", cost)
            sampler.begin("publish")
            learner.begin("publish")
            add("together/sampler_s", sampler.end()[0])
            add("together/learner_s", learner.end()[0])
    for _ in range(arguments.repeats):
        one_core: dict[str, Any] = {"sampler.cores": 1, "queue.capacity": arguments.prompts}
        own, update_s, _ = _run(arguments, lag=2, **one_core)
        add("asynchronous/update_s", update_s)
        add("asynchronous/ideal_fraction_of_the_run", own)
        add("synchronous/update_s", _run(arguments, lag=2, **{"runtime.name": "sync"})[1])
        add(
            "asynchronous/synchronous",
            found["asynchronous/update_s"][-1] / found["synchronous/update_s"][-1],
        )
        for lag in () if arguments.skip_sweep else LAGS:
            for count in SAMPLERS:
                # Leases of one size, small enough to keep the most samplers busy at lag 0.
                leases = {"sampler.prompts_per_lease": arguments.prompts // max(SAMPLERS)}
                given = {"sampler.count": count, **leases}
                _, update_s, tokens = _run(arguments, lag=lag, **given)
                add(f"lag {lag}, samplers {count}: update_s", update_s)
                add(f"lag {lag}, samplers {count}: tokens_per_s", tokens)
    rows: dict[str, Any] = {name: statistics.median(values) for name, values in found.items()}
    for kind in ("alone", "together"):
        ideal_s = max(rows[f"{kind}/sampler_s"], rows[f"{kind}/learner_s"])
        rows[f"ideal_fraction/{kind}"] = ideal_s / rows["asynchronous/update_s"]
    return rows


def _run(arguments: argparse.Namespace, **fields: Any) -> tuple[float, float, float]:
    """A real run: its own ideal fraction, seconds an update, trained tokens a second."""
    with tempfile.TemporaryDirectory() as directory:
        given = {**pipeline_roles.shape(arguments), "num_updates": UPDATES, **fields}
        flags = [f"--config.{name}={value}" for name, value in given.items()]
        command = [sys.executable, "-m", "asympo_jax.train", f"--workdir={directory}/run", *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        workdir = pathlib.Path(directory) / "run"
        result = json.loads((workdir / "result.json").read_text())
        lines = {line["update"]: line for line in read_metrics(workdir / "metrics.jsonl")}
    # Of the steady state: a batch of another size stops the learner while its program is made.
    made = {update: _programs(line) for update, line in lines.items()}
    last = range(WINDOW + SETTLED, UPDATES - 1)
    windows = [lines[update] for update in last if made[update] == made[update - WINDOW]]
    if not windows:
        sys.exit("programs were compiled all the time; run it again")
    update_s = statistics.median(line["time/update_s"] for line in windows)
    tokens = statistics.median(line["throughput/trained_tokens_per_s"] for line in windows)
    return result["pipeline/ideal_fraction"], update_s, tokens


def _programs(line: dict[str, Any]) -> float:
    """How many programs the learner had compiled, or found, until then."""
    return line.get("compile/count", 0.0) + line.get("compile/found", 0.0)


class _Role:
    """A process that samples, or trains, for some seconds whenever it is asked."""

    def __init__(self, role: str, arguments: argparse.Namespace):
        given = [
            f"--{name}={getattr(arguments, name)}" for name in ("width", "prompts", "response")
        ]
        command = [sys.executable, __file__, f"--role={role}", *given]
        self._process = subprocess.Popen(
            [*command, f"--seconds={arguments.seconds}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self.measured("publish")  # compilation

    def __enter__(self) -> "_Role":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def begin(self, side: str) -> None:
        """Lets it work."""
        assert self._process.stdin is not None
        self._process.stdin.write(side + "\n")

    def end(self) -> tuple[float, float]:
        """Waits for what it measured: of the clock, and of CPU time."""
        assert self._process.stdout is not None
        wall, cpu = self._process.stdout.readline().split()
        return float(wall), float(cpu)

    def measured(self, side: str) -> tuple[float, float]:
        """Lets it work; median seconds an update, or what a snapshot adds to one as a share."""
        self.begin(side)
        return self.end()


def _machine() -> dict[str, Any]:
    """Machine and versions."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib")}
    return tables.machine() | versions


if __name__ == "__main__":
    main()
