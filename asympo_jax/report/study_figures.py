"""The pictures of a sweep: accuracy over the varied field, and curves over updates."""

import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from asympo_jax.report import captions
from asympo_jax.report.grid import Grid, name_of, num_seeds, sort_key, text_of
from asympo_jax.report.panels import (
    FAINT_INK,
    INK,
    End,
    add_panel,
    count_updates,
    make_figure,
    save,
    scale_nll,
    write_ends,
)
from asympo_jax.report.study import ACCURACY, LAG, OBJECTIVE
from asympo_jax.report.study_lines import Group, Line, groups_of_columns, groups_of_rows
from asympo_jax.report.study_table import subtitle

if TYPE_CHECKING:  # matplotlib is slow to load
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _DPI = 9.0, 180  # inches, and dots of each: 1620 pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.78, 0.1, 0.86, 0.56
_COLUMN_GAP, _ROW_GAP = 0.2, 0.34
_NEGATIVE = (0, (3.5, 1.6))
_LARGEST_LINEAR = 5  # ratio of values on a linear axis
_LARGEST_LINEAR_BALANCE = 1.0
_TYPICAL_LAG = 16


def draw(grid: Grid, out: pathlib.Path) -> list[str]:
    """Writes the pictures, each 1620 pixels wide, into a directory; returns their names.

    Args:
        grid: with the field of the x-axis in its columns.
        out: the directory.

    Raises:
        OSError: one cannot be written.
    """
    figures = {}
    if grid.study.varied:
        name = grid.field.rpartition(".")[2]
        figures[f"accuracy_by_{name}.png"] = _draw_accuracy(grid)
    figures["curves.png"] = _draw_curves(grid)
    if grid.field == LAG and len(grid.study.axes[OBJECTIVE]) > 1:
        column = _typical_column(grid, "nll/positive")
        if column is not None:
            figures["nll.png"] = _draw_nll(grid, column)
        column = _typical_column(grid, "balance/net")
        if column is not None:
            figures["balance.png"] = _draw_balance(grid, column)
    for file, figure in figures.items():
        save(figure, out / file, _DPI)
    return list(figures)


def _draw_accuracy(grid: Grid) -> "Figure":
    """Final accuracy over the field, a panel for each group."""
    groups = groups_of_rows(grid)
    name = name_of(grid.field)
    cells = [cell for row in grid.rows for cell in row.cells]
    marks = "hollow: runs collapsed · " * any(cell.num_collapsed for cell in cells)
    marks += "×: all failed" * any(cell.runs and cell.mean is None for cell in cells)
    figure, (panels,) = _make_panels(
        grid, f"Final accuracy on held-out prompts by {name}", _error_note(grid, "bars") + marks,
        groups, 1, 2.5)  # fmt: skip
    for group, panel in zip(groups, panels, strict=True):
        places = _scale_x(panel, grid)
        panel.set_xlabel(name, color=INK, size=9.5)
        _name_panel(panel, group.title, group.note)
        ends = [_plot_means(panel, line, places) for line in group.lines]
        _scale_shares(panel, grid)
        write_ends(panel, ends)
    panels[0].set_ylabel("share correct", color=INK, size=9.5)
    return figure


def _plot_means(panel: "Axes", line: Line, places: Sequence[float]) -> End | None:
    """Mean final accuracies with their standard errors."""
    style = {"color": line.colour, "zorder": line.height}
    points = sorted(zip(places, line.cells, strict=True), key=lambda pair: pair[0])
    known = [(x, cell, cell.mean) for x, cell in points if cell.mean is not None]
    panel.errorbar(  # interrupted where no mean is known
        [x for x, _ in points],
        [math.nan if cell.mean is None else cell.mean for _, cell in points],
        [math.nan if cell.standard_error is None else cell.standard_error for _, cell in points],
        linewidth=line.width, elinewidth=1.0, capsize=2.0, **style,
    )  # fmt: skip
    for x, cell, mean in known:
        face = "white" if cell.num_collapsed else line.colour
        above = {**style, "zorder": line.height + 0.5}
        panel.plot(x, mean, "o", markersize=4.5, markerfacecolor=face, **above)
    for x, cell in points:
        if cell.mean is None and cell.runs:
            panel.plot(x, 0.02, "x", markersize=5, clip_on=False, **style)
    return End(known[-1][0], known[-1][2], line.label, line.colour) if known else None


