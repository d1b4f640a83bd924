"""The table of a sweep: as aligned text, as Markdown, and as numbers."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from asympo_jax.report import captions
from asympo_jax.report.grid import Cell, Grid, Row, name_of, num_seeds, text_of
from asympo_jax.report.study import LAG, RATE, SEED
from asympo_jax.report.table import align

_UNKNOWN = "–"


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
    return "\n".join([_heading(grid), "", *(line.rstrip() for line in found), "", *_notes(grid)])


def format_markdown(grid: Grid) -> str:
    """A table of GitHub's Markdown."""
    header, blocks = _header(grid), _blocks(grid)
    lines = [_markdown_row(header), "|---" * len(header) + "|"]
    for title, rows in blocks:
        if title:
            lines.append(_markdown_row([f"*{title}*", *[""] * (len(header) - 1)]))
        lines += map(_markdown_row, rows)
    notes = "  \n".join(note[:1].upper() + note[1:] + "." for note in _notes(grid))
    return "\n".join([f"**{_heading(grid)}**", "", *lines, "", notes, ""])


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
    its, axes = grid.study.settings, grid.study.axes
    lag = f"lag {axes.get(LAG, [its[LAG]])[0]} · " if LAG not in grid.study.varied else ""
    seeds = num_seeds(grid.study)
    return (
        f"{lag}{its['num_updates']} updates of {its['prompts_per_update']} prompts × "
        f"{its['group_size']} responses · {seeds} seed{'s' * (seeds > 1)}"
    )


def _numbers(cell: Cell) -> dict[str, Any]:
    """A cell in full."""
    return {
        "accuracy_mean": cell.mean,
        "accuracy_standard_error": cell.standard_error,
        "accuracies": cell.accuracies,
        "runs_wanted": cell.wanted,
        "runs_ended": len(cell.runs),
        "collapsed": cell.num_collapsed,
        "failures": [run.failure for run in cell.runs if run.failure is not None],
    }


def _heading(grid: Grid) -> str:
    """What the table shows."""
    task = grid.study.settings["task.name"]
    return f"Final accuracy on {task} by {name_of(grid.field)} · {subtitle(grid)}"


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
    if 0 < ended < cell.wanted:
        text += f" ({ended}/{cell.wanted} runs)"
    if cell.num_collapsed:
        text += ", " + f"{cell.num_collapsed}/{ended} " * (cell.wanted > 1) + "collapsed"
    return text


def _notes(grid: Grid) -> Iterator[str]:
    """How to read the table."""
    cells = [cell for row in grid.rows for cell in row.cells]
    over = f"mean ± standard error over {SEED}s" if num_seeds(grid.study) > 1 else "of one seed"
    yield f"accuracy: of sampled responses to held-out prompts after the last update, {over}"
    yield "collapsed: below half of the run's best, or failed, as by numbers that are not finite"
    failed = sum(cell.num_failed for cell in cells)
    if failed:
        yield f"{failed} run{'s' * (failed > 1)} failed: no accuracy of theirs enters a mean"
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
