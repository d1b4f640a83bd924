"""Which lines of a sweep share a panel, how each is named and coloured.

Related objectives share panels, at most six lines in each, and asympo is drawn faintly into the
panels of the others, so that they can be compared with it.
"""

import dataclasses
from collections.abc import Sequence

from asympo_jax.report import captions
from asympo_jax.report.grid import Cell, Grid, Row, name_of, sort_key, text_of

_MAX_LINES, _MAX_LABEL = 6, 24
_REFERENCE = "asympo"


@dataclasses.dataclass(frozen=True)
class Line:
    """What is drawn in one colour.

    Attributes:
        label: where it ends.
        colour: of the line.
        cells: one a column of the grid.
        faint: whether it is only there for comparison.
    """

    label: str
    colour: str
    cells: Sequence[Cell]
    faint: bool = False

    @property
    def width(self) -> float:
        """Of the line, points."""
        return 1.1 if self.faint else 1.8

    @property
    def height(self) -> int:
        """Above which it is drawn."""
        return 2 if self.faint else 3


@dataclasses.dataclass(frozen=True)
class Group:
    """Lines that share panels.

    Attributes:
        title: of the panels; empty if there is one group.
        lines: those for comparison first.
        note: below the title.
    """

    title: str
    lines: Sequence[Line]
    note: str = ""


def groups_of_rows(grid: Grid) -> list[Group]:
    """The rows by families of objectives, those without any run left out."""
    rows = [row for row in grid.rows if any(cell.runs for cell in row.cells)]
    names = {row.objective for row in rows}
    if len(rows) <= _MAX_LINES and len({captions.colour(name) for name in names}) == len(names):
        return [_group(grid, "", rows, [])]
    families = {title: list(family) for title, family in captions.FAMILIES.items()}
    known = {name for family in families.values() for name in family}
    families["Other objectives"] = [name for name in names if name not in known]
    reference = [row for row in rows if row.objective == _REFERENCE]
    groups = []
    for title, family in families.items():
        members = [row for row in rows if row.objective in family]
        for start in range(0, len(members), _MAX_LINES):
            part = members[start : start + _MAX_LINES]
            absent = [row for row in reference if row not in part and len(reference) == 1]
            groups.append(_group(grid, title, part, absent))
    return groups


def groups_of_columns(grid: Grid) -> list[Group]:
    """For sweeps of one objective: a group a row, its lines the columns, each with one cell."""
    found = []
    for row in grid.rows:
        pairs = [pair for pair in zip(grid.columns, row.cells, strict=True) if pair[1].runs]
        pairs.sort(key=lambda pair: sort_key(pair[0]))
        colours = captions.shades([row.objective] * len(pairs), range(len(pairs)))
        lines = [
            Line(_cut(f"{name_of(grid.field)} {text_of(value)}"), colour, [cell])
            for (value, cell), colour in zip(pairs, colours, strict=True)
        ]
        if lines:
            found.append(Group(_settings(row), lines))
    return found


def _group(grid: Grid, title: str, rows: Sequence[Row], reference: Sequence[Row]) -> Group:
    """The lines of rows, those for comparison below them."""
    alone = len({row.objective for row in grid.rows}) == 1
    colours = captions.shades([row.objective for row in rows], [row.rank for row in rows])
    lines = [
        Line(_cut((alone and _settings(row)) or _name(row)), colour, row.cells)
        for row, colour in zip(rows, colours, strict=True)
    ]
    faint = [
        Line(
            _cut(_name(row)),
            captions.faint_colour(captions.colour(row.objective)),
            row.cells,
            faint=True,
        )
        for row in reference
    ]
    needs = captions.needs_behaviour(rows[0].objective) if title else None
    notes = {True: "with behaviour log-probs", False: "no behaviour log-probs", None: ""}
    return Group(title, [*faint, *lines], notes[needs])


def _name(row: Row) -> str:
    """The objective and its settings."""
    settings = _settings(row)
    return f"{row.objective}, {settings}" if settings else row.objective


def _settings(row: Row) -> str:
    """What tells the row from others of its objective."""
    return ", ".join(f"{name_of(name)} {text_of(value)}" for name, value in row.values.items())


def _cut(label: str) -> str:
    """A label that fits beside a panel."""
    return label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…"