def _draw_curves(grid: Grid) -> "Figure":
    """Accuracy over updates: a row of panels for each value of the field, a column a group."""
    if len(grid.study.axes[OBJECTIVE]) > 1:
        groups = groups_of_rows(grid)
        columns = [
            i for i in range(len(grid.columns)) if any(row.cells[i].runs for row in grid.rows)
        ]
        columns.sort(key=lambda i: sort_key(grid.columns[i]))
        names = [
            textwrap.fill(f"{name_of(grid.field)} {text_of(grid.columns[i])}", 15) for i in columns
        ]
    else:
        groups, columns, names = groups_of_columns(grid), [0], ["share correct"]
    height = 1.3 if len(columns) > 1 else 2.5
    failed = any(run.failure for run in grid.study.outcomes.values())
    figure, panels = _make_panels(
        grid, "Accuracy on held-out prompts over training",
        _error_note(grid, "shade") + "failed runs up to their failure" * failed,
        groups, len(columns), height)  # fmt: skip
    for row, column in enumerate(columns):
        weight = "bold" if len(columns) > 1 else "normal"
        panels[row][0].set_ylabel(names[row], color=INK, size=9.5, weight=weight)
        for group, panel in zip(groups, panels[row], strict=True):
            _name_panel(panel, *(("", "") if row else (group.title, group.note)))
            _label_updates(panel, grid, row == len(columns) - 1)
            ends = [_plot_curve(panel, line, column, ACCURACY) for line in group.lines]
            _scale_shares(panel, grid)
            write_ends(panel, ends)
    return figure


def _draw_nll(grid: Grid, column: int) -> "Figure":
    """NLL of responses with positive and with negative advantage, a panel for each row."""
    rows = [[line for line in group.lines if not line.faint] for group in groups_of_rows(grid)]
    width = max(map(len, rows))
    figure, panels = _make_panels(
        grid, f"NLL of the responses trained on, lag {grid.columns[column]}",
        _error_note(grid, "shade") + "advantage above 0: solid, +; below 0: dashed, −",
        [Group(" ", [Line("−", INK, [])])] * width, len(rows), 1.25)  # fmt: skip
    drawn = []
    for row, its in enumerate(panels):
        for panel in its[len(rows[row]) :]:
            panel.remove()
        for i, (line, panel) in enumerate(zip(rows[row], its, strict=False)):
            drawn.append((panel, line))
            _name_panel(panel, line.label, "", captions.text_colour(line.colour))
            _label_updates(panel, grid, all(len(below) <= i for below in rows[row + 1 :]))
        its[0].set_ylabel("nats / token", color=INK, size=9.5)
    ends = []
    for panel, line in drawn:
        plus = _plot_curve(panel, line, column, "nll/positive", text="+")
        minus = _plot_curve(panel, line, column, "nll/negative", _NEGATIVE, text="−")
        ends.append([plus, minus])
        scale_nll(panel, (1, 3))
    limits = [limit for panel, _ in drawn for limit in panel.get_ylim()]
    for (panel, _), its in zip(drawn, ends, strict=True):
        panel.set_ylim(min(limits), max(limits))
        write_ends(panel, its)
    return figure


def _draw_balance(grid: Grid, column: int) -> "Figure":
    """Net balance of the loss, a panel for each group."""
    groups = groups_of_rows(grid)
    figure, (panels,) = _make_panels(
        grid, f"Push and pull: their sum, lag {grid.columns[column]}",
        _error_note(grid, "shade") + "mean over responses; 0: they cancel",
        groups, 1, 2.5)  # fmt: skip
    ends = []
    for group, panel in zip(groups, panels, strict=True):
        _name_panel(panel, group.title, group.note)
        _label_updates(panel, grid, True)
        panel.axhline(0, color=FAINT_INK, linewidth=0.9)
        ends.append([_plot_curve(panel, line, column, "balance/net") for line in group.lines])
    limits = [limit for panel in panels for limit in panel.get_ylim()]
    for panel, its in zip(panels, ends, strict=True):
        if max(map(abs, limits)) > _LARGEST_LINEAR_BALANCE:
            panel.set_yscale("symlog", linthresh=0.1)
        panel.set_ylim(min(limits), max(limits))
        write_ends(panel, its)
    panels[0].set_ylabel("weight × advantage × NLL", color=INK, size=9.5)
    return figure


def _plot_curve(
    panel: "Axes", line: Line, column: int, metric: str, dashes: Any = "-", text: str = ""
) -> End | None:
    """The mean over seeds with a band of its standard error."""
    points = list(line.cells[column].curve(metric))
    if not points:
        return None
    updates = [update for update, _, _ in points]
    low = [mean - error for _, mean, error in points]
    high = [mean + error for _, mean, error in points]
    panel.fill_between(updates, low, high, color=line.colour, alpha=0.15, linewidth=0)
    style = {"color": line.colour, "linewidth": line.width, "zorder": line.height}
    means = [mean for _, mean, _ in points]
    panel.plot(updates, means, linestyle=dashes, **style)
    return End(updates[-1], means[-1], text or line.label, line.colour)


