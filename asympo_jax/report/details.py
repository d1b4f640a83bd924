"""What else a run left that its page tells: config, machine, times, samples; all may be missing."""

import dataclasses
import datetime
import json
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from asympo_jax.report import rollouts, times
from asympo_jax.report.records import Run, read_object

_NUM_SAMPLES = 6


@dataclasses.dataclass(frozen=True)
class Details:
    """Of one run.

    Attributes:
        run: its numbers.
        config: dotted field -> value.
        attempts: what each attempt at it ran on, oldest first.
        spans: who was at work when.
        samples: of its first update and of its last that has any; one of the two, or none.
    """

    run: Run
    config: Mapping[str, Any]
    attempts: Sequence[Mapping[str, Any]]
    spans: Sequence[times.Span]
    samples: Sequence[Sequence[rollouts.Sample]]

    @property
    def newest_spans(self) -> list[times.Span]:
        """Those of the newest attempt; none if it has not trained."""
        spans = [span for span in self.spans if span.start >= self._newest_start()]
        return spans if any(span.what == "train" for span in spans) else []

    def bottleneck(self) -> str | None:
        """One sentence on who waited for whom, by medians over updates; None if it is not known."""
        names = ("time/update_s", "time/sample_s", "time/train_s", "pipeline/ideal_fraction")
        names += ("idle/learner", "idle/sampler")
        series = [self.run.series(name)[1] for name in names]
        finite = [[value for value in values if abs(value) < 1e30] for values in series]
        if not all(finite):
            return None
        update, sample, train, ideal, learner, sampler = map(statistics.median, finite)
        slower = "samplers were" if sample > train else "learner was"
        return (
            f"The {slower} the bottleneck: in the median an update took {update:.3g} s, sampling "
            f"its groups {sample:.3g} s, training on them {train:.3g} s, which is {ideal:.2f} of "
            f"the ideal. The learner waited {learner:.0%} of the time, samplers {sampler:.0%}."
        )

    def _newest_start(self) -> float:
        """When the newest attempt began, seconds since 1970; 0 if that is not known."""
        started = self.attempts[-1].get("started") if self.attempts else None
        try:
            return datetime.datetime.fromisoformat(str(started)).timestamp()
        except ValueError:
            return 0.0


def load_details(directory: pathlib.Path, run: Run) -> Details:
    """Reads what there is; what is malformed is left out.

    Raises:
        ValueError: the config cannot be read.
    """
    return Details(
        run=run,
        config=dict(_leaves(read_object(directory, "config.json"))),
        attempts=_attempts(directory),
        spans=times.load_times(directory),
        samples=rollouts.first_and_last(directory, _NUM_SAMPLES),
    )


def _attempts(directory: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of `environment.jsonl`."""
    try:
        texts = (directory / "environment.jsonl").read_text("utf-8", "replace").split("\n")
    except OSError:
        return []
    found = []
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        found += [line] if isinstance(line, dict) else []
    return found


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted fields and their values."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
