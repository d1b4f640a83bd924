"""Problems with answers, read from any JSONL file or tensorflow-datasets source."""

import dataclasses
import decimal
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from asympo_jax.tasks import grading
from asympo_jax.tasks.gsm8k import import_tfds
from asympo_jax.tasks.math_grading import MAX_CHARACTERS, final_span

_TFDS = "tfds:"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem and its final answer.

    Attributes:
        text: what is asked.
        answer: what is right, without a box or dollar signs around it.
    """

    text: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Where problems come from.

    Attributes:
        option: of the task that names it, for messages.
        place: path of a JSONL file, or `tfds:NAME:SPLIT`.
        problem_field: of a row, its text.
        answer_field: of a row, its final answer, or a solution that ends in one.
        data_dir: where tensorflow-datasets looks; empty for its own default.
    """

    option: str
    place: str
    problem_field: str
    answer_field: str
    data_dir: str = ""


def load_problems(source: Source) -> tuple[list[Problem], int]:
    """The problems of a source in its order, and the number of rows left out for want of an answer.

    An answer that is a text with a box or `####` counts as what is in its last one; where there is
    no answer at all, the row's `solution` is looked at.

    Raises:
        ValueError: naming the option: the source cannot be read, a row has no such field, or no row
            has an answer.
    """
    if not source.place:
        raise ValueError(
            f"task.{source.option} is not set: must be the path of a .jsonl file or tfds:NAME:SPLIT"
        )
    rows = _tfds_rows(source) if source.place.startswith(_TFDS) else _json_rows(source)
    problems, num_left_out = [], 0
    for where, row in rows:
        problem = _problem(source, where, row)
        if problem is None:
            num_left_out += 1
        else:
            problems.append(problem)
    if not problems:
        raise ValueError(
            f"task.{source.option}={source.place!r}: has no problem with an answer in field "
            f"{source.answer_field!r}"
        )
    return problems, num_left_out


def _problem(source: Source, where: str, row: Mapping[str, Any]) -> Problem | None:
    """The problem of a row; None where it has no answer."""
    text = row.get(source.problem_field)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{where}: has no text in field {source.problem_field!r} (task.problem_field), it has "
            f"{sorted(row)}"
        )
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{where}: field {source.problem_field!r} has half a character")
    answer = row.get(source.answer_field)
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        # Not as 1e+20, which no grader reads; what is not finite is no answer.
        answer = format(decimal.Decimal(repr(answer)), "f") if math.isfinite(answer) else None
    if not isinstance(answer, str) or not answer.strip():
        answer = row.get("solution")
        answer = final_span(answer) if isinstance(answer, str) else None
    elif "\\boxed" in answer or "\\fbox" in answer or grading.MARK in answer:
        answer = final_span(answer)
    answer = "" if answer is None else _bare(answer)
    return Problem(text.strip(), answer) if 0 < len(answer) <= MAX_CHARACTERS else None


def _bare(answer: str) -> str:
    r"""An answer without the dollar signs of a formula around it; `\$5` keeps its own."""
    answer = answer.strip()
    is_formula = len(answer) > 2 and answer[0] == answer[-1] == "$" and answer[-2] != "\\"
    return answer.strip("$").strip() if is_formula and "$" not in answer.strip("$") else answer


def _json_rows(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a JSONL file, each with where it stands."""
    name = f"task.{source.option}={source.place!r}"
    try:
        with pathlib.Path(source.place).expanduser().open(encoding="utf-8") as lines:
            for i, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{name} line {i} is not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"{name} line {i}: must be an object, got {line.strip():.80}")
                yield f"{name} line {i}", row
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: {error.reason}") from error


def _tfds_rows(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The records of a prepared data set of tensorflow-datasets; nothing is downloaded."""
    name = f"task.{source.option}={source.place!r}"
    _, *parts = source.place.split(":")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"{name}: must have the form tfds:NAME:SPLIT")
    tfds = import_tfds()
    try:
        rows = tfds.data_source(
            parts[0], split=parts[1], data_dir=source.data_dir or None, download=False
        )
    # What it raises for a name, a split or a directory that it does not have differs by version.
    except Exception as error:
        raise ValueError(
            f"{name} with task.data_dir={source.data_dir!r} cannot be read: "
            f"{type(error).__name__}: {str(error).strip()[:300]}"
        ) from error
    for i, row in enumerate(rows):
        texts = {
            field: value.decode() if isinstance(value, bytes) else value
            for field, value in row.items()
        }
        yield f"{name} row {i}", texts
