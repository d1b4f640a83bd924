"""The picture of who waited for whom: a row each of learner, publisher and samplers."""

import pathlib
from collections.abc import Sequence
from typing import IO

from asympo_jax.report.panels import FAINT_INK, INK, add_panel, make_figure, save
from asympo_jax.report.times import LEARNER, PUBLISHER, Span, rows

_DPI = 150
_MAX_SAMPLERS = 8
_NUM_UPDATES = 12
_COLOURS = {"wait": "#D55E00", "train": "#0072B2", "publish": "#CC79A7", "sample": "#009E73"}
_WORDS = {"wait": "learner waits", "train": "trains", "publish": "publishes", "sample": "samples"}
_TRACK = "#efefef"


def draw_timeline(spans: Sequence[Span], path: pathlib.Path | IO[bytes]) -> None:
    """Writes some updates from the middle of a run as a PNG.

    Args:
        spans: of an attempt at the run, which has trained.
        path: where to.

    Raises:
        OSError: it cannot be written.
    """
    shown = middle(spans)
    updates = [s for s in shown if s.what == "train"]
    begin, end = updates[0].start, updates[-1].end
    names = [row for row in rows(spans) if row in (LEARNER, PUBLISHER)]
    samplers = [row for row in rows(spans) if row not in names]
    names += samplers[:_MAX_SAMPLERS]
    height = 0.3 * len(names)
    figure = make_figure(5.4, height + 1.35)
    panel = add_panel(figure, 0.95, 0.55, 4.3, height)
    panel.grid(visible=False)
    for at, row in enumerate(names):
        panel.broken_barh([(0, end - begin)], (at - 0.38, 0.76), color=_TRACK)
        for what, colour in _COLOURS.items():
            bars = [
                (s.start - begin, s.end - s.start) for s in shown if (s.row, s.what) == (row, what)
            ]
            edge = {"edgecolor": "white", "linewidth": 0.6}
            panel.broken_barh(bars, (at - 0.38, 0.76), facecolor=colour, **edge)
    panel.set_xlim(0, max(end - begin, 1e-3))
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_yticks(range(len(names)), names)
    panel.set_xlabel("seconds", color=INK, size=9.5)
    left_out = len(samplers) - len(samplers[:_MAX_SAMPLERS])
    more = f"; {left_out} samplers more are in the trace" if left_out else ""
    title = f"Updates {updates[0].update} to {updates[-1].update}, from the middle of the run"
    inches = height + 1.35
    figure.text(0.02, 1 - 0.25 / inches, title, size=11.5, weight="bold", color=INK)
    note = f"grey: idle, evaluating or saving{more}"
    figure.text(0.02, 1 - 0.46 / inches, note, size=8.8, color=FAINT_INK)
    x = 0.02
    for what, words in _WORDS.items():
        place = {"size": 8.8, "weight": "bold", "color": _COLOURS[what]}
        figure.text(x, 1 - 0.67 / inches, f"■ {words}", **place)
        x += 0.1 + 0.0165 * len(words)
    save(figure, path, _DPI)


def middle(spans: Sequence[Span]) -> list[Span]:
    """What lies in the time of some updates.

    In the first ones programs are compiled, and in the last ones samplers have nothing left to do.
    """
    trained = [span for span in spans if span.what == "train"]
    first = max(0, (len(trained) - _NUM_UPDATES) // 2)
    chosen = trained[first : first + _NUM_UPDATES]
    begin, end = chosen[0].start, chosen[-1].end
    return [span for span in spans if span.end > begin and span.start < end]
