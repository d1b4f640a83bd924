"""The broker: hands out leases, keeps the bounded queue of finished groups, forms batches.

Plain Python behind one lock; it knows nothing of processes or transports. Samplers call `lease` and
`submit`, the learner `next_batch`, `complete` and `publish`, who watches over samplers `leave` and
`take_back_overdue`. What cannot be answered yet blocks until it can, or raises `Closed` with the
cause that ended the run; nothing polls.

Two counts say how far the run is: updates complete, of which the ledger knows, and the newest
version published, which samplers may use; it follows when the device is done.

Everything is bounded where work begins, so nothing that was worked on ever waits at a door or is
thrown away. A lease starts only if every live ticket can still be trained within the lag, and if
the queue has room left for its groups: room is reserved with the lease. Tickets of a lost sampler
go first, into the room that they had. A batch is formed only if what stays is in time, too.
"""

import collections
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import get_args

from asympo_jax.runtime.admission import Admission
from asympo_jax.runtime.formation import groups_to_keep, is_lease_in_time, select_batch
from asympo_jax.runtime.leases import (
    Closed,
    Gone,
    HandedIn,
    Holder,
    Lease,
    Out,
    Refusal,
    Refused,
    SamplingTotals,
    Stalled,
)
from asympo_jax.runtime.ledger import Ledger
from asympo_jax.runtime.outstanding import Outstanding
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.types import Group

_COUNTS = ("samplers/restarts", "samplers/lost", "leases/expired")
_COUNTS += tuple(f"refused/{reason}" for reason in get_args(Refusal))


