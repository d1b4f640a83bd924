"""What follows an update while the next one runs: the device is awaited, the snapshot published.

The learner hands over a copy of the parameters that the device may still have to compute, and goes
on. At most one update waits behind the one that is published, so that the device always has its
next step, and memory holds two copies at most. Nothing that is not finite is published: the step
skips such an update, and the snapshot that follows is that of the version before.
"""

import dataclasses
import math
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import SamplingTotals, Stalled
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.types import Group

_GUARDS = ("loss", "grad/norm", "update/norm", "params/norm")


class NonFinite(Exception):
    """Too many updates in a row, or parameters, that are not finite; nothing was published."""


@dataclasses.dataclass(frozen=True)
class Update:
    """An update that the device is at work on.

    Attributes:
        version: number of updates with this one.
        params: a copy of its parameters, which no later step ends the life of.
        metrics: its metrics on the device.
        groups: what it trains on.
        num_candidates: groups that were sampled for it.
        counts: metrics of the broker and of compilation when it was given to the device.
        asked: when its batch was asked for, monotonic seconds.
        taken: when the batch was there.
        batch: the groups of its batch, those that could not be graded included.
    """

    version: int
    params: Any
    metrics: Mapping[str, Any]
    groups: Sequence[Group]
    num_candidates: int
    counts: Mapping[str, float]
    asked: float
    taken: float
    batch: Sequence[Group] = ()


@dataclasses.dataclass(frozen=True)
class Published:
    """An update whose snapshot is there.

    Attributes:
        update: as it was handed over.
        metrics: its metrics on the host.
        sampled: what samplers had handed in when the device was done.
        finished: when that was, monotonic seconds.
        wait_s: seconds without a batch and with nothing on the device.
        train_s: seconds with the batch there until the device was done, those that it was at work
            on the update before left out.
        publish_s: seconds to write the snapshot.
    """

    update: Update
    metrics: dict[str, float]
    sampled: SamplingTotals
    finished: float
    wait_s: float
    train_s: float
    publish_s: float


def spans(published: Published) -> dict[str, tuple[float, float]]:
    """When the learner waited, trained and published; start and end in monotonic seconds."""
    taken, finished = published.update.taken, published.finished
    return {
        "wait": (taken - published.wait_s, taken),
        "train": (finished - published.train_s, finished),
        "publish": (finished, finished + published.publish_s),
    }


class Publisher:
    """A thread that publishes updates, one after the other.

    What breaks there is raised by the learner's next call, and closes the broker, so that a learner
    that waits for groups wakes up.

    Args:
        store: where snapshots go.
        broker: learns of each version.
        stall_s: seconds that an update may take to be published.
        max_skipped: updates in a row that may be skipped.
        skipped: those in a row that were, when an earlier attempt at the run saved.
        record: (version, its batch, whether it is needed) -> the file where it is, or None.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: SnapshotStore,
        broker: Broker,
        stall_s: float,
        max_skipped: int = 0,
        record: Callable[[int, Sequence[Group], bool], pathlib.Path | None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
        skipped: int = 0,
    ):
        """Starts the thread."""
        self._store = store
        self._broker = broker
        self._stall_s = stall_s
        self._max_skipped = max_skipped
        self._record = record
        self._clock = clock
        self._skipped = skipped
        self._changed = threading.Condition()
        self._closed = False
        self._work: Update | None = None
        self._published: list[Published] = []
        self._failure: Exception | None = None
        self._finished = clock()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    @property
    def skipped(self) -> int:
        """The updates in a row, up to the last one published, that were skipped."""
        return self._skipped

    def hand_over(self, update: Update) -> list[Published]:
        """Takes an update once the one before is published; returns those published meanwhile.

        Raises:
            NonFinite: the update before was skipped, and too many before it, or its parameters
                are not finite.
            SnapshotRefused: it cannot be written.
            Stalled: it was not published within `stall_s`.
        """
        with self._changed:
            published = self._wait()
            self._work = update
            self._changed.notify_all()
            return published

    def wait(self) -> list[Published]:
        """Waits until all is published; returns those published since the last call.

        Raises:
            NonFinite: as `hand_over`.
            SnapshotRefused: as `hand_over`.
            Stalled: as `hand_over`.
        """
        with self._changed:
            return self._wait()

    def close(self, timeout_s: float) -> None:
        """Ends the thread; what it has not begun to publish is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _wait(self) -> list[Published]:
        """Waits for the thread, with the lock held."""
        if self._failure is None and not self._changed.wait_for(
            lambda: self._work is None, self._stall_s
        ):
            assert self._work is not None
            self._failure = Stalled(
                f"update {self._work.version - 1} waited {self._stall_s:.0f} s for the device and "
                "for its snapshot to be written (runtime.stall_s bounds this wait)"
            )
        if self._failure is not None:
            raise self._failure
        published, self._published = self._published, []
        return published

    def _run(self) -> None:
        """Publishes what is handed over until it is closed, or something breaks."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._work is not None)
                update = self._work
                if self._closed or update is None:
                    return
            published = failure = None
            try:
                published = self._publish(update)
            except Exception as error:  # the learner's next call raises it
                failure = error
            with self._changed:
                self._published += [published] if published else []
                self._failure = self._failure or failure
                self._work = None
                self._changed.notify_all()
            if failure is not None:
                self._broker.close(str(failure))
                return

    def _publish(self, update: Update) -> Published:
        """Waits for the device, checks what it found, writes and announces the snapshot."""
        found = jax.device_get(dict(update.metrics))
        before, finished = self._finished, self._clock()
        self._finished, sampled = finished, self._broker.sampling_totals()
        metrics = {name: float(value) for name, value in found.items()}
        self._require_finite(update, metrics)
        start = self._clock()
        metrics["snapshot/bytes"] = float(self._store.write(update.version, update.params))
        metrics["snapshot/write_s"] = self._clock() - start
        self._broker.publish(update.version)
        published_s = self._clock() - finished
        # Samplers have their snapshot; only now is there time for files that nobody waits for.
        self._record(update.version, update.batch, bool(self._skipped))
        return Published(
            update=dataclasses.replace(update, params=None, batch=()),
            metrics=metrics,
            sampled=sampled,
            finished=finished,
            wait_s=max(0.0, update.taken - max(update.asked, before)),
            train_s=finished - max(update.taken, before),
            publish_s=published_s,
        )

    def _require_finite(self, update: Update, metrics: Mapping[str, float]) -> None:
        """Counts skipped updates; refuses one too many, and to publish NaN or infinity."""
        is_skipped = bool(metrics["update/skipped"])
        self._skipped = self._skipped + 1 if is_skipped else 0
        # A second line, in case that the step let something through.
        names = ("params/norm",) if is_skipped else _GUARDS
        is_finite = all(math.isfinite(metrics[name]) for name in names)
        if is_finite and self._skipped <= self._max_skipped:
            return
        found = ", ".join(f"{name} {metrics[name]:.4g}" for name in _GUARDS)
        words = [f"update {update.version - 1}: {found} must be finite"]
        if is_skipped and is_finite:
            words.append(
                f"{self._skipped} updates in a row are skipped, more than "
                f"learner.max_skipped_updates={self._max_skipped}"
            )
        words.append("nothing of it was published")
        path = self._record(update.version, update.batch, True)
        words += [f"its batch is in {path}"] if path else []
        raise NonFinite("; ".join(words))
