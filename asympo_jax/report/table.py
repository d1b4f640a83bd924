"""The table of a report: each run as a row of numbers."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

from asympo_jax.report.records import Run

_HEADER = ("run", "objective", "lag", "updates", "accuracy before → after", "best", "collapsed",
           "greedy before → after", "wall")  # fmt: skip
FOOTNOTE = (
    "accuracy: of sampled responses to held-out prompts, ± its standard error · collapsed: below "
    "half of its best\nwall: of the last attempt, with the warm-up if it made one · idle times, "
    "share of the ideal speed and the hash of the parameters are in report.json\n"
)
_UNKNOWN = "–"


@dataclasses.dataclass(frozen=True)
class Row:
    """A run as numbers; None where one is not known (yet).

    Attributes:
        run: its name.
        objective: name.
        task: name.
        lag: bound, updates.
        seed: of the run.
        updates: done.
        num_updates: wanted.
        accuracy_before: on held-out prompts, before training.
        accuracy_before_standard_error: binomial, of that evaluation's responses.
        accuracy_after: of the newest evaluation since.
        accuracy_after_standard_error: as above.
        accuracy_best: of all evaluations.
        greedy_before: accuracy of greedy responses before training.
        greedy_after: the same after it.
        collapsed: whether the newest accuracy is below half of the best.
        wall_s: seconds of the last attempt, from start to result.
        idle_learner: median over updates of the share of time that it waited.
        idle_sampler: likewise.
        ideal_fraction: median over updates of the share of the ideal speed.
        parameters_sha256: of the final parameters.
    """

    run: str
    objective: str
    task: str
    lag: int
    seed: int
    updates: int
    num_updates: int
    accuracy_before: float | None
    accuracy_before_standard_error: float | None
    accuracy_after: float | None
    accuracy_after_standard_error: float | None
    accuracy_best: float | None
    greedy_before: float | None
    greedy_after: float | None
    collapsed: bool | None
    wall_s: float | None
    idle_learner: float | None
    idle_sampler: float | None
    ideal_fraction: float | None
    parameters_sha256: str | None


def make_row(run: Run) -> Row:
    """The numbers of a run."""
    accuracies = dict(zip(*run.accuracies(), strict=True))
    greedy = dict(zip(*run.series("eval/accuracy_greedy"), strict=True))
    before = accuracies.get(0)
    newest = max(accuracies, default=0)
    after = accuracies[newest] if newest else None
    best = max(accuracies.values(), default=None)
    result = run.result or {}
    return Row(
        run=run.name,
        objective=run.settings["objective.name"],
        task=run.settings["task.name"],
        lag=run.settings["lag"],
        seed=run.settings["seed"],
        updates=run.update,
        num_updates=run.settings["num_updates"],
        accuracy_before=before,
        accuracy_before_standard_error=standard_error(before, run.num_graded),
        accuracy_after=after,
        accuracy_after_standard_error=standard_error(after, run.num_graded),
        accuracy_best=best,
        greedy_before=greedy.get(0),
        greedy_after=greedy[max(greedy)] if max(greedy, default=0) else None,
        collapsed=None if after is None or best is None else has_collapsed(after, best),
        wall_s=result.get("wall_s"),
        idle_learner=_median(run.series("idle/learner")[1]),
        idle_sampler=_median(run.series("idle/sampler")[1]),
        ideal_fraction=_median(run.series("pipeline/ideal_fraction")[1]),
        parameters_sha256=result.get("parameters_sha256"),
    )


def as_words(row: Row) -> dict[str, str]:
    """A row as text by what it is, with what has no room in the table."""
    _, objective, *rest = zip(_HEADER, _cells(row), strict=True)
    shares = {
        "learner waited": row.idle_learner,
        "samplers waited": row.idle_sampler,
        "of the ideal speed": row.ideal_fraction,
    }
    more = {name: _text(share, ".0%") for name, share in shares.items()}
    sha256 = (row.parameters_sha256 or _UNKNOWN)[:8]
    return {
        **dict([objective, ("task", row.task), *rest]),
        "seed": str(row.seed),
        **more,
        "parameters_sha256": sha256,
    }


def has_collapsed(final: float, best: float) -> bool:
    """Whether an accuracy ends below half of its best."""
    return final < best / 2


def format_table(rows: Iterable[Row]) -> str:
    """Aligned plain text, a line a run."""
    return align([_HEADER, *(_cells(row) for row in rows)], 2)


def align(table: Sequence[Sequence[str]], num_words: int) -> str:
    """Plain text of columns: so many of words, to the left, the rest of numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        pairs = list(zip(cells, widths, strict=True))
        words = [cell.ljust(width) for cell, width in pairs[:num_words]]
        numbers = [cell.rjust(width) for cell, width in pairs[num_words:]]
        lines.append("  ".join(words + numbers) + "\n")
    return "".join(lines)


def standard_error(share: float | None, num_graded: int) -> float | None:
    """√(p (1 − p) / n): binomial, responses taken as independent; None of what is no share.

    Of 0 or all of n responses it is 1 / (n + 1), as far as Wilson's interval reaches: none that is
    right says little about a share below that.
    """
    if share is None or not 0 <= share <= 1:
        return None
    if share in (0, 1):
        return 1 / (num_graded + 1)
    return math.sqrt(share * (1 - share) / num_graded)


def _median(values: Sequence[float]) -> float | None:
    """The median of what is finite."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else None


def _cells(row: Row) -> tuple[str, ...]:
    """A row as text."""
    done = row.updates == row.num_updates
    before, after, error = (
        _text(value, ".3f")
        for value in (row.accuracy_before, row.accuracy_after, row.accuracy_after_standard_error)
    )
    greedy = [_text(value, ".3f") for value in (row.greedy_before, row.greedy_after)]
    return (
        row.run,
        row.objective,
        str(row.lag),
        str(row.updates) if done else f"{row.updates} of {row.num_updates}",
        f"{before} → {after}" + (f" ± {error}" if error != _UNKNOWN else ""),
        _text(row.accuracy_best, ".3f"),
        {True: "yes", False: "no", None: _UNKNOWN}[row.collapsed],
        " → ".join(greedy),
        _text(row.wall_s, ".0f") + (" s" if row.wall_s is not None else ""),
    )


def _text(value: float | None, form: str) -> str:
    """A number, or a dash if it is not known."""
    return _UNKNOWN if value is None else format(value, form)