class Broker:
    """See the module's text.

    Args:
        pacing: order, lag and sizes.
        capacity: bound of the queue.
        ledger: of an earlier run that this one carries on, or a new one.
        groups: that wait in the queue, of tickets that are finished in the ledger.
        clock: monotonic seconds.
        run_id: of this attempt at the run; what is handed in for another is refused.
        admission: what groups must be; None lets in all that have the right tickets and version.
        lease_s: seconds until a lease is overdue.
    """

    def __init__(
        self,
        pacing: Pacing,
        capacity: int,
        ledger: Ledger | None = None,
        groups: Collection[Group] = (),
        clock: Callable[[], float] = time.monotonic,
        *,
        run_id: str = "",
        admission: Admission | None = None,
        lease_s: float = math.inf,
    ):
        """An open broker without any version yet."""
        self._pacing = pacing
        self._ledger = ledger or Ledger()
        # Live tickets of an earlier run keep the room that they had, if it had more.
        self._capacity = max(capacity, len(self._ledger.live))
        self._clock = clock
        self._changed = threading.Condition()
        self._closed: Closed | None = None
        self._updates = 0  # complete; the next batch is that of this update
        self._version: int | None = None  # newest published, at most `_updates`
        self._queue = {group.ticket: group for group in groups}
        self._batch: list[Group] = []
        self._out = Outstanding(pacing, self._ledger, run_id, lease_s, admission)
        self._gone: set[Holder | None] = set()
        self._counts = collections.Counter(dict.fromkeys(_COUNTS, 0))
        self._sampled = SamplingTotals()

    def open(self, version: int) -> None:
        """The first snapshot is there: sampling may begin."""
        with self._changed:
            self._updates = self._version = version
            self._changed.notify_all()

    def lease(self, holder: Holder | None = None) -> Lease:
        """The next tickets to work; blocks until pacing allows it.

        Args:
            holder: names the sampler to `leave`; one that is started again has another name.

        Raises:
            Closed: the run has ended.
            Gone: the holder has left.
        """
        with self._changed:
            while not (self._closed or holder in self._gone or self._may_lease()):
                self._changed.wait()  # without a deadline: the learner's `next_batch` has one
            self.raise_if_closed()
            if holder in self._gone:
                raise Gone(holder)
            assert self._version is not None
            self._changed.notify_all()  # there is a new deadline
            return self._out.give(self._version, holder, self._clock())

    def submit(
        self,
        lease: Lease,
        groups: Sequence[Group],
        busy_s: float,
        holder: Holder | None = None,
        read_s: float = 0.0,
    ) -> None:
        """Puts a lease's groups into the room that was reserved for them; never blocks.

        Args:
            lease: as it was given out.
            groups: one for each of its tickets, in their order.
            busy_s: seconds that the sampler worked on them.
            holder: the sampler, as it named itself to `lease`.
            read_s: of these, seconds in which it read their snapshot; 0 if it had that.

        Raises:
            Closed: the run has ended.
            Refused: it has no such lease, or they are not the lease's or the run's; it is counted.
        """
        with self._changed:
            self.raise_if_closed()
            try:
                self._out.check(lease, groups, holder)
            except Refused as refused:
                self._counts[f"refused/{refused.reason}"] += 1
                raise
            for group in groups:
                if group.ticket in self._ledger.live:  # else trained before the run was resumed
                    self._ledger.finish(group.ticket)
                    self._queue[group.ticket] = group
            assert len(self._queue) <= self._capacity
            self._out.finish(lease, self._clock(), busy_s)
            self._sampled = self._sampled.plus(groups, busy_s, read_s)
            self._changed.notify_all()

    def leave(self, holder: Holder) -> None:
        """A sampler is gone: the tickets of its leases wait again, its blocked `lease` ends."""
        with self._changed:
            self._gone.add(holder)
            self._out.take_back_all(holder)
            self._changed.notify_all()

    def take_back_overdue(self) -> list[Out]:
        """Waits until leases are beyond their deadlines; their tickets wait again.

        Raises:
            Closed: the run has ended.
        """
        with self._changed:
            while not (overdue := self._out.overdue(now := self._clock())):
                self.raise_if_closed()
                self._changed.wait(self._out.seconds_left(now))  # a new lease ends it, too
            self.raise_if_closed()
            for out in overdue:
                self._out.take_back(out.lease)
                self._counts["leases/expired"] += 1
            self._changed.notify_all()
            return overdue

    def has_batch(self) -> bool:
        """Whether the groups of the next update are there."""
        with self._changed:
            return self._select() is not None

    def next_batch(self, timeout_s: float) -> list[Group]:
        """The groups of the next update, in order of their tickets; blocks until they are there.

        Raises:
            Closed: the run has ended.
            Stalled: no group and no version came in for `timeout_s` seconds.
        """
        with self._changed:
            deadline, before, batch = 0.0, None, self._select()
            while self._closed is None and batch is None:
                # A new version gives the whole time anew, and so does a sampler that takes over.
                now = (len(self._queue), self._version, self._ledger.reissued)
                if now != before:
                    deadline, before = self._clock() + timeout_s, now
                in_time = self._changed.wait(deadline - self._clock())
                batch = self._select()  # a group may have come in at the last moment
                if not (in_time or batch or self._closed):
                    raise Stalled(self._describe_stall(timeout_s))
            self.raise_if_closed()
            assert batch is not None
            for group in batch:
                # The bound of the whole system, asserted where the group is used.
                assert 0 <= self._updates - group.version <= self._pacing.max_lag, group
                del self._queue[group.ticket]
            self._batch = batch
            self._changed.notify_all()
            return batch

    def complete(self, version: int, trained: Collection[int]) -> None:
        """The update with the batch is on its way, and the next batch may be taken.

        Args:
            version: number of such updates.
            trained: tickets of the batch that it trains on.
        """
        with self._changed:
            assert version == self._updates + 1
            self._ledger.settle_batch(self._batch, trained)
            self._batch = []
            self._updates = version
            self._changed.notify_all()

    def publish(self, version: int) -> None:
        """The snapshot of `version` is there: samplers may use it."""
        with self._changed:
            assert self._version is not None and self._version < version <= self._updates
            self._version = version
            self._changed.notify_all()

    def close(self, cause: str | None = None) -> None:
        """Ends the run: every blocked call raises `Closed`. The first cause stays."""
        with self._changed:
            if self._closed is None:
                self._closed = Closed(cause)
            self._changed.notify_all()

    def raise_if_closed(self) -> None:
        """Raises `Closed` if the run has ended."""
        with self._changed:
            if self._closed is not None:
                raise self._closed

    @property
    def closed(self) -> Closed | None:
        """The end of the run, None while it goes on."""
        return self._closed

    def unsettled(self) -> tuple[dict, list[Group]]:
        """The ledger as plain data, and finished groups; for a checkpoint."""
        with self._changed:
            kept = groups_to_keep(self._pacing, [*self._queue.values(), *self._batch])
            return self._ledger.to_json(), kept

    def count(self, name: str) -> None:
        """Counts something that happened at the door or to a sampler, for `metrics`."""
        with self._changed:
            assert name in _COUNTS
            self._counts[name] += 1

    def metrics(self) -> dict[str, float]:
        """`tickets/*`, `queue/depth`, and what was counted."""
        with self._changed:
            return {"queue/depth": len(self._queue), **self._ledger.metrics(), **self._counts}

    def sampling_totals(self) -> SamplingTotals:
        """What samplers have handed in so far."""
        with self._changed:
            return self._sampled

    def handed_in(self) -> list[HandedIn]:
        """The leases that samplers handed in since the last call."""
        with self._changed:
            return self._out.take_handed_in()

    def _may_lease(self) -> bool:
        """Whether another lease can start within the bounds on lag and queue."""
        number, pacing = self._out.next_number, self._pacing
        if self._version is None or number is None:
            return False
        held = len(self._queue) + (len(self._out) + 1) * pacing.prompts_per_lease
        return held <= self._capacity and is_lease_in_time(
            pacing, self._ledger, number, self._out.is_next_live, self._version, self._updates
        )

    def _select(self) -> list[Group] | None:
        """The next batch, or None while it is not there."""
        return select_batch(self._pacing, self._ledger, self._queue, self._updates)

    def _describe_stall(self, timeout_s: float) -> str:
        """One sentence on what the learner waited for."""
        pending = "" if self._version == self._updates else f", version {self._updates} not there"
        return (
            f"update {self._updates} waited {timeout_s:.0f} s without a new group: "
            f"{len(self._queue)} groups in the queue, leases out: "
            f"{self._out.numbers or 'none'}{pending} (runtime.stall_s bounds this wait)"
        )
