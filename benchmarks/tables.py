"""Ratios, tables and records of what `paired` measured."""

import contextlib
import os
import pathlib
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from paired import Measured


def check_same_model(measured: Mapping[str, Measured]) -> None:
    """Asserts that all sides have one number of parameters and give one check.

    The check is the mean log-prob of a response that every side scored with its own code.
    """
    ready = {name: one.ready for name, one in measured.items() if one.ready}
    counts = {name: r["num_parameters"] for name, r in ready.items() if r["num_parameters"]}
    assert len(set(counts.values())) <= 1, f"sides of other sizes: {counts}"
    checks = {name: r["facts"]["check"] for name, r in ready.items() if "check" in r["facts"]}
    if checks:
        spread = max(checks.values()) - min(checks.values())
        assert spread < 1e-3, f"sides that compute something else: {checks}"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of a single value that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(ours: Measured, other: Measured, alone: bool) -> tuple[float, float, float]:
    """How many times faster ours is a token: quartiles over rounds, or the ratio of medians."""
    scale = ours.tokens / other.tokens
    if alone or len(ours.seconds) != len(other.seconds):
        middle = scale * statistics.median(other.seconds) / statistics.median(ours.seconds)
        return middle, middle, middle
    pairs = zip(ours.seconds, other.seconds, strict=True)
    return quartiles([scale * theirs / own for own, theirs in pairs])


def rows(measured: Mapping[str, Measured], baseline: str, alone: bool) -> dict[str, dict[str, Any]]:
    """What is printed, and kept as JSON, of each side."""
    ours = measured[baseline]
    found: dict[str, dict[str, Any]] = {}
    for name, one in measured.items():
        row: dict[str, Any] = {"failure": one.failure, **one.ready}
        row.pop("event", None)
        if one.seconds:
            row |= {
                "tokens_per_s": one.per_s,
                "median_s": statistics.median(one.seconds),
                "median_cpu_s": statistics.median(one.cpu_s),
                "seconds": one.seconds,
                "tokens": one.tokens,
                "peak_bytes": one.peak_bytes,
            }
            if ours.seconds:
                low, middle, high = ratios(ours, one, alone)
                row |= {"ours_faster": middle, "ours_faster_low": low, "ours_faster_high": high}
            if one.peak_bytes and ours.peak_bytes:
                row["ours_memory"] = ours.peak_bytes / one.peak_bytes
        found[name] = row
    return found


def print_table(found: Mapping[str, Mapping[str, Any]]) -> None:
    """The rows as a table."""
    print(
        f"{'':34}{'tokens/s':>10}{'time':>11}{'ours faster':>22}{'peak':>10}{'ours/peak':>10}",
    )
    for name, row in found.items():
        if "median_s" not in row:
            print(f"{name:34}failed: {row['failure']}")
            continue
        times = f"{row['ours_faster']:.2f}x" if "ours_faster" in row else ""
        spread = f" ({row['ours_faster_low']:.2f} … {row['ours_faster_high']:.2f})" if times else ""
        memory = f"{row['ours_memory']:.2f}" if "ours_memory" in row else ""
        print(
            f"{name:34}{row['tokens_per_s']:>10,.0f}{1e3 * row['median_s']:>8,.0f} ms"
            f"{times + spread:>22}{row['peak_bytes'] / 1e9:>7.2f} GB{memory:>10}"
        )
        if row["failure"]:
            print(f"{'':34}then failed: {row['failure']}")


def machine() -> dict[str, Any]:
    """Where it is measured, and how busy that is before."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    return {
        "cores": os.cpu_count(),
        "processor": processor,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }
