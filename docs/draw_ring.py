"""Draws the ring of a run, docs/ring.svg: `python docs/draw_ring.py`."""

import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

_INK, _FAINT, _FILL = "#1f2933", "#5f6b7a", "#eef3f8"
_WIDTH, _HEIGHT = 1.9, 0.92
# Centre, name, what it does.
_ROOMS = {
    "task": ((1.1, 3.1), "task", "prompts, rewards"),
    "ledger": ((4.1, 3.1), "ledger", "tickets and their state"),
    "samplers": ((7.6, 3.1), "samplers", "processes, G responses"),
    "queue": ((7.6, 0.9), "queue", "bounded, graded groups"),
    "learner": ((4.1, 0.9), "learner", "one update a batch"),
    "store": ((1.1, 0.9), "snapshots", "versioned, immutable"),
}
# From, to, what goes along, and how much the arrow bends.
_WAYS = (
    ("task", "ledger", "prompt", 0.0, (0.0, 0.16)),
    ("ledger", "samplers", "lease", 0.0, (0.0, 0.16)),
    ("samplers", "queue", "group", 0.0, (0.42, 0.0)),
    ("queue", "learner", "batch", 0.0, (0.0, 0.16)),
    ("learner", "store", "version n + 1", 0.0, (0.0, 0.16)),
    ("store", "samplers", "version max(0, n − lag)", -0.06, (-1.3, 0.36)),
)


def _edge(centre: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    """Where a straight line from the middle of a box leaves it."""
    dx, dy = towards[0] - centre[0], towards[1] - centre[1]
    scale = min(
        _WIDTH / 2 / abs(dx) if dx else float("inf"), _HEIGHT / 2 / abs(dy) if dy else float("inf")
    )
    return centre[0] + dx * scale, centre[1] + dy * scale


def _draw(axes: Axes) -> None:
    """The boxes and the ways between them."""
    for centre, name, words in _ROOMS.values():
        corner = (centre[0] - _WIDTH / 2, centre[1] - _HEIGHT / 2)
        style = "round,pad=0,rounding_size=0.12"
        axes.add_patch(
            FancyBboxPatch(corner, _WIDTH, _HEIGHT, style, facecolor=_FILL, edgecolor=_INK)
        )
        axes.text(centre[0], centre[1] + 0.13, name, ha="center", va="center", size=13, color=_INK)
        axes.text(centre[0], centre[1] - 0.2, words, ha="center", va="center", size=9, color=_FAINT)
    for start, end, words, bend, (right, up) in _WAYS:
        here, there = _ROOMS[start][0], _ROOMS[end][0]
        begin, stop = _edge(here, there), _edge(there, here)
        bow = f"arc3,rad={bend}"
        axes.add_patch(
            FancyArrowPatch(
                begin, stop, connectionstyle=bow, arrowstyle="-|>", mutation_scale=14, color=_INK
            )
        )
        x, y = (begin[0] + stop[0]) / 2 + right, (begin[1] + stop[1]) / 2 + up
        axes.text(x, y, words, ha="center", va="center", size=10, color=_INK)


def main() -> None:
    """Writes the picture beside this file."""
    # The same bytes each time.
    plt.rcParams["svg.hashsalt"] = "ring"
    figure = plt.figure(figsize=(8.8, 4.0))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 8.8)
    axes.set_ylim(0.2, 3.9)
    axes.axis("off")
    _draw(axes)
    out = pathlib.Path(__file__).with_name("ring.svg")
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
