"""How long the parts of a run took, and what the run came to, by what it left in its workdir."""

import dataclasses
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from asympo_jax.report.times import LEARNER, PUBLISHER, Span, load_times
from asympo_jax.runtime.metrics import read_metrics

WINDOW = 20  # updates that a line of metrics is a mean over
SETTLED = 5  # updates that a run takes to its steady state


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of each part on cores of its own, as often as they were measured."""

    lease: Sequence[float]
    train: Sequence[float]
    publish: Sequence[float]
    evaluate: Sequence[float] = (0.0,)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to; names as in metrics.jsonl."""

    update_s: float
    learner_idle: float
    sampler_idle: float
    ideal_fraction: float


def measured(directory: pathlib.Path, num_cores: int = 1) -> tuple[Times, Outcome, list[int]]:
    """Times of the parts of a run, what it came to, and the last updates of the windows it is of.

    In those windows nothing was compiled.

    Raises:
        ValueError: there is no such window.
    """
    lines = {line["update"]: line for line in read_metrics(directory / "metrics.jsonl")}
    programs = {u: x.get("compile/count", 0) + x.get("compile/found", 0) for u, x in lines.items()}
    windows = [
        u for u in sorted(lines, reverse=True)[1::WINDOW]
        if u > WINDOW + SETTLED and programs.get(u - WINDOW) == programs[u]
    ]  # fmt: skip
    if not windows:
        raise ValueError(f"{directory}: has no {WINDOW} updates in which nothing was compiled")
    inside = {u - back for u in windows for back in range(WINDOW)}
    spans = [span for span in load_times(directory) if span.update in inside]

    leases = [s for s in spans if s.row not in (LEARNER, PUBLISHER)]
    # Where samplers share cores, a lease takes longer than it would alone.
    crowd = sum(map(_seconds, leases)) / _covered_s(leases) / num_cores
    # The first one, before training, compiles.
    evaluations = [lines[u].get("time/evaluation_s", 0.0) for u in inside if u in lines]
    evaluations = [seconds for seconds in evaluations if seconds]
    times = Times(
        lease=[_seconds(s) / max(1.0, crowd) for s in leases],
        train=[_seconds(s) for s in spans if s.what == "train"],
        publish=[_seconds(s) for s in spans if s.what == "publish"],
        evaluate=evaluations or (0.0,),
    )
    names = ("time/update_s", "idle/learner", "idle/sampler", "pipeline/ideal_fraction")
    found = mean_of([Outcome(*(lines[u][name] for name in names)) for u in windows])
    return times, found, windows


def mean_of(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean of each."""
    return Outcome(*map(statistics.mean, zip(*map(dataclasses.astuple, outcomes), strict=True)))


def _seconds(span: Span) -> float:
    return span.end - span.start


def _covered_s(spans: Iterable[Span]) -> float:
    """Seconds in which at least one of the spans was."""
    total, until = 0.0, 0.0
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return total


def format_rows(rows: Iterable[dict[str, Any]]) -> str:
    """A table in Markdown; what was measured, then what was simulated."""
    names = ("update_s", "learner_idle", "sampler_idle", "ideal_fraction")
    text = "| run | times of | seconds an update | error | learner idle | samplers idle | ideal |\n"
    text += "|---|---|---|---|---|---|---|\n"
    for row in rows:
        pairs = [f"{row['measured'][n]:.3f} · {row['simulated'][n]:.3f}" for n in names]
        pairs.insert(1, f"{row['error']:+.1%}")
        text += f"| {row['run']} | {row['times_of']} | {' | '.join(pairs)} |\n"
    return text
