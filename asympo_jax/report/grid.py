"""A sweep as rows and columns whose cells average over seeds."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from asympo_jax.report import captions
from asympo_jax.report.study import ACCURACY, LAG, OBJECTIVE, SEED, Outcome, Study
from asympo_jax.report.table import has_collapsed


@dataclasses.dataclass(frozen=True)
class Cell:
    """Runs that differ by their seed alone.

    Attributes:
        wanted: number of them in the sweep.
        runs: those that ended.
    """

    wanted: int
    runs: Sequence[Outcome]

    @property
    def accuracies(self) -> list[float]:
        """Final accuracies of the runs that did not fail."""
        return [run.accuracy for run in self.runs if run.accuracy is not None]

    @property
    def num_failed(self) -> int:
        """Runs that failed for another reason than their numbers."""
        return sum(run.failure is not None and not run.diverged for run in self.runs)

    @property
    def num_collapsed(self) -> int:
        """Runs that end below half of their best accuracy, and those whose numbers broke."""
        return sum(run.diverged for run in self.runs) + sum(
            has_collapsed(run.accuracy, max(run.series[ACCURACY]))
            for run in self.runs
            if run.accuracy is not None
        )

    @property
    def mean(self) -> float | None:
        """Mean final accuracy."""
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def standard_error(self) -> float | None:
        """Of the mean: standard deviation (n - 1) / √n; None of fewer than two runs."""
        return standard_error(self.accuracies)

    def curve(self, name: str) -> Iterator[tuple[int, float, float]]:
        """Update, mean of a metric over the runs that know it there, its standard error or NaN."""
        at: dict[int, list[float]] = {}
        for run in self.runs:
            values = run.series.get(name, [math.nan] * len(run.updates))
            for update, value in zip(run.updates, values, strict=True):
                if math.isfinite(value):
                    at.setdefault(update, []).append(value)
        for update, values in sorted(at.items()):
            error = standard_error(values)
            yield update, statistics.fmean(values), math.nan if error is None else error


@dataclasses.dataclass(frozen=True)
class Row:
    """One objective, or one setting of it.

    Attributes:
        objective: its name.
        values: of the further fields that tell rows apart.
        learning_rates: of its runs, most often one.
        cells: one a column.
    """

    objective: str
    values: Mapping[str, Any]
    learning_rates: Sequence[float]
    cells: Sequence[Cell]

    @property
    def rank(self) -> tuple[Any, ...]:
        """Orders the settings of one objective."""
        return tuple(sort_key(value) for value in self.values.values())


@dataclasses.dataclass(frozen=True)
class Grid:
    """Rows of objectives, columns of the values of one field."""

    study: Study
    field: str
    columns: Sequence[Any]
    rows: Sequence[Row]


def make_grid(study: Study, field: str) -> Grid:
    """The sweep with the values of `field` in columns; first what needs no behaviour log-probs."""
    columns = study.values_of(field)
    others = [name for name in study.varied if name != field]
    needs = (False, True, None)
    objectives = sorted(
        study.axes[OBJECTIVE], key=lambda name: needs.index(captions.needs_behaviour(name))
    )
    rows = []
    for objective in objectives:
        for chosen in itertools.product(*(study.axes[name] for name in others)):
            values = dict(zip(others, chosen, strict=True))
            fixed = {OBJECTIVE: objective, **values}
            cells = [_cell(study, {**fixed, field: value}) for value in columns]
            rates = sorted({run.learning_rate for cell in cells for run in cell.runs})
            rows.append(Row(objective, values, rates, cells))
    return Grid(study, field, columns, rows)


def table_field(study: Study) -> str:
    """The field in the columns of a table: the lag if it varies, else that with most values."""
    return LAG if LAG in study.varied else picture_field(study)


def picture_field(study: Study) -> str:
    """The field on the x-axis of a picture: that with most values, the lag rather than another."""
    if not study.varied:
        return LAG
    return max(study.varied, key=lambda name: (len(study.axes[name]), name == LAG))


def standard_error(values: Sequence[float]) -> float | None:
    """Standard deviation (n - 1) / √n; None of fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def name_of(field: str) -> str:
    """The last part of a dotted field in words."""
    if field == "refresh_every_updates":
        return "updates between refreshes"
    return field.rpartition(".")[2].replace("_", " ")


def text_of(value: Any) -> str:
    """A value of a field as it is printed."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def sort_key(value: Any) -> tuple[bool, float, str]:
    """Orders values of a field: numbers by size, then the others by name."""
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number else 0.0, str(value)


def num_seeds(study: Study) -> int:
    """Runs of a cell."""
    return len(study.axes.get(SEED, [0]))


def _cell(study: Study, chosen: Mapping[str, Any]) -> Cell:
    """The runs with these values."""
    runs = list(study.runs(chosen))
    return Cell(len(runs), [run for run in runs if run is not None])
