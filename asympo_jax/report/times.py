"""Who was at work when: what a run's `timeline.jsonl` says, and as a trace of Chrome's format."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

LEARNER, PUBLISHER = "learner", "publisher"
_SPANS = {"wait": LEARNER, "train": LEARNER, "publish": PUBLISHER}
_SHORTEST_S = 1e-4  # that is drawn; times are written with this precision
_LATEST_S = 1e12
_MICROSECONDS = 1e6


@dataclasses.dataclass(frozen=True)
class Span:
    """One stretch of work, or of waiting.

    Attributes:
        row: who: learner, publisher, or a sampler such as `sampler 0`.
        what: wait, train, publish or sample.
        label: for people.
        update: with which it was written down.
        start: seconds since 1970.
        end: likewise.
    """

    row: str
    what: str
    label: str
    update: int
    start: float
    end: float


def load_times(directory: pathlib.Path) -> list[Span]:
    """The spans of a run in order of their starts, those of a row one after the other.

    There are none where none were written down. A line that is cut short or malformed is left out.
    """
    try:
        texts = (directory / "timeline.jsonl").read_text("utf-8", "replace").split("\n")
    except OSError:
        return []
    spans = sorted((s for text in texts for s in _spans(text)), key=lambda s: s.start)
    ends: dict[str, float] = {}
    found = []
    for span in spans:
        # What was handed in takes a moment to arrive, in which its sampler begins the next.
        start = max(span.start, ends.get(span.row, span.start))
        if span.end - start >= _SHORTEST_S:
            found.append(dataclasses.replace(span, start=start))
            ends[span.row] = span.end
    return found


def rows(spans: Sequence[Span]) -> list[str]:
    """Learner, publisher, then samplers by number."""
    named = {span.row for span in spans}
    samplers = sorted(named - {LEARNER, PUBLISHER}, key=lambda row: int(row.split()[-1]))
    return [row for row in (LEARNER, PUBLISHER) if row in named] + samplers


def chrome_trace(runs: Sequence[tuple[str, Sequence[Span]]]) -> dict[str, Any]:
    """What chrome://tracing and Perfetto open: a process each run, a thread each row.

    Args:
        runs: names and spans; each run's time starts at 0.
    """
    events: list[dict[str, Any]] = []
    for process, (name, spans) in enumerate(runs, start=1):
        place = {"pid": process, "tid": 0}
        events.append({"ph": "M", "name": "process_name", "args": {"name": name}, **place})
        threads = {row: number for number, row in enumerate(rows(spans), start=1)}
        for row, thread in threads.items():
            place = {"pid": process, "tid": thread}
            events.append({"ph": "M", "name": "thread_name", "args": {"name": row}, **place})
            order = {"sort_index": thread}
            events.append({"ph": "M", "name": "thread_sort_index", "args": order, **place})
        begin = spans[0].start if spans else 0.0
        for span in spans:
            start, end = (round((at - begin) * _MICROSECONDS) for at in (span.start, span.end))
            place = {"pid": process, "tid": threads[span.row]}
            event = {"ph": "X", "name": span.label, "cat": span.what, "ts": start}
            events.append(event | {"dur": end - start, "args": {"update": span.update}, **place})
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _spans(text: str) -> list[Span]:
    """The spans of a line; none if it is malformed."""
    try:
        line = json.loads(text)
        update = int(line["update"])
        found = [
            Span(row, what, f"{what} {update}", update, *line[what]) for what, row in _SPANS.items()
        ]
        for sampler, lease, version, start, end in line["leases"]:
            label = f"lease {int(lease)}, version {int(version)}"
            found.append(Span(f"sampler {int(sampler)}", "sample", label, update, start, end))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return []
    return [span for span in found if _has_times(span)]


def _has_times(span: Span) -> bool:
    """Whether start and end can be counted with."""
    return all(isinstance(at, int | float) and 0 < at < _LATEST_S for at in (span.start, span.end))
