"""The table of a sweep: as aligned text, as Markdown, and as numbers."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from asympo_jax.report import captions
from asympo_jax.report.grid import Cell, Grid, Row, name_of, num_seeds, text_of
from asympo_jax.report.study import LAG, OBJECTIVE, RATE, SEED
from asympo_jax.report.table import align

_UNKNOWN = "–"
_SIZE = ("num_updates", "prompts_per_update", "group_size")
_TOLD = (OBJECTIVE, SEED, RATE, "task.name", *_SIZE)


def format_text(grid: Grid) -> str:
    """Aligned plain text, what the rows have in common above them."""
    header, blocks = _header(grid), _blocks(grid)
    table = [header, *(cells for _, rows in blocks for cells in rows)]
    first, *lines = align(table, len(header)).splitlines()
    lines.reverse()
    found = [first]
    for title, rows in blocks:
        found += [f"[{title}]"] if title else []
        found += [lines.pop() for _ in rows]
    first_line = f"{heading(grid)} · {subtitle(grid)}"
    return "\n".join([first_line, "", *(line.rstrip() for line in found), "", *notes(grid)])


def format_markdown(grid: Grid) -> str:
    """A table of GitHub's Markdown."""
    header, blocks = _header(grid), _blocks(grid)
    lines = [_markdown_row(header), "|---" * len(header) + "|"]
    for title, rows in blocks:
        if title:
            lines.append(_markdown_row([f"*{title}*", *[""] * (len(header) - 1)]))
        lines += map(_markdown_row, rows)
    told = "  \n".join(note[:1].upper() + note[1:] + "." for note in notes(grid))
    return "\n".join([f"**{heading(grid)} · {subtitle(grid)}**", "", *lines, "", told, ""])


def as_rows(grid: Grid) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and the rows as text; one word alone is the title of those below it."""
    rows = []
    for title, its in _blocks(grid):
        rows += [[title]] if title else []
        rows += its
    return _header(grid), rows


def as_data(grid: Grid) -> dict[str, Any]:
    """The numbers for `report.json`."""
    return {
        "column_field": grid.field,
        "columns": list(grid.columns),
        "num_seeds": num_seeds(grid.study),
        "settings": {k: v for k, v in grid.study.settings.items() if k not in grid.study.axes},
        "axes": grid.study.axes,
        "rows": [
            {
                "objective": row.objective,
                "needs_behaviour_logp": captions.needs_behaviour(row.objective),
                **row.values,
                "learning_rates": row.learning_rates,
                "cells": [
                    {grid.field: value, **_numbers(cell)}
                    for value, cell in zip(grid.columns, row.cells, strict=True)
                ],
            }
            for row in grid.rows
        ],
    }


def subtitle(grid: Grid) -> str:
    """What all runs share."""
    study = grid.study
    fields = dict.fromkeys([LAG, *(name for name in study.axes if name not in _TOLD)])
    fixed = [name for name in fields if len(study.values_of(name)) == 1]
    words = [f"{name_of(name)} {text_of(study.values_of(name)[0])}" for name in fixed]
    size = ("/".join(map(text_of, study.values_of(name))) for name in _SIZE)
    words.append("{} updates of {} prompts × {} responses".format(*size))
    seeds = num_seeds(study)
    words.append(f"{seeds} seed{'s' * (seeds > 1)}")
    return " · ".join(words)


def _numbers(cell: Cell) -> dict[str, Any]:
    """A cell in full."""
    return {
        "accuracy_mean": cell.mean,
        "accuracy_standard_error": cell.standard_error,
        "runs": [
            {"seed": run.seed, "accuracy": run.accuracy, "failure": run.failure}
            for run in cell.runs
        ],
        "runs_wanted": cell.wanted,
        "runs_ended": len(cell.runs),
        "collapsed": cell.num_collapsed,
        "failed": cell.num_failed,
    }


def heading(grid: Grid) -> str:
    """What the table shows."""
    task = "/".join(grid.study.values_of("task.name"))
    return f"Final accuracy on {task} by {name_of(grid.field)}"


def _header(grid: Grid) -> list[str]:
    """Names of the columns."""
    words = ["objective", *map(name_of, grid.rows[0].values)]
    rate = ["learning rate"] if _shows_rate(grid) else []
    return words + rate + [f"{name_of(grid.field)} {text_of(value)}" for value in grid.columns]


def _shows_rate(grid: Grid) -> bool:
    """Whether rows differ by learning rates that no axis names."""
    return len({tuple(row.learning_rates) for row in grid.rows if row.learning_rates}) > 1 and (
        RATE not in grid.study.varied
    )


def _blocks(grid: Grid) -> list[tuple[str, list[list[str]]]]:
    """Rows as text below the title of their group; without titles if all are of one group."""
    by_need = itertools.groupby(grid.rows, lambda row: captions.needs_behaviour(row.objective))
    groups = [(key, list(rows)) for key, rows in by_need]
    titles = {
        False: "current policy only",
        True: "with behaviour log-probs",
        None: "others",
    }
    return [
        (titles[key] if len(groups) > 1 else "", [_words(grid, row) for row in rows])
        for key, rows in groups
    ]


def _words(grid: Grid, row: Row) -> list[str]:
    """A row as text."""
    rate = ", ".join(map(text_of, row.learning_rates)) or _UNKNOWN
    return [
        row.objective,
        *map(text_of, row.values.values()),
        *([rate] if _shows_rate(grid) else []),
        *map(_cell_text, row.cells),
    ]


def _cell_text(cell: Cell) -> str:
    """Mean ± standard error, and what else there is to know of these runs."""
    ended, error = len(cell.runs), cell.standard_error
    text = _UNKNOWN if cell.mean is None else f"{cell.mean:.3f}"
    if error is not None:
        text += f" ± {error:.3f}"
    known = len(cell.accuracies)
    if 0 < known < cell.wanted:
        text += f" (mean of {known})"
    for number, word in ((cell.num_collapsed, "collapsed"), (cell.num_failed, "failed")):
        if number:
            text += ", " + f"{number}/{ended} " * (cell.wanted > 1) + word
    return text


def notes(grid: Grid) -> Iterator[str]:
    """How to read the table."""
    cells = [cell for row in grid.rows for cell in row.cells]
    over = f"mean ± standard error over {SEED}s" if num_seeds(grid.study) > 1 else "of one seed"
    yield f"accuracy: of sampled responses to held-out prompts after the last update, {over}"
    yield "collapsed: below half of the run's best, or numbers that are not finite"
    if num_seeds(grid.study) > 1:
        yield "all runs share warm-up and held-out prompts, whose own error is not in the ±"
    broken = [run.diverged for cell in cells for run in cell.runs if run.failure is not None]
    if broken:
        yield (
            f"{len(broken)} run{'s' * (len(broken) > 1)} broke off, {sum(broken)} of them by "
            "numbers that are not finite: no accuracy of theirs enters a mean"
        )
    rates = {rate for row in grid.rows for rate in row.learning_rates}
    if len(rates) == 1:
        yield f"learning rate {text_of(rates.pop())}"
    missing = sum(cell.wanted - len(cell.runs) for cell in cells)
    if missing:
        total = sum(cell.wanted for cell in cells)
        yield f"{_UNKNOWN}: not known; {missing} of {total} runs have not ended yet"


def _markdown_row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
