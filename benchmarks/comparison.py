"""What the command lines of the comparisons share: options, sides, ceilings, the printed record."""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import paired
import tables
from counts import Needed
from paired import Measured, Plan, Side
from workload import TINY, Workload

CEILINGS = ("matmul", "dram", "cache")


def parser(document: str | None, peers: Sequence[str]) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    made = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--peers", default="", help=f"of {', '.join(peers)}; none: ours alone")
    made.add_argument("--repeats", type=positive, default=5, help="rounds (5)")
    made.add_argument("--vocab_size", type=positive, help="of the decoder (4096)")
    made.add_argument("--num_prompts", type=positive, help="in a batch (8)")
    made.add_argument("--group_size", type=positive, help="responses to each prompt (8)")
    made.add_argument("--response_tokens", type=positive, help="of every response (96)")
    made.add_argument("--alone", action="store_true", help="one side after the other")
    made.add_argument("--tiny", action="store_true", help="a decoder that says nothing, for tests")
    made.add_argument("--deadline_s", type=float, default=1800.0, help="of any wait (1800)")
    made.add_argument("--logs", help="folder for what the sides write (a temporary one)")
    return made


def workload(arguments: argparse.Namespace) -> Workload:
    """The workload that the options describe."""
    fields = ("vocab_size", "num_prompts", "group_size", "response_tokens")
    given = {name: getattr(arguments, name, None) for name in fields}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Workload(**(TINY if arguments.tiny else {}) | chosen)


def peers(arguments: argparse.Namespace, allowed: Sequence[str]) -> list[str]:
    """The peers that were asked for; ends the program where that cannot be."""
    try:
        return paired.peers_of(arguments.peers, allowed)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def positive(text: str) -> int:
    """A whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be 1 or more")
    return value


def integers(text: str) -> list[int]:
    """Whole numbers from 1 up, separated by commas."""
    return [positive(part) for part in text.split(",")]


def measure(
    sides: Sequence[Side], work: Workload, arguments: argparse.Namespace, warmups: int = 2
) -> dict[str, Measured]:
    """Measures the sides on one decoder, which all of them load."""
    with tempfile.TemporaryDirectory() as folder, paired.model_directory(work) as written:
        logs = pathlib.Path(arguments.logs or folder)
        logs.mkdir(parents=True, exist_ok=True)
        plan = Plan(arguments.repeats, warmups, arguments.alone, arguments.deadline_s, logs)
        measured = paired.measure(sides, written, plan)
    tables.check_same_model(measured)
    return measured


def compare(
    name: str,
    sides: Sequence[Side],
    work: Workload,
    arguments: argparse.Namespace,
    needed: Needed | None,
) -> int:
    """Measures the sides and the ceilings, prints a table and a line of JSON.

    Args:
        name: of the benchmark.
        sides: the first is ours, which the others are compared with.
        work: what all do.
        arguments: of the command line.
        needed: what the work needs at least; None where that is not counted.

    Returns:
        The exit code: 1 if a side failed.
    """
    machine = tables.machine()
    options = {"divided_by": 64 if arguments.tiny else 1}
    ceilings = [Side(task, "ceilings", task, options) for task in CEILINGS] if needed else []
    measured = measure([*sides, *ceilings], work, arguments)
    reached = ceiling_rows(measured, needed, sides) if needed else {}
    found = {s.name: measured[s.name] for s in sides}
    table = tables.rows(found, sides[0].name, arguments.alone)
    tables.print_table(table)
    print_reached(reached)
    record = {
        "benchmark": name,
        "workload": dataclasses.asdict(work),
        "alone": arguments.alone,
        "sides": table,
        "ceilings": reached,
        "machine": machine,
    }
    print(json.dumps(record))
    return int(any(one.failure for one in measured.values()))


def ceiling_rows(
    measured: Mapping[str, Measured], needed: Needed, sides: Sequence[Side]
) -> dict[str, Any]:
    """The ceilings, and which fraction of each every side reached."""
    ceilings = {name: measured[name].per_s for name in CEILINGS if measured[name].seconds}
    found: dict[str, Any] = {"needed": dataclasses.asdict(needed), "per_s": ceilings, "reached": {}}
    for side in sides:
        if not measured[side.name].seconds:
            continue
        median_s = measured[side.name].tokens / measured[side.name].per_s
        amounts = {"matmul": needed.flops, "dram": needed.bytes, "cache": needed.bytes}
        found["reached"][side.name] = {
            name: amounts[name] / median_s / most
            for name, most in ceilings.items()
            if amounts[name]
        }
    return found


def print_reached(found: Mapping[str, Any]) -> None:
    """The ceilings and fractions as lines."""
    if not found:
        return
    units = {"matmul": "GFLOP/s of matrix products", "dram": "GB/s copied in memory"}
    units["cache"] = "GB/s copied in cache"
    needed = found["needed"]
    print(f"needed at least: {needed['flops'] / 1e9:.1f} GFLOP, {needed['bytes'] / 1e9:.2f} GB")
    for name, per_s in found["per_s"].items():
        reached = found["reached"].items()
        parts = [f"{side} {100 * row[name]:.0f} %" for side, row in reached if name in row]
        text = ", ".join(parts) or "not counted"
        print(f"ceiling: {per_s / 1e9:.0f} {units[name]}; reached: {text}")


Variants = Callable[[str], list[Side]]


def sides_of(ours: Sequence[Side], names: Sequence[str], variants: Variants) -> list[Side]:
    """Ours, then every variant of every peer."""
    return [*ours, *(side for name in names for side in variants(name))]


def micro_batches(arguments: argparse.Namespace, work: Workload) -> list[int]:
    """Sequences at once of the peers' learners: multiples of a group, which Tunix never splits.

    Raises:
        SystemExit: one is not, or does not divide the batch.
    """
    all_at_once = work.num_sequences
    if arguments.micro_batches is None:
        return sorted({work.group_size, all_at_once})
    sizes = integers(arguments.micro_batches)
    for size in sizes:
        if size % work.group_size or all_at_once % size:
            print(
                f"--micro_batches={size}: must be a multiple of the group size {work.group_size} "
                f"and divide the {all_at_once} sequences",
                file=sys.stderr,
            )
            raise SystemExit(2)
    return sizes
