"""The broker: hands out leases, keeps the bounded queue of finished groups, forms batches.

Plain Python behind one lock; it knows nothing of processes or transports. Samplers call `lease` and
`submit`, the learner `next_batch`, `complete` and `publish`. `lease` and `next_batch` block until
they can be answered, or raise `Closed` with the cause that ended the run; nothing polls.

Two counts say how far the run is: updates that are complete, of which the ledger knows, and the
newest version published, which samplers may use; it follows when the device is done.

Everything is bounded where work begins, so nothing that was worked on ever waits at a door or is
thrown away. A lease starts only if every live ticket can still be trained within the lag, and if
the queue has room left for its groups: room is reserved with the lease. Tickets that come back from
a lost sampler go first, into the room that they had. A batch is formed only if what stays can still
be trained in time.
"""

import collections
import threading
import time
from collections.abc import Callable, Collection, Sequence

from asympo_jax.runtime.leases import Closed, Lease, Refused, SamplingTotals, Stalled
from asympo_jax.runtime.ledger import Ledger, Outcome, TicketState
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.types import Group


class Broker:
    """See the module's text.

    Args:
        pacing: order, lag and sizes.
        capacity: bound of the queue.
        ledger: of an earlier run that this one carries on, or a new one.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        pacing: Pacing,
        capacity: int,
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """An open broker without any version yet."""
        self._pacing = pacing
        self._capacity = capacity
        self._ledger = ledger or Ledger()
        self._clock = clock
        self._changed = threading.Condition()
        self._closed: Closed | None = None
        self._updates = 0  # complete; the next batch is that of this update
        self._version: int | None = None  # newest published, at most `_updates`
        self._queue: dict[int, Group] = {}
        self._batch: list[Group] = []
        self._leases: dict[int, Lease] = {}
        self._attempts: collections.Counter[int] = collections.Counter()
        self._sampled = SamplingTotals()
        size = pacing.prompts_per_lease
        # Leases whose tickets are issued but waiting: from an earlier run, or of a lost sampler.
        self._waiting = sorted({ticket // size for ticket in self._ledger.live})

    def open(self, version: int) -> None:
        """The first snapshot is there: sampling may begin."""
        with self._changed:
            self._updates = self._version = version
            self._changed.notify_all()

    def lease(self) -> Lease:
        """The next tickets to work; blocks until pacing allows it.

        Raises:
            Closed: the run has ended.
        """
        with self._changed:
            version = self._wait_for_lease()
            if self._waiting:
                number = self._waiting.pop(0)
                tickets = [
                    t for t in self._pacing.tickets_of_lease(number) if t in self._ledger.live
                ]
            else:
                number = self._ledger.issued // self._pacing.prompts_per_lease
                tickets = list(self._pacing.tickets_of_lease(number))
                self._ledger.issue(tickets)
            if self._pacing.order == "ticket":
                version = self._pacing.version_for(tickets[0])
            self._ledger.lease(tickets, version)
            lease = Lease(number, self._attempts[number], version)
            self._attempts[number] += 1
            self._leases[number] = lease
            return lease

    def submit(self, lease: Lease, groups: Sequence[Group], busy_s: float) -> None:
        """Puts a lease's groups into the room that was reserved for them; never blocks.

        Args:
            lease: as it was given out.
            groups: one for each of its tickets, in their order.
            busy_s: seconds that the sampler worked on them.

        Raises:
            Closed: the run has ended.
            Refused: the lease is not out, or the groups are not those of its tickets and version.
        """
        tickets = [group.ticket for group in groups]
        with self._changed:
            self.raise_if_closed()
            if self._leases.get(lease.number) != lease:
                raise Refused(f"{lease} is not out")
            if tickets != list(self._pacing.tickets_of_lease(lease.number)):
                raise Refused(f"{lease} does not have the tickets {tickets}")
            if any(group.version != lease.version for group in groups):
                raise Refused(f"{lease} has groups of another version")
            for group in groups:
                if group.ticket in self._ledger.live:  # else trained before the run was resumed
                    self._ledger.finish(group.ticket)
                    self._queue[group.ticket] = group
            assert len(self._queue) <= self._capacity
            del self._leases[lease.number]
            self._sampled = self._sampled.plus(groups, busy_s)
            self._changed.notify_all()

    def abandon(self, lease: Lease) -> None:
        """Takes a lease back from a sampler that is gone; its tickets wait again."""
        with self._changed:
            if self._leases.get(lease.number) != lease:
                return
            del self._leases[lease.number]
            tickets = self._pacing.tickets_of_lease(lease.number)
            live = self._ledger.live
            self._ledger.reissue(
                t for t in tickets if t in live and live[t].state is TicketState.LEASED
            )
            self._waiting = sorted([*self._waiting, lease.number])
            self._changed.notify_all()

    def next_batch(self, timeout_s: float) -> list[Group]:
        """The groups of the next update, in order of their tickets; blocks until they are there.

        Raises:
            Closed: the run has ended.
            Stalled: no group and no version came in for `timeout_s` seconds.
        """
        with self._changed:
            deadline, before, batch = 0.0, None, self._select()
            while self._closed is None and batch is None:
                # Samplers may wait for a version, so they have the whole time once it is there.
                now = (len(self._queue), self._version)
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
            trained: tickets of the batch that it trains on. Of the others those that could not be
                graded have failed, the rest is filtered out.
        """
        with self._changed:
            assert version == self._updates + 1
            assert set(trained) <= {group.ticket for group in self._batch}
            for group in self._batch:
                outcome = Outcome.FILTERED if group.is_graded else Outcome.FAILED
                if group.ticket in trained:
                    assert group.is_graded, group
                    outcome = Outcome.TRAINED
                self._ledger.settle(group.ticket, outcome)
            self._batch = []
            self._ledger.check_balance()
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
        with self._changed:
            return self._closed

    def ledger_json(self) -> dict:
        """The ledger as plain data, for a checkpoint."""
        with self._changed:
            return self._ledger.to_json()

    def metrics(self) -> dict[str, float]:
        """`tickets/*` and `queue/depth`."""
        with self._changed:
            return {
                "queue/depth": len(self._queue),
                "tickets/issued": self._ledger.issued,
                "tickets/leased": self._ledger.num_in(TicketState.LEASED),
                "tickets/reissued": self._ledger.reissued,
                **{f"tickets/{one.value}": self._ledger.outcomes[one] for one in Outcome},
            }

    def sampling_totals(self) -> SamplingTotals:
        """What samplers have handed in so far."""
        with self._changed:
            return self._sampled

    def _wait_for_lease(self) -> int:
        """The newest version once a lease may start; the learner's `next_batch` has a deadline."""
        self._changed.wait_for(lambda: self._closed or self._may_lease())
        self.raise_if_closed()
        assert self._version is not None
        return self._version

    def _may_lease(self) -> bool:
        """Whether another lease can start within the bounds on lag and queue."""
        if self._version is None:
            return False
        pacing, size = self._pacing, self._pacing.prompts_per_lease
        if not self._waiting and self._ledger.issued >= pacing.num_tickets:
            return False
        if len(self._queue) + (len(self._leases) + 1) * size > self._capacity:
            return False
        number = self._waiting[0] if self._waiting else self._ledger.issued // size
        if pacing.order == "ticket":
            return pacing.version_for(number * size) <= self._version
        # The updates up to version + lag can train this many, the batch at work included.
        room = (self._version + pacing.lag + 1 - self._updates) * pacing.prompts_per_update
        return bool(self._waiting) or len(self._ledger.live) + size <= room

    def _select(self) -> list[Group] | None:
        """The next batch, or None while it is not there."""
        pacing, update = self._pacing, self._updates
        if pacing.order == "ticket":
            start = update * pacing.prompts_per_update
            slot = range(start, start + pacing.prompts_per_update)
            if all(ticket in self._queue for ticket in slot):
                return [self._queue[ticket] for ticket in slot]
            return None
        chosen = sorted(self._queue, key=self._due_order)[: pacing.prompts_per_update]
        if len(chosen) < pacing.prompts_per_update or not self._rest_in_time(set(chosen), update):
            return None
        return [self._queue[ticket] for ticket in sorted(chosen)]

    def _due_order(self, ticket: int) -> tuple[int, int]:
        """Sorts live tickets by the update at which they are due."""
        version = self._ledger.live[ticket].version
        assert version is not None
        return version, ticket

    def _rest_in_time(self, chosen: set[int], update: int) -> bool:
        """Whether every other live ticket can still be trained by the update at which it is due."""
        pacing = self._pacing
        others = (live for ticket, live in self._ledger.live.items() if ticket not in chosen)
        due = collections.Counter(
            live.version + pacing.lag - update for live in others if live.version is not None
        )
        total = 0
        for updates_left, count in sorted(due.items()):
            total += count
            if total > updates_left * pacing.prompts_per_update:
                return False
        return True

    def _describe_stall(self, timeout_s: float) -> str:
        """One sentence on what the learner waited for."""
        pending = "" if self._version == self._updates else f", version {self._updates} not there"
        return (
            f"update {self._updates} waited {timeout_s:.0f} s without a new group: "
            f"{len(self._queue)} groups in the queue, leases out: "
            f"{sorted(self._leases) or 'none'}{pending} (runtime.stall_s bounds this wait)"
        )
