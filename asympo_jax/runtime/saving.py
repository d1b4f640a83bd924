"""When a checkpoint is due, and the thread that writes it."""

import threading
import time
from collections.abc import Callable


class SaveCadence:
    """When a checkpoint is due: every so many updates, and every so many seconds.

    Args:
        every_updates: 0 is never.
        every_s: 0 is never.
        clock: monotonic seconds.
    """

    def __init__(
        self, every_updates: int, every_s: float, clock: Callable[[], float] = time.monotonic
    ):
        """The seconds begin."""
        self._every_updates = every_updates
        self._every_s = every_s
        self._clock = clock
        self._last = clock()

    def is_due(self, version: int) -> bool:
        """Whether one is due after an update; if so, the seconds begin anew."""
        by_count = self._every_updates > 0 and version % self._every_updates == 0
        now = self._clock()
        is_due = by_count or 0 < self._every_s <= now - self._last
        if is_due:
            self._last = now
        return is_due


class Writing(threading.Thread):
    """A checkpoint that is being written; no process waits for this thread to end.

    Attributes:
        update: its number.
        copied: set once the arrays are copied, or that has failed.
        failure: what broke.
    """

    def __init__(self, update: int, begin: Callable[[], object], finish: Callable[[], object]):
        """Does nothing yet: `begin` copies, `finish` returns once all is written."""
        super().__init__(name=f"checkpoint-{update}", daemon=True)
        self.update, self.copied = update, threading.Event()
        self.failure: Exception | None = None
        self._calls = [finish, begin]  # dropped when called, with the arrays that they hold

    def run(self) -> None:
        """Writes."""
        try:
            self._calls.pop()()
            self.copied.set()
            self._calls.pop()()
        except Exception as error:  # Orbax and its libraries raise errors of many kinds
            self.failure = error
        finally:
            self.copied.set()
