"""Keeps samplers at work: starts them, again when they end, and kills those that hang.

A sampler that is lost costs time alone: its tickets wait again. So one that ends before the run is
started again, a few times, and as often again after much work; but not one that ends twice in a row
without having handed anything in, as it would again. The others go on without it, and the run ends
with the last of them.

It knows no transport: a sampler is what the function that starts it says.
"""

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable
from typing import Protocol

from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Closed, Holder, Out

_KILLED_S = 5.0  # until a sampler that was killed has ended
_MAX_BARREN = 2  # ends in a row without a lease that was handed in
_MUCH_WORK = 20  # leases that a process handed in; what its end costs is little beside them


class SamplerProcess(Protocol):
    """A sampler from its start to its end.

    Attributes:
        holder: its name at the broker.
        num_handed_in: leases that it handed in.
    """

    holder: Holder
    num_handed_in: int

    def wait(self) -> str:
        """Waits until it has ended, with its leases given back; how it ended, in words."""
        ...

    def kill(self, why: str) -> None:
        """Ends it at once."""
        ...


@dataclasses.dataclass
class _Past:
    """What became of a sampler: starts again since much work, ends in a row without any."""

    restarts: int = 0
    barren: int = 0
    words: str | None = None  # how it ended, once it is lost


class Supervisor:
    """Samplers, each with a thread that waits for its end.

    Args:
        broker: what they lease from; it is closed when none is left, and counts.
        start: starts a sampler under a name; `OSError` where that fails.
        count: number of samplers.
        max_restarts: times that each is started again, counted anew after 20 leases of one process.
        say: tells people.
    """

    def __init__(
        self,
        broker: Broker,
        start: Callable[[Holder], SamplerProcess],
        count: int,
        max_restarts: int,
        say: Callable[[str], None],
    ):
        """Starts all of them."""
        self._broker = broker
        self._start = start
        self._max_restarts = max_restarts
        self._say = say
        self._lock = threading.Lock()  # on what follows
        self._is_stopped = False
        self._processes: dict[int, SamplerProcess] = {}
        self._past = [_Past() for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._run, args=(index,), name=f"sampler-{index}", daemon=True)
            for index in range(count)
        ]
        watch = threading.Thread(target=self._end_overdue, name="deadlines", daemon=True)
        for thread in [*self._threads, watch]:
            thread.start()

    def stop(self, timeout_s: float) -> None:
        """Waits for the samplers after the broker was closed; kills those that are too slow.

        Args:
            timeout_s: for all of them together.
        """
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._is_stopped = True
            for process in self._processes.values():
                process.kill("it was too slow to end")
        for thread in self._threads:
            thread.join(_KILLED_S)

    def _run(self, index: int) -> None:
        """Starts a sampler until it is not to be started again."""
        try:
            for attempt in itertools.count():
                words, num_handed_in = self._run_once((index, attempt))
                if not self._is_started_again(index, words, num_handed_in):
                    return
        except Exception as error:
            # Not the sampler's fault; the thread's own traceback says where.
            self._broker.close(f"serving sampler {index}: {type(error).__name__}: {error}")
            raise

    def _run_once(self, holder: Holder) -> tuple[str, int]:
        """How a sampler ended, and how many leases it handed in."""
        index, _ = holder
        with self._lock:
            if self._is_stopped:
                return "no process", 0
            try:
                process = self._processes[index] = self._start(holder)
            except OSError as error:
                return f"no process ({error})", 0
        words = process.wait()
        with self._lock:
            del self._processes[index]
        return words, process.num_handed_in

    def _end_overdue(self) -> None:
        """Kills samplers that let the deadline of a lease pass."""
        try:
            while True:
                for out in self._broker.take_back_overdue():
                    self._kill(out)
        except Closed:
            pass
        except Exception as error:
            # Without this thread a sampler that hangs would hang for ever.
            self._broker.close(f"watching deadlines: {type(error).__name__}: {error}")
            raise

    def _kill(self, out: Out) -> None:
        """Kills the sampler that has a lease, unless it has ended."""
        with self._lock:
            for process in self._processes.values():
                if process.holder == out.holder:
                    number = out.lease.number
                    process.kill(f"its lease {number} was not handed in within runtime.lease_s")

    def _is_started_again(self, index: int, words: str, num_handed_in: int) -> bool:
        """Whether a sampler that ended is started again; the run ends if none is left."""
        if self._broker.closed is not None:
            return False
        past = self._past[index]
        past.barren = 0 if num_handed_in else past.barren + 1
        if num_handed_in >= _MUCH_WORK:
            past.restarts = 0
        if past.barren < _MAX_BARREN and past.restarts < self._max_restarts:
            past.restarts += 1
            self._broker.count("samplers/restarts")
            again = f"{past.restarts} of {self._max_restarts} times"
            self._say(f"sampler {index} ended with {words}; it is started again, {again}")
            return True
        with self._lock:
            past.words = words
            left = sum(other.words is None for other in self._past)
        self._broker.count("samplers/lost")
        if left:
            self._say(f"sampler {index} ended with {words}; it is lost, {left} left")
        else:
            self._broker.close(self._describe())
        return False

    def _describe(self) -> str:
        """One sentence on how the samplers ended."""
        ends = [
            f"sampler {index} ended with {past.words} after {past.restarts} restarts"
            for index, past in enumerate(self._past)
        ]
        return (
            f"{', '.join(ends)}: none is left (runtime.max_restarts={self._max_restarts}); what "
            "was printed above may say why"
        )
