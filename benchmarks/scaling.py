"""How cost grows: time and peak memory of ours by batch, response length, vocabulary, group size.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --axes=vocabulary --repeats=3

Along each axis the sampler and the learner are run at four or five sizes, all else at the common
shape, each size in a process of its own, one after the other. The exponent is the slope of a line
through the logarithms of the larger half of the sizes: 1 is proportional, less is cheaper than
that. `group` keeps 64 responses and shares them among fewer prompts; what it shows is the prompt
that they share.
Writes the curves of each axis as it has them, beside those of other axes that an earlier run left,
and a picture of all; prints a table and, as its last line, JSON.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

import comparison
import numpy as np
import paired
import tables
from paired import OURS, Side
from workload import Workload

TASKS = ("sampler", "learner")
PICTURE = paired.HERE.parent / "docs" / "scaling.png"

# Sizes along each axis, and what a size changes of the common shape.
AXES: dict[str, tuple[str, list[int]]] = {
    "batch": ("sequences", [8, 16, 32, 64, 128]),
    "response": ("tokens of a response", [24, 48, 96, 192, 384]),
    "vocabulary": ("tokens", [1024, 4096, 16_384, 65_536, 151_936]),
    "group": ("responses to a prompt", [2, 4, 8, 16, 32]),
}


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", default=",".join(AXES), help=f"of {', '.join(AXES)}")
    parser.add_argument("--repeats", type=comparison.positive, default=3, help="rounds (3)")
    parser.add_argument(
        "--picture", default=str(PICTURE), help="where it is drawn, the curves beside it as JSON"
    )
    parser.add_argument("--tiny", action="store_true", help="few small sizes, for tests")
    arguments = parser.parse_args()
    axes = arguments.axes.split(",")
    if unknown := sorted(set(axes) - set(AXES)):
        parser.error(f"--axes={unknown[0]}: must be of {', '.join(AXES)}")
    arguments.alone, arguments.deadline_s, arguments.logs = False, 1800.0, None
    machine, found = tables.machine(), {}
    picture = pathlib.Path(arguments.picture)
    curves = picture.with_suffix(".json")
    if curves.exists():
        found = json.loads(curves.read_text())
    for axis in axes:
        found[axis] = {task: curve(axis, task, arguments) for task in TASKS}
        for task in TASKS:
            print_curve(axis, task, found[axis][task])
        curves.write_text(json.dumps(found, indent=1) + "\n")
    draw({axis: found[axis] for axis in AXES if axis in found}, picture)
    print(json.dumps({"benchmark": "scaling", "curves": found, "machine": machine}))
    return 0


def sized(axis: str, size: int, base: Workload) -> Workload:
    """The workload of one size."""
    if axis == "vocabulary":
        return dataclasses.replace(base, vocab_size=size)
    if axis == "response":
        return dataclasses.replace(base, response_tokens=size)
    if axis == "group":
        prompts = base.num_sequences // size
        return dataclasses.replace(base, group_size=size, num_prompts=prompts)
    group = min(base.group_size, size)
    return dataclasses.replace(base, group_size=group, num_prompts=size // group)


def curve(axis: str, task: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and bytes by size, and the exponents."""
    base = comparison.workload(argparse.Namespace(tiny=arguments.tiny))
    sizes = [2, 4] if arguments.tiny else AXES[axis][1]
    if arguments.tiny and axis == "vocabulary":
        sizes = [32, 64]
    seconds, peaks = [], []
    for size in sizes:
        work = sized(axis, size, base)
        options = {"micro_batch": min(8, work.num_sequences)} if task == "learner" else {}
        side = Side(f"{axis} {size} {task}", OURS, task, options)
        measured = comparison.measure([side], work, arguments)[side.name]
        assert measured.failure is None, measured.failure
        seconds.append(measured.tokens / measured.per_s)
        peaks.append(measured.peak_bytes)
    return {
        "sizes": sizes,
        "seconds": seconds,
        "peak_bytes": peaks,
        "time_exponent": exponent(sizes, seconds),
        "memory_exponent": exponent(sizes, peaks),
    }


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of the logarithms over the larger half of the sizes, at least two of them."""
    kept = max(2, (len(sizes) + 1) // 2)
    slope, _ = np.polyfit(np.log(sizes[-kept:]), np.log(values[-kept:]), 1)
    return float(slope)


def print_curve(axis: str, task: str, found: dict[str, Any]) -> None:
    """One curve as lines."""
    print(f"\n{task} by {axis} ({AXES[axis][0]})")
    for size, seconds, peak in zip(
        found["sizes"], found["seconds"], found["peak_bytes"], strict=True
    ):
        print(f"{size:>12,}{1e3 * seconds:>12,.0f} ms{peak / 1e9:>10.2f} GB")
    print(f"{'exponent':>12}{found['time_exponent']:>12.2f}   {found['memory_exponent']:>10.2f}")


def draw(found: dict[str, Any], path: pathlib.Path) -> None:
    """Time above, memory below, a column an axis, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, plots = pyplot.subplots(
        2, len(found), figsize=(3.4 * len(found), 5.6), squeeze=False, sharey="row"
    )
    for column, (axis, tasks) in enumerate(found.items()):
        for task, one in tasks.items():
            marker = "o" if task == "sampler" else "s"
            for row, (key, scale, name) in enumerate(
                [("seconds", 1.0, "time_exponent"), ("peak_bytes", 1e-9, "memory_exponent")]
            ):
                values = [scale * value for value in one[key]]
                label = f"{task}, exponent {one[name]:.2f}"
                plots[row, column].loglog(one["sizes"], values, marker=marker, label=label)
        for row in range(2):
            plot = plots[row, column]
            sizes = next(iter(tasks.values()))["sizes"]
            plot.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
            plot.minorticks_off()
            plot.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            plot.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            plot.grid(alpha=0.3)
            plot.legend(fontsize=7, frameon=False)
        plots[0, column].set_title(f"by {axis}", fontsize=10)
        plots[1, column].set_xlabel(AXES[axis][0], fontsize=8)
    plots[0, 0].set_ylabel("seconds")
    plots[1, 0].set_ylabel("peak memory, GB")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