def _make_panels(
    grid: Grid,
    title: str,
    note: str,
    columns: Sequence[Group],
    num_rows: int,
    height: float,
) -> tuple["Figure", list[list["Axes"]]]:
    """A titled figure of rows of panels, right of each as much room as its labels need."""
    room = [0.2 + 0.082 * max(len(line.label) for line in group.lines) for group in columns]
    free = _WIDTH - _LEFT - _RIGHT - sum(room) - _COLUMN_GAP * (len(columns) - 1)
    width = free / len(columns)
    top = _TOP + 0.2 * bool(note) + 0.24 * any(group.title for group in columns)
    top += 0.15 * any(group.note for group in columns)
    up = top + num_rows * height + (num_rows - 1) * _ROW_GAP + _BOTTOM
    figure = make_figure(_WIDTH, up)
    panels = []
    for row in range(num_rows):
        x, y = _LEFT, up - top - height - row * (height + _ROW_GAP)
        panels.append([])
        for i, beside in enumerate(room):
            panel = add_panel(figure, x, y, width, height)
            panel.tick_params(labelleft=i == 0)
            panels[-1].append(panel)
            x += width + beside + _COLUMN_GAP
    place = {"x": _LEFT / _WIDTH, "color": INK, "parse_math": False}
    objectives, task = grid.study.axes[OBJECTIVE], "/".join(grid.study.values_of("task.name"))
    what = f"{objectives[0]} on {task}" if len(objectives) == 1 else task
    figure.text(y=1 - 0.36 / up, s=title, size=14, weight="bold", **place)
    figure.text(y=1 - 0.58 / up, s=f"{what} · {subtitle(grid)}", size=9.5, **place)
    figure.text(y=1 - 0.77 / up, s=note.removesuffix(" · "), size=9.5, **place)
    return figure, panels


def _name_panel(panel: "Axes", title: str, note: str, colour: str = INK) -> None:
    """What a panel shows."""
    pad = 19 if note else 9
    panel.set_title(title, loc="left", size=10.5, weight="bold", color=colour, pad=pad)
    panel.annotate(note, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points",
                   size=8.5, color=FAINT_INK)  # fmt: skip


def _label_updates(panel: "Axes", grid: Grid, is_lowest: bool) -> None:
    """The x-axis of updates, named below the lowest panel."""
    count_updates(panel, max(grid.study.values_of("num_updates")), 3)
    panel.tick_params(labelbottom=is_lowest)
    panel.set_xlabel("learner updates" if is_lowest else "", color=INK, size=9.5)


def _scale_x(panel: "Axes", grid: Grid) -> list[float]:
    """The x-axis of a field: linear, logarithmic, or its values at equal distances."""
    from matplotlib.ticker import NullLocator

    values = grid.columns
    order = sorted(values, key=sort_key)
    places = [float(order.index(value)) for value in values]
    if len(values) > 2 and all(isinstance(value, int | float) for value in values):
        smallest = min((abs(value) for value in values if value), default=1.0)
        is_wide = max(map(abs, values)) / smallest > _LARGEST_LINEAR
        if min(values) > 0 or not is_wide or max(map(abs, values)) <= 1:
            places = [float(value) for value in values]
        if min(values) > 0 and is_wide:
            panel.set_xscale("log")
    panel.set_xticks(places, [text_of(value) for value in values])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.update_datalim([(place, 0.0) for place in places])  # those without a run, too
    return places


def _scale_shares(panel: "Axes", grid: Grid) -> None:
    """The y-axis of accuracies, from 0, the same in all panels."""
    curves = [cell.curve(ACCURACY) for row in grid.rows for cell in row.cells]
    points = [(mean, error) for curve in curves for _, mean, error in curve]
    highest = max((mean + (error if error > 0 else 0.0) for mean, error in points), default=0.0)
    panel.set_ylim(0, min(1.0, highest * 1.08) or 1.0)


def _error_note(grid: Grid, what: str) -> str:
    """What is averaged."""
    return f"mean over seeds, {what}: ± 1 standard error · " if num_seeds(grid.study) > 1 else ""


def _typical_column(grid: Grid, metric: str) -> int | None:
    """The largest lag up to 16 at which the metric is known, else the smallest; None if nowhere."""
    lags = {
        lag: i
        for i, lag in enumerate(grid.columns)
        if any(list(row.cells[i].curve(metric)) for row in grid.rows)
    }
    typical = max((lag for lag in lags if lag <= _TYPICAL_LAG), default=min(lags, default=None))
    return lags.get(typical)
