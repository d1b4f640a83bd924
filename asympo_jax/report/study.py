"""What a sweep left in its results, checked: its axes and the outcome of each run that ended."""

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from asympo_jax.report.records import checked, read_object

ABOUT = "laboratory.json"
ACCURACY = "eval/accuracy"
OBJECTIVE, SEED, LAG, RATE = "objective.name", "seed", "lag", "optimizer.learning_rate"
_SETTINGS = {
    OBJECTIVE: str,
    "task.name": str,
    LAG: int,
    "num_updates": int,
    "prompts_per_update": int,
    "group_size": int,
}
_METRICS = ("nll/positive", "nll/negative", "balance/net")
_NUMBER = (int, float)
_LARGEST = 1e100  # that can be drawn, squares included


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run that ended.

    Attributes:
        directory: name of its directory, where the results tell it.
        seed: of the run.
        learning_rate: of its optimizer.
        failure: the cause if it failed.
        diverged: whether it failed because its numbers were not finite.
        updates: at which it was evaluated, those before it failed.
        series: metric -> its values there, NaN where one is not known.
    """

    directory: str | None
    seed: Any
    learning_rate: float
    failure: str | None
    diverged: bool
    updates: Sequence[int]
    series: Mapping[str, Sequence[float]]

    @property
    def accuracy(self) -> float | None:
        """The final one; None of a run that failed."""
        return None if self.failure is not None else self.series[ACCURACY][-1]


@dataclasses.dataclass(frozen=True)
class Study:
    """A sweep.

    Attributes:
        axes: dotted field -> its values; the objective is always among them.
        settings: fields of the experiment that a report names.
        outcomes: by the values of a run, as `key` tells them.
    """

    axes: Mapping[str, Sequence[Any]]
    settings: Mapping[str, Any]
    outcomes: Mapping[str, Outcome]

    @property
    def varied(self) -> list[str]:
        """Fields with more than one value, without objective and seed."""
        fixed = (OBJECTIVE, SEED)
        return [name for name, its in self.axes.items() if len(its) > 1 and name not in fixed]

    def values_of(self, field: str) -> Sequence[Any]:
        """The values of a field: of its axis, or the experiment's one."""
        return self.axes.get(field, [self.settings.get(field)])

    def key(self, values: Mapping[str, Any]) -> str:
        """What tells a run from the others."""
        return json.dumps([values[field] for field in self.axes])

    def runs(self, chosen: Mapping[str, Any]) -> Iterator[Outcome | None]:
        """The runs with these values of some fields, all others free; None for one not there."""
        fields = [(chosen[name],) if name in chosen else its for name, its in self.axes.items()]
        for values in itertools.product(*fields):
            yield self.outcomes.get(self.key(dict(zip(self.axes, values, strict=True))))


def find(directory: pathlib.Path) -> pathlib.Path | None:
    """The results of a sweep in this directory or in its `results`; None if there are none."""
    for found in (directory, directory / "results"):
        if (found / ABOUT).exists():
            return found
    return None


def load_study(directory: pathlib.Path) -> Study:
    """Reads the results of a sweep.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    about = read_object(directory, ABOUT)
    base = checked(directory, ABOUT, about, "base", dict)
    settings = {name: checked(directory, ABOUT, base, name, its) for name, its in _SETTINGS.items()}
    axes = dict(_leaves(checked(directory, ABOUT, about, "axes", dict)))
    axes.setdefault(OBJECTIVE, [settings[OBJECTIVE]])
    for field, values in axes.items():
        if not values or (field == OBJECTIVE and not all(isinstance(v, str) for v in values)):
            raise ValueError(f"{directory}: {ABOUT} has no usable values of {field!r}")
    study = Study(axes, settings, {})
    for objective in axes[OBJECTIVE]:
        file = f"{objective.replace(':', '.')}.json"
        if (directory / file).exists():
            study = dataclasses.replace(
                study, outcomes={**study.outcomes, **_load_runs(study, directory, file, objective)}
            )
    if not study.outcomes:
        raise ValueError(f"{directory}: no run of the sweep has ended yet")
    return study


def _load_runs(
    study: Study, directory: pathlib.Path, file: str, objective: str
) -> dict[str, Outcome]:
    """The outcomes of an objective's runs."""
    data = read_object(directory, file)
    if data.get("objective") != objective:
        raise ValueError(f"{directory}: {file} is not about the objective {objective!r}")
    found = {}
    for number, run in enumerate(checked(directory, file, data, "runs", list), 1):
        place = f"{file}, run {number},"
        values = {OBJECTIVE: objective, **checked(directory, place, _object(run), "values", dict)}
        missing = sorted(study.axes.keys() - values.keys())
        if missing:
            raise ValueError(f"{directory}: {place} has no value of {missing[0]!r}")
        # Runs of values that are no longer among the axes may still be in a file.
        if all(values[field] in its for field, its in study.axes.items()):
            found[study.key(values)] = _load_outcome(run, values, directory, place)
    return found


def _load_outcome(
    run: Mapping[str, Any], values: Mapping[str, Any], directory: pathlib.Path, place: str
) -> Outcome:
    """One run."""
    rate = checked(directory, place, run, "learning_rate", _NUMBER)
    num_updates = checked(directory, place, run, "num_updates", int)
    failure = checked(directory, place, run, "failure", (str, type(None)))
    diverged = failure is not None and checked(directory, place, run, "diverged", bool)
    updates = checked(directory, place, run, "update", list)
    if not all(isinstance(update, int) for update in updates) or not (updates or failure):
        raise ValueError(f"{directory}: {place} has no evaluation, or one without its update")
    if failure is None and updates[-1] != num_updates:
        raise ValueError(
            f"{directory}: {place} ends at update {updates[-1]}, must at num_updates={num_updates}"
        )
    series = {}
    for name in (ACCURACY, *(name for name in _METRICS if name in run)):
        found = run.get(name)
        if (
            not isinstance(found, list)
            or len(found) != len(updates)
            or not all(v is None or isinstance(v, _NUMBER) for v in found)
        ):
            raise ValueError(f"{directory}: {place} needs a number of {name!r} for each update")
        # A logarithmic axis has no place for an NLL of 0.
        hidden = (None, 0) if name.startswith("nll/") else (None,)
        series[name] = [math.nan if v in hidden or abs(v) > _LARGEST else v for v in found]
    if not all(0 <= share <= 1 for share in series[ACCURACY]):
        raise ValueError(f"{directory}: {place} has an accuracy that is not from 0 to 1")
    name = run.get("run")
    if not isinstance(name, str) or name in ("", "..") or name != pathlib.PurePath(name).name:
        name = None  # not that of a directory beside the results
    return Outcome(name, values.get(SEED), rate, failure, diverged, updates, series)


def _object(data: Any) -> Mapping[str, Any]:
    """An entry that should be an object; an empty one if it is not."""
    return data if isinstance(data, dict) else {}


def _leaves(axes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    """Dotted fields and their values."""
    for name, values in axes.items():
        if isinstance(values, dict):
            yield from _leaves(values, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", values if isinstance(values, list) else [values]
