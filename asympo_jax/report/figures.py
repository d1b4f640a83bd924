"""The picture of one or several runs: accuracy, reward, likelihoods and balance over updates.

An objective has one colour in every picture, and every line is named where it ends.
"""

import dataclasses
import io
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from asympo_jax.report import captions
from asympo_jax.report.panels import (
    FAINT_INK,
    INK,
    End,
    add_panel,
    count_updates,
    label_width,
    make_figure,
    save,
    scale_nll,
    write_ends,
)
from asympo_jax.report.records import Run
from asympo_jax.report.table import standard_error

if TYPE_CHECKING:  # matplotlib is slow to load
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT, _DPI = 10.7, 7.4, 150
_DPI_ALONE = 150
_SPEED = "throughput/trained_tokens_per_s"

_POSITIVE, _NEGATIVE = "-", (0, (3.5, 1.6))


@dataclasses.dataclass(frozen=True)
class _Line:
    """A run with its label and colour, the window of its moving means, the alpha below them."""

    run: Run
    label: str
    colour: str
    window: int
    faintness: float


def draw(runs: Sequence[Run], path: pathlib.Path) -> None:
    """Writes the picture of the runs as a PNG of 1605 × 1110 pixels.

    Raises:
        OSError: it cannot be written.
    """
    figure = make_figure(_WIDTH, _HEIGHT)
    lines = _lines(runs)
    panels = _panels(figure, _label_width(lines))
    for panel, paint in zip(
        panels, (_paint_accuracy, _paint_reward, _paint_nll, _paint_balance), strict=True
    ):
        count_updates(panel, max(run.update for run in runs))
        paint(panel, lines)
    place = {"x": 0.065, "color": INK, "parse_math": False}
    figure.text(y=0.957, s=captions.title(runs), size=15, weight="bold", **place)
    figure.text(y=0.927, s=captions.subtitle(runs), size=10, **place)
    save(figure, path, _DPI)


def draw_each(runs: Sequence[Run]) -> dict[str, bytes]:
    """The panels one by one, for narrow screens, and two more: name -> PNG."""
    lines, found = _lines(runs), {}
    label = max(1.45, _label_width(lines))  # notes above a panel need some, too
    for name, paint in _PAINTERS.items():
        figure = make_figure(4.1 + label, 3.5)
        panel = add_panel(figure, 0.75, 0.55, 3.35, 2.35)
        panel.yaxis.set_label_coords(-0.55 / 3.35, 0.5)
        if name != "lag":
            count_updates(panel, max(run.update for run in runs))
            panel.set_xlabel("learner updates", color=INK, size=9.5)
        paint(panel, lines)
        content = io.BytesIO()
        save(figure, content, _DPI_ALONE)
        found[name] = content.getvalue()
    return found


def _lines(runs: Sequence[Run]) -> list[_Line]:
    """Runs with what they look like."""
    window, faintness = _window(runs), 0.3 if len(runs) <= 2 else 0.15
    return [
        _Line(run, label, colour, window, faintness)
        for run, label, colour in zip(
            runs, captions.shortened(captions.labels(runs)), captions.colours(runs), strict=True
        )
    ]


def _label_width(lines: Sequence[_Line]) -> float:
    """Inches that labels need at the right of a panel, with the last accuracy behind them."""
    return label_width(["negative", *(f"{line.label}: 0.00" for line in lines)])


def _panels(figure: "Figure", label: float) -> list["Axes"]:
    """Two by two axes with so many inches for labels at their right."""
    left, gap, bottom, height, rise = 0.7, 0.65, 0.55, 2.35, 3.3
    width = (_WIDTH - left - gap - 2 * label) / 2
    panels = []
    for row in (1, 0):
        for column in (0, 1):
            x, y = left + column * (width + label + gap), bottom + row * rise
            panel = add_panel(figure, x, y, width, height)
            panel.set_xlabel("" if row else "learner updates", color=INK, size=9.5)
            panel.yaxis.set_label_coords(-0.5 / width, 0.5)
            panels.append(panel)
    return panels


def _describe(panel: "Axes", title: str, note: str, unit: str) -> None:
    """What a panel shows, how to read it, and what its y-axis counts."""
    panel.set_title(title, loc="left", size=11.5, weight="bold", color=INK, pad=20)
    panel.text(0, 1.035, note, transform=panel.transAxes, size=8.8, color=FAINT_INK)
    panel.set_ylabel(unit, color=INK, size=9.5)


def _paint_accuracy(panel: "Axes", lines: Sequence[_Line]) -> None:
    """Held-out accuracy with its standard error."""
    ends, highest = [], 0.0
    for line in lines:
        updates, shares = line.run.accuracies()
        if not updates:
            continue
        errors = [standard_error(p, line.run.num_graded) or 0.0 for p in shares]
        low = [max(p - error, min(p, 0.0)) for p, error in zip(shares, errors, strict=True)]
        high = [min(p + error, max(p, 1.0)) for p, error in zip(shares, errors, strict=True)]
        panel.fill_between(updates, low, high, color=line.colour, alpha=0.15, linewidth=0)
        panel.plot(updates, shares, color=line.colour, linewidth=1.8, marker="o", markersize=3.2)
        label = f"{line.label}: {shares[-1]:.2f}"
        ends.append(End(updates[-1], shares[-1], label, line.colour))
        highest = max(highest, *high)
    panel.set_ylim(0, min(1.0, highest * 1.08) if 0 < highest <= 1 else None)
    write_ends(panel, ends)
    numbers = {line.run.num_graded for line in lines}
    graded = f"{numbers.pop()} sampled responses each time; " if len(numbers) == 1 else ""
    note = f"{graded}shade: ± 1 standard error"
    _describe(panel, "Accuracy on held-out prompts", note, "share correct")


