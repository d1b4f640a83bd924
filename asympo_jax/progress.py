"""One line every few seconds on how a run goes, for the person who waits for it."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from asympo_jax.printable import visible

_SECONDS_BETWEEN_LINES = 3.0
_SECONDS_BETWEEN_VIEWS = 0.25
_SECONDS_BETWEEN_SIGNS = 15.0  # of life, before the first update

# A prompt, a response to it and its reward.
Answer = tuple[str, str, float]


class View(Protocol):
    """What draws the state of a run anew, in place of lines."""

    def show(
        self,
        update: int,
        metrics: Mapping[str, float],
        accuracy: float,
        left: str,
        answer: Answer | None,
    ) -> None:
        """Draws what is known after an update; the accuracy is NaN if it is not known."""
        ...


class Progress:
    """Prints lines like these.

        update  40/150 · reward 0.61 · accuracy 0.55 · lag 16 · learner waits 2 % · …

    Args:
        num_updates: of the whole run.
        clock: monotonic seconds.
        view: shows all that instead of lines, where there is a terminal for it.
    """

    def __init__(
        self,
        num_updates: int,
        clock: Callable[[], float] = time.monotonic,
        view: View | None = None,
    ):
        """Nothing is printed yet."""
        self._begun = threading.Event()
        self._view = view
        self._num_updates = num_updates
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._printed_at = float("-inf")
        self._accuracy = float("nan")

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Tells within it how long there is no update yet; the caller is held up by compiling."""
        threading.Thread(target=self._tell_of_waiting, name="waiting", daemon=True).start()
        try:
            yield
        finally:
            self._begun.set()

    def evaluated(self, update: int, found: Mapping[str, float]) -> None:
        """Takes note of an evaluation; shows the one before training."""
        self._accuracy = found["eval/accuracy"]
        if update == 0:
            say(
                f"before training: {self._accuracy:.3f} of sampled and "
                f"{found['eval/accuracy_greedy']:.3f} of greedy answers to held-out prompts are "
                "right"
            )

    def update(
        self,
        update: int,
        metrics: Mapping[str, float],
        answer: Callable[[], Answer | None] = lambda: None,
    ) -> None:
        """Shows an update, unless a line was printed just before; a skipped one always.

        Args:
            update: number of updates done.
            metrics: of this one.
            answer: one that it trained on, for a view, asked for only when that is drawn.
        """
        self._begun.set()
        if metrics["update/skipped"]:
            say(
                f"update {update - 1} is skipped, not all is finite: loss {metrics['loss']:.4g}, "
                f"grad/norm {metrics['grad/norm']:.4g}, update/norm {metrics['update/norm']:.4g}; "
                "its batch is saved for replay, and if many are, lower optimizer.learning_rate"
            )
        now = self._clock()
        if self._first is None:
            self._first = (now, update)
        between_s = _SECONDS_BETWEEN_LINES if self._view is None else _SECONDS_BETWEEN_VIEWS
        if now - self._printed_at < between_s and update != self._num_updates:
            return
        self._printed_at = now
        if self._view is not None:
            left = self._time_left(now, update)
            self._view.show(update, metrics, self._accuracy, left, answer())
            return
        say(
            f"update {update:4d}/{self._num_updates}"
            f" · reward {metrics['reward/mean']:.2f}"
            f" · accuracy {'–' if math.isnan(self._accuracy) else f'{self._accuracy:.2f}'}"
            f" · lag {metrics['lag/mean']:.0f}"
            f" · {who_waits(metrics['idle/learner'], metrics['idle/sampler'])}"
            f" · {self._time_left(now, update)}"
        )

    def _tell_of_waiting(self) -> None:
        """A line now and then until the first update."""
        start = self._clock()
        while not self._begun.wait(_SECONDS_BETWEEN_SIGNS):
            say(f"no update yet: {self._clock() - start:.0f} s so far")

    def _time_left(self, now: float, update: int) -> str:
        """An estimate from the pace since the first update."""
        assert self._first is not None
        done = update - self._first[1]
        if update == self._num_updates:
            return "done"
        if not done:
            return "time left unknown"
        return time_left((now - self._first[0]) / done * (self._num_updates - update))


class Count:
    """Prints lines like `sampled 128/512 prompts · 45 s left`.

    Args:
        what: is counted, before the numbers.
        total: of them.
        clock: monotonic seconds.
    """

    def __init__(self, what: str, total: int, clock: Callable[[], float] = time.monotonic):
        """Nothing is printed yet; the time starts."""
        self._what = what
        self._total = total
        self._clock = clock
        self._start = self._printed_at = clock()

    def show(self, done: int) -> None:
        """Shows how many are done, unless a line was printed just before; the end always."""
        now = self._clock()
        if now - self._printed_at < _SECONDS_BETWEEN_LINES and done != self._total:
            return
        self._printed_at = now
        spent_s = now - self._start
        words = (
            f"{spent_s:.0f} s"
            if done == self._total
            else time_left(spent_s / done * (self._total - done))
        )
        say(f"{self._what} {done:4d}/{self._total} prompts · {words}")


def time_left(left_s: float) -> str:
    """Seconds that are left as words."""
    minutes, seconds = divmod(round(left_s), 60)
    return f"{minutes} min {seconds:02d} s left" if minutes else f"{seconds} s left"


def who_waits(learner: float, sampler: float) -> str:
    """Idle shares as words."""
    return f"learner waits {learner:.0%}, samplers wait {sampler:.0%}"


def say_left_out(task: object) -> None:
    """Tells how many problems a task does not ask, such as those that are too long."""
    train, held_out = (getattr(task, f"num_{kind}_left_out", 0) for kind in ("train", "eval"))
    if train or held_out:
        say(
            f"problems left out: {train} of training, {held_out} held out, whose prompt is longer "
            "than task.max_prompt_tokens, or that have no answer"
        )


def say(line: str) -> None:
    """A line to standard error, where it mixes with no result; without one, to nobody.

    What a model wrote may be part of it, as in the words of a reward that failed.
    """
    with contextlib.suppress(OSError, AttributeError, ValueError):  # closed, full, or None
        sys.stderr.write(visible(line, kept="\n\t") + "\n")
        sys.stderr.flush()
