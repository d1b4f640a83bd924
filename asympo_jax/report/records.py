"""What a run left on disk, checked: the fields of its config that matter here, metrics, result."""

import collections
import dataclasses
import json
import math
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

Series = tuple[list[int], list[float]]

_LAGS = "lag/histogram"
_LAG = re.compile("[0-9]{1,9}")

_FIELDS = {
    "objective.name": str,
    "task.name": str,
    "order": str,
    "seed": int,
    "lag": int,
    "num_updates": int,
    "prompts_per_update": int,
    "group_size": int,
    "eval.num_prompts": int,
    "eval.samples_per_prompt": int,
}
_RESULT_FIELDS = {
    "parameters_sha256": str,
    "updates": int,
    "wall_s": (int, float),
    "eval/accuracy": (int, float),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's directory holds.

    Attributes:
        name: what tells it from the other runs of a report.
        settings: the fields of its config that a report names, by dotted name.
        lines: of `metrics.jsonl`, in order of updates, null as NaN.
        result: of `result.json`; None unless it tells of the newest update.
    """

    name: str
    settings: Mapping[str, Any]
    lines: Sequence[Mapping[str, float]]
    result: Mapping[str, Any] | None

    @property
    def update(self) -> int:
        """The newest update."""
        return int(self.lines[-1]["update"])

    @property
    def num_graded(self) -> int:
        """Sampled responses of an evaluation."""
        return self.settings["eval.num_prompts"] * self.settings["eval.samples_per_prompt"]

    def series(self, name: str) -> Series:
        """Updates and values of a metric, from the lines that have it."""
        pairs = [(line["update"], line[name]) for line in self.lines if name in line]
        return [int(update) for update, _ in pairs], [value for _, value in pairs]

    def lags(self) -> dict[int, float]:
        """Lag -> share of the groups trained on so far, by ascending lag."""
        counts: collections.Counter[int] = collections.Counter()
        for line in self.lines:
            for name, count in line.items():
                if name.startswith(f"{_LAGS}/") and count > 0:
                    counts[int(name.rpartition("/")[2])] += int(count)
        return {lag: counts[lag] / counts.total() for lag in sorted(counts)}

    def accuracies(self) -> Series:
        """Updates and held-out accuracies, where they are known."""
        found = dict(zip(*self.series("eval/accuracy"), strict=True))
        if self.result is not None:  # the last evaluation may stand only there
            found[self.result["updates"]] = self.result["eval/accuracy"]
        updates = sorted(update for update, value in found.items() if math.isfinite(value))
        return updates, [found[update] for update in updates]


def load_run(directory: pathlib.Path, name: str) -> Run:
    """Reads a run's files; a last line cut short, as of a run at work, is left out.

    Raises:
        ValueError: naming the directory and what is wrong with it.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: is not a directory")
    for file in ("metrics.jsonl", "config.json"):
        if not (directory / file).exists():
            raise ValueError(f"{directory}: has no {file}, so it is not the directory of a run")
    config = read_object(directory, "config.json")
    settings = {
        field: checked(directory, "config.json", config, field, kind)
        for field, kind in _FIELDS.items()
    }
    lines = _read_lines(directory)
    result = None
    if (directory / "result.json").exists():
        result = read_object(directory, "result.json")
        for field, kind in _RESULT_FIELDS.items():
            if not isinstance(result.get(field), kind):
                raise ValueError(f"{directory}: result.json has no usable {field!r}")
        if result["updates"] < lines[-1]["update"]:  # the run was taken up again
            result = None
    return Run(name, settings, lines, result)


def read_object(directory: pathlib.Path, file: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        data = json.loads((directory / file).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{directory}: {file} cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{directory}: {file} must hold a JSON object")
    return data


def checked(
    directory: pathlib.Path, file: str, data: Mapping[str, Any], field: str, kind: Any
) -> Any:
    """The value of a dotted field of a file.

    Raises:
        ValueError: it is missing or of another kind; naming the file and the field.
    """
    value: Any = data
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if not isinstance(value, kind) or (field.startswith("eval.") and value < 1):
        raise ValueError(f"{directory}: {file} has no usable {field!r}, got {value!r}")
    return value


def _read_lines(directory: pathlib.Path) -> list[dict[str, float]]:
    """What `metrics.jsonl` says of each update, in order of updates."""
    try:
        texts = (directory / "metrics.jsonl").read_text().split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory}: metrics.jsonl cannot be read ({error})") from error
    lines = {}
    for number, text in enumerate(texts[:-1], 1):  # after the last newline: cut short, or nothing
        line = _line(text)
        if line is None:
            raise ValueError(
                f"{directory}: metrics.jsonl line {number} is not a JSON object of numbers with "
                "an 'update'"
            )
        lines.setdefault(line["update"], {}).update(line)
    if not lines:
        raise ValueError(f"{directory}: metrics.jsonl is still empty, the run has not begun")
    return [lines[update] for update in sorted(lines)]


def _line(text: str) -> dict[str, float] | None:
    """Metrics of a line, null as NaN; None if it is malformed."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("update"), int):
        return None
    lags = data.get(_LAGS)
    data = {name: value for name, value in data.items() if not isinstance(value, dict)}
    if isinstance(lags, dict):
        data |= {f"{_LAGS}/{lag}": n for lag, n in lags.items() if _LAG.fullmatch(lag)}
    if not all(value is None or isinstance(value, int | float) for value in data.values()):
        return None
    return {
        name: float(value) if value is not None and abs(value) <= sys.float_info.max else math.nan
        for name, value in data.items()
    }
