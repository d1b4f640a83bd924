"""What all pictures share: inks, empty panels, and the names of lines where they end."""

import contextlib
import dataclasses
import math
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

from asympo_jax.report import captions

if TYPE_CHECKING:  # matplotlib is slow to load
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT_INK, _GRID = "#222222", "#666666", "#e4e4e4"
_LABEL_POINTS = 9.0
_LABEL_GAP, _LABEL_MARGIN = 0.11, 0.1  # inches beside a label


@dataclasses.dataclass(frozen=True)
class End:
    """Where a line ends, and what is written there."""

    x: float
    y: float
    text: str
    colour: str


def make_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, without a window and nothing global."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: pathlib.Path | IO[bytes], dpi: int) -> None:
    """Writes a PNG, to a path or into what is open.

    Raises:
        OSError: it cannot be written.
    """
    with _boxes_for_unknown_letters():
        figure.savefig(path, dpi=dpi, format="png")


@contextlib.contextmanager
def _boxes_for_unknown_letters() -> Iterator[None]:
    """Names may have characters that the font lacks; it draws boxes for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def add_panel(figure: "Figure", x: float, y: float, width: float, height: float) -> "Axes":
    """Axes with a faint grid at a place given in inches from the lower left."""
    from matplotlib.ticker import MaxNLocator

    across, up = figure.get_size_inches()
    panel = figure.add_axes((x / across, y / up, width / across, height / up))
    panel.grid(color=_GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(colors=FAINT_INK, labelsize=9, length=0, which="both")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color(FAINT_INK)
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    return panel


def count_updates(panel: "Axes", newest: int, num_ticks: int = 5) -> None:
    """The x-axis of learner updates."""
    from matplotlib.ticker import MaxNLocator

    panel.set_xlim(0, max(1, newest) * 1.01)
    panel.xaxis.set_major_locator(MaxNLocator(num_ticks, steps=[1, 2, 5, 10], integer=True))


def scale_nll(panel: "Axes", subs: Sequence[float]) -> None:
    """A logarithmic y-axis in plain numbers, labelled at these multiples of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if not math.isfinite(panel.dataLim.minposy):
        return  # nothing that has a logarithm
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=subs))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def write_ends(panel: "Axes", ends: Sequence[End | None]) -> None:
    """Labels at the right of a panel, each as near to the end of its line as the others allow."""
    panel.set_ylim(panel.get_ylim())  # labels must not move the scale
    shown = [end for end in ends if end is not None]
    if not shown:
        middle = {"x": 0.5, "y": 0.5, "ha": "center", "va": "center", "color": FAINT_INK}
        panel.text(s="no values yet", transform=panel.transAxes, size=10, **middle)
        return
    to_panel = panel.transData + panel.transAxes.inverted()
    labelled = [(to_panel.transform((e.x, e.y))[1], e) for e in shown if e.text]
    labelled.sort(key=lambda pair: pair[0])
    gap = 1.3 * _LABEL_POINTS / (72 * _inches(panel)[1])
    for y, (_, end) in zip(_spread([y for y, _ in labelled], gap), labelled, strict=True):
        panel.annotate(
            end.text,
            xy=(end.x, end.y),
            xytext=(1 + _LABEL_GAP / _inches(panel)[0], y),
            textcoords="axes fraction",
            va="center",
            size=_LABEL_POINTS,
            weight="bold",
            color=captions.text_colour(end.colour),
            parse_math=False,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.9, "linestyle": ":",
                        "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def label_width(labels: Sequence[str]) -> float:
    """Inches that the longest label takes at the right of a panel, with what is free beside it."""
    figure = make_figure(1, 1)
    with _boxes_for_unknown_letters():
        widths = [
            figure.text(0, 0, label, size=_LABEL_POINTS, weight="bold", parse_math=False)
            .get_window_extent()
            .width
            for label in labels
        ]
    return _LABEL_GAP + max(widths) / figure.dpi + _LABEL_MARGIN


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights at least `gap` apart, within 0 … 1 if they fit, near those wanted (ascending)."""
    blocks: list[tuple[float, int]] = []  # mean height of the block's bottom label, its size
    for i, height in enumerate(wanted):
        bottom, size = height - i * gap, 1
        while blocks and blocks[-1][0] >= bottom:
            below, below_size = blocks.pop()
            bottom = (below * below_size + bottom * size) / (below_size + size)
            size += below_size
        blocks.append((bottom, size))
    bottoms = [bottom for bottom, size in blocks for _ in range(size)]
    highest = max(0.0, 1 - (len(wanted) - 1) * gap)
    return [min(max(bottom, 0.0), highest) + i * gap for i, bottom in enumerate(bottoms)]


def _inches(panel: "Axes") -> tuple[float, float]:
    """Width and height of a panel."""
    figure = panel.get_figure(root=True)
    assert figure is not None
    across, up = figure.get_size_inches()
    place = panel.get_position()
    return place.width * across, place.height * up
