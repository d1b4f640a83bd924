"""Keeps a run at work while a monkey breaks parts of it, and checks all along that nothing is lost.

    python benchmarks/soak.py --minutes=20
    python benchmarks/soak.py --minutes=5 --seed=1 --keep=DIR --skip_reference

The training command works on a tiny model with two samplers and an evaluator, in ticket order, with
a reward and an objective that fail now and then (soak_parts.py). Whenever it ends, it is started
again with the same command. Every few seconds a fault is injected (soak_faults.py); all the time
the promises are checked from outside, by files and /proc alone (soak_checks.py). At the end the run
is stopped, made a little longer to its end, and done again by one process without any fault: both
must have trained on the same tickets and have the same parameters, bit for bit. Linux only. Prints
a table and, as its last line, JSON; the exit code is 1 if anything was violated.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from importlib import metadata
from typing import Any

import soak_faults
import soak_watch
import tables
from soak_run import ALONE, LOCAL, Places

_FOREVER = 10_000_000  # updates
_MORE_UPDATES = 12  # beyond what is on its way when the soak ends
_END_S = 300.0


def main() -> None:
    """Soaks, prints, and ends with 1 if anything was violated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="with the monkey (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the monkey (0)")
    parser.add_argument("--keep", help="new directory to work in, and to keep")
    parser.add_argument("--skip_reference", action="store_true", help="no second run to compare")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        if arguments.keep and pathlib.Path(arguments.keep).exists():
            parser.error(f"--keep={arguments.keep}: exists, name a new directory")
        folder = pathlib.Path(arguments.keep or tempfile.mkdtemp(prefix="soak-"))
        folder.mkdir(parents=True, exist_ok=True)
        if not arguments.keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ram = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        snapshots = pathlib.Path(tempfile.mkdtemp(prefix="soak-", dir=ram))
        stack.callback(shutil.rmtree, snapshots, ignore_errors=True)
        try:
            report = soak(arguments, folder, snapshots)
        except KeyboardInterrupt:
            sys.exit(130)
    for violation in report["violations"]:
        print(f"VIOLATION {violation}")
    sys.exit(1 if report["violations"] else 0)


def soak(
    arguments: argparse.Namespace, folder: pathlib.Path, snapshots: pathlib.Path
) -> dict[str, Any]:
    """Soaks; prints a table and JSON, and returns what is in it."""
    places = Places(folder / "run", snapshots, folder / "programs")
    started = time.monotonic()
    with contextlib.closing(soak_watch.Soak(places, {"num_updates": _FOREVER, **LOCAL})) as soaked:
        _play(soaked, arguments.seed, started + 60 * arguments.minutes)
        minutes = (time.monotonic() - started) / 60
        num_updates = 0
        if not soaked.is_stuck:
            soaked.stop()
            num_updates = soaked.journal.updates + _MORE_UPDATES
            soaked.prolong(num_updates)
            soaked.finish(_END_S)
    report = {"minutes": round(minutes, 2), **soaked.counts.report(soaked.journal)}
    report["violations"] = soaked.violations
    if num_updates and not arguments.skip_reference:
        other = Places(folder / "reference", snapshots, folder / "programs")
        fields = {"num_updates": num_updates, **ALONE}
        with contextlib.closing(soak_watch.Soak(other, fields)) as reference:
            reference.finish(_END_S + 120 * arguments.minutes)
        found = [*reference.violations, *soak_watch.differences(soaked, reference)]
        report["violations"] = soaked.violations + found
        report["same parameters"] = soaked.sha is not None and soaked.sha == reference.sha
    for name, value in report.items():
        print(f"{name:32}{len(value) if name == 'violations' else value}")
    print(json.dumps({"benchmark": "soak", "seed": arguments.seed, **report, **_machine()}))
    return report


def _play(soaked: soak_watch.Soak, seed: int, deadline: float) -> None:
    """Lets the monkey play until the time is over, or the run is stuck."""
    rng = random.Random(seed)  # of the victims
    for pause_s, kind in soak_faults.plan(seed):
        soaked.watch(min(pause_s, deadline - time.monotonic()))
        if soaked.is_stuck or time.monotonic() >= deadline:
            return
        if soak_faults.inject(kind, soaked, rng):
            soaked.counts.inject(kind, time.monotonic())


def _machine() -> dict[str, Any]:
    """Machine and versions."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "orbax-checkpoint")}
    return tables.machine() | versions


if __name__ == "__main__":
    main()