def _paint_reward(panel: "Axes", lines: Sequence[_Line]) -> None:
    """Mean reward of the groups trained on."""
    ends = [_plot_smooth(panel, line, "reward/mean", line.label) for line in lines]
    if panel.dataLim.y0 >= 0 and panel.dataLim.y1 > 0:
        panel.set_ylim(bottom=0)
    write_ends(panel, ends)
    window = lines[0].window
    note = f"faint: each update; line: mean over {window} updates" if window > 1 else "each update"
    _describe(panel, "Reward of the responses trained on", note, "mean reward")


def _paint_nll(panel: "Axes", lines: Sequence[_Line]) -> None:
    """Mean token NLL of responses with positive and with negative advantage."""
    alone = len(lines) == 1
    ends = []
    for line in lines:
        for metric, style in (("nll/positive", _POSITIVE), ("nll/negative", _NEGATIVE)):
            word = metric.partition("/")[2]
            label = word if alone else line.label if style == _POSITIVE else ""
            ends.append(_plot_smooth(panel, line, metric, label, style))
    scale_nll(panel, (1, 2, 5))
    write_ends(panel, ends)
    note = "solid: advantage above 0, dashed: below 0; the gap is the scale imbalance"
    _describe(panel, "How unlikely the policy finds these responses", note, "NLL (nats / token)")


def _paint_balance(panel: "Axes", lines: Sequence[_Line]) -> None:
    """What positive and negative responses put into a mean over responses, and their sum."""
    panel.axhline(0, color=FAINT_INK, linewidth=0.9)
    if len(lines) == 1:
        (line,) = lines
        black = dataclasses.replace(line, colour=INK)
        ends = [
            _plot_smooth(panel, line, "balance/positive", "positive"),
            _plot_smooth(panel, line, "balance/negative", "negative", _NEGATIVE),
            _plot_smooth(panel, black, "balance/net", "net"),
        ]
        title = "Push and pull, and their sum"
    else:
        ends = [_plot_smooth(panel, line, "balance/net", line.label) for line in lines]
        title = "Push and pull: their sum"
    write_ends(panel, ends)
    note = "0: they cancel"
    _describe(panel, title, note, "weight × advantage × NLL")


def _paint_lags(panel: "Axes", lines: Sequence[_Line]) -> None:
    """How stale the groups were that were trained on."""
    from matplotlib.ticker import MaxNLocator

    width, ends = 0.85 / len(lines), []
    for number, line in enumerate(lines):
        lags = line.run.lags()
        if not lags:
            continue
        places = [lag + (number + 0.5) * width - 0.425 for lag in lags]
        panel.bar(places, list(lags.values()), width, color=line.colour)
        common = max(lags, key=lambda lag: lags[lag])
        label = f"{line.label}: {common}" if len(lines) > 1 else f"most: {common}"
        ends.append(End(places[list(lags).index(common)], lags[common], label, line.colour))
    panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    panel.set_xlabel("lag (updates)", color=INK, size=9.5)
    panel.set_ylim(bottom=0)
    write_ends(panel, ends)
    note = "updates between a snapshot and training on what it drew"
    _describe(panel, "How stale the samples were", note, "share of groups")


def _paint_speed(panel: "Axes", lines: Sequence[_Line]) -> None:
    """Tokens trained on in a second, and in a pipeline in which nobody waits for the other."""
    ends = []
    for line in lines:
        updates, speeds = line.run.series(_SPEED)
        ideal = dict(zip(*line.run.series("pipeline/ideal_fraction"), strict=True))
        pairs = [(u, v, v / ideal[u]) for u, v in zip(updates, speeds, strict=True) if ideal.get(u)]
        known = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if not known:
            continue
        updates, speeds, best = zip(*known, strict=True)
        panel.plot(updates, best, color=line.colour, linestyle=_NEGATIVE, linewidth=1.2)
        panel.plot(updates, speeds, color=line.colour, linewidth=1.7)
        label = line.label if len(lines) > 1 else "reached"
        ends.append(End(updates[-1], speeds[-1], label, line.colour))
    panel.set_ylim(bottom=0)
    write_ends(panel, ends)
    note = "solid: reached, dashed: if learner and samplers never waited"
    _describe(panel, "Throughput against the ideal", note, "response tokens / s")


def _plot_smooth(
    panel: "Axes", line: _Line, metric: str, label: str, dashes: Any = _POSITIVE
) -> End | None:
    """A moving mean over the faint values of each update."""
    updates, raw = line.run.series(metric)
    smooth = _moving_mean(raw, line.window)
    known = [i for i, value in enumerate(smooth) if math.isfinite(value)]
    if not known:
        return None
    if line.window > 1:
        panel.plot(updates, raw, color=line.colour, alpha=line.faintness, linewidth=0.8)
    panel.plot(updates, smooth, color=line.colour, linestyle=dashes, linewidth=1.7)
    last = known[-1]
    panel.plot(updates[last], smooth[last], "o", color=line.colour, markersize=3.2)
    return End(updates[last], smooth[last], label, line.colour)


def _moving_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of what is finite within half a window on either side; NaN if nothing is."""
    means, half = [], window // 2
    for i in range(len(values)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def _window(runs: Sequence[Run]) -> int:
    """Updates that a moving mean takes in: a twentieth of the longest run, odd."""
    longest = max(run.update for run in runs)
    return 1 + 2 * min(10, longest // 40)


_PAINTERS: dict[str, Callable[["Axes", Sequence[_Line]], None]] = {
    "accuracy": _paint_accuracy,
    "reward": _paint_reward,
    "nll": _paint_nll,
    "balance": _paint_balance,
    "lag": _paint_lags,
    "speed": _paint_speed,
}
