"""The view of a run on a terminal: large enough to be read from across the room.

It is drawn by whoever tells of an update, has no thread of its own and asks no device for anything.
Lines that are said meanwhile appear above it. The cursor is never hidden and no other screen is
opened, so that a process that is killed leaves the terminal as it was.
"""

import contextlib
import math
import os
import select
import sys
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from asympo_jax.printable import visible
from asympo_jax.progress import Answer, Progress, say, who_waits
from asympo_jax.settings import ExperimentConfig

if TYPE_CHECKING:  # rich is loaded on a terminal alone
    from rich.console import Console, RenderableType

_DUMB = ("", "dumb", "unknown")
_WIDTH_OF_LARGE = 60  # columns
_MAX_TEXT = 200  # characters of an answer
# Three rows each, three columns a digit.
_GLYPHS = {
    "0": ("┏━┓", "┃ ┃", "┗━┛"),
    "1": (" ┓ ", " ┃ ", " ┻ "),
    "2": ("┏━┓", "┏━┛", "┗━━"),
    "3": ("┏━┓", " ━┫", "┗━┛"),
    "4": ("╻ ╻", "┗━┫", "  ╹"),
    "5": ("┏━━", "┗━┓", "┗━┛"),
    "6": ("┏━━", "┣━┓", "┗━┛"),
    "7": ("━━┓", "  ┃", "  ╹"),
    "8": ("┏━┓", "┣━┫", "┗━┛"),
    "9": ("┏━┓", "┗━┫", "━━┛"),
    "-": ("   ", "╺━╸", "   "),
    ".": (" ", " ", "▪"),
    "%": ("▪ ╱", " ╱ ", "╱ ▪"),
}


@contextlib.contextmanager
def progress(config: ExperimentConfig, resumed_at: int) -> Iterator[Progress]:
    """Tells how a run goes: within it in a view on a terminal, else in lines.

    Args:
        config: the experiment.
        resumed_at: update from whose checkpoint it carries on; 0 if it begins.
    """
    num_updates, stream = config.pacing.num_updates, sys.stderr
    if resumed_at:
        say(f"carries on from the checkpoint of update {resumed_at}")
    say("training begins; learner and samplers compile their programs before the first update")
    with contextlib.ExitStack() as stack:
        view = None
        if is_wanted(stream, os.environ):
            title = f"{config.objective.name} on {config.task_name}, lag {config.pacing.max_lag}"
            view = stack.enter_context(View(num_updates, title, stream))
        found = Progress(num_updates, view=view)
        stack.enter_context(found.waiting())
        yield found


def is_wanted(stream: IO[str] | None, environ: Mapping[str, str]) -> bool:
    """Whether a view can be drawn: in the foreground of a terminal that can move its cursor."""
    try:
        if stream is None or not stream.isatty():
            return False
    except ValueError:  # closed
        return False
    if environ.get("TERM", "").lower() in _DUMB or not is_ours(stream):
        return False
    try:
        import rich.live  # noqa: F401
    except ImportError:
        return False
    return True


def is_ours(stream: IO[str]) -> bool:
    """Whether the lines of a terminal are this process's, and not those of a shell before it."""
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except OSError:  # no shell runs its jobs on it
        return True


def can_take_more(stream: IO[str]) -> bool:
    """Whether a terminal reads what it is sent; one that was stopped would hold the run up."""
    try:
        return bool(select.select([], [stream], [], 0)[1])
    except (OSError, ValueError):  # it is gone, as the writing will tell
        return True


class View:
    """Draws a run; a context, at whose end the last state stays on the terminal.

    Args:
        num_updates: of the whole run.
        title: which run it is.
        stream: of the terminal.
    """

    def __init__(self, num_updates: int, title: str, stream: IO[str]):
        """Nothing is drawn yet."""
        from rich.live import Live

        self._num_updates = num_updates
        self._title = visible(title)
        self._stream = stream
        # What goes to standard output stays there, if it is a file.
        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        console = _make_console(stream)
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=is_terminal)

    def __enter__(self) -> "View":
        """From here on lines on standard error go above the view."""
        with contextlib.suppress(OSError, ValueError):
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last state where it is."""
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self._live.stop()

    def show(
        self,
        update: int,
        metrics: Mapping[str, float],
        accuracy: float,
        left: str,
        answer: Answer | None,
    ) -> None:
        """See `progress.View`; a terminal that is gone, or does not read, holds no run up."""
        state = self._drawn(update, metrics, accuracy, left, answer)
        try:
            if is_ours(self._stream) and can_take_more(self._stream):
                self._live.update(state, refresh=True)
        except (OSError, ValueError):
            self._live.console.quiet = True  # else it keeps all that it could not write

    def _drawn(
        self,
        update: int,
        metrics: Mapping[str, float],
        accuracy: float,
        left: str,
        answer: Answer | None,
    ) -> "RenderableType":
        """The whole view."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done = update / self._num_updates
        is_wide = self._live.console.width >= _WIDTH_OF_LARGE
        numbers = Table.grid(padding=(0, 4 if is_wide else 2))
        shown = (
            (f"{100 * done:.0f}%", f"update {update}/{self._num_updates}", "cyan"),
            (_two_digits(metrics["reward/mean"]), "reward", "green"),
            (_two_digits(accuracy), "accuracy", "yellow"),
        )
        sized = large if is_wide else str
        numbers.add_row(*(Text(sized(number), f"bold {colour}") for number, _, colour in shown))
        numbers.add_row(*(Text(words, "bold") for _, words, _ in shown))
        bar = Table.grid(expand=True)  # a bar alone does not end its line
        bar.add_row(ProgressBar(self._num_updates, update))
        lines: list[Any] = [numbers, bar]
        waits = who_waits(metrics["idle/learner"], metrics["idle/sampler"])
        lines.append(Text(f"{left} · lag {metrics['lag/mean']:.0f} · {waits}", "bold"))
        lines.append(Text(bottleneck(metrics)))
        if answer is not None:
            prompt, response, reward = answer
            text = Text("last answer ", "dim")
            text.append(f"reward {reward:.3g}  ", "bold green" if reward > 0 else "bold red")
            text.append(f"{_cut(prompt)} ", "dim")
            lines.append(text.append(_cut(response)))
        return Panel(Group(*lines), title=Text(self._title, "bold"), title_align="left")


def large(number: str) -> str:
    """A number in three rows."""
    glyphs = [_GLYPHS[one] for one in number]
    return "\n".join(" ".join(glyph[row] for glyph in glyphs) for row in range(3))


def bottleneck(metrics: Mapping[str, float]) -> str:
    """A sentence on which side the other waits for, by the last updates."""
    sample_s, train_s = metrics["time/sample_s"], metrics["time/train_s"]
    slower = "samplers are" if sample_s > train_s else "learner is"
    return (
        f"the {slower} the bottleneck: {metrics['time/update_s']:.3g} s an update, sampling "
        f"{sample_s:.3g} s, training {train_s:.3g} s, "
        f"{metrics['pipeline/ideal_fraction']:.2f} of the ideal"
    )


def _two_digits(value: float) -> str:
    """A number with two digits, a dash if it is not known."""
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _cut(text: str) -> str:
    """Text of which nothing steers the terminal, at most a few lines of it."""
    return visible(text[:_MAX_TEXT]) + ("…" if len(text) > _MAX_TEXT else "")


def _make_console(stream: IO[str]) -> "Console":
    """A console that leaves the cursor alone: nobody would show it again after a kill."""
    from rich.console import Console

    class _Console(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False

    return _Console(file=stream, force_terminal=True, highlight=False)
