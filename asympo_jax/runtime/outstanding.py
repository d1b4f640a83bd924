"""The leases on their way: which wait to be given out again, who has which, and until when.

Plain data; the broker locks around it.
"""

import collections
import math
from collections.abc import Sequence

from asympo_jax.runtime.admission import Admission
from asympo_jax.runtime.leases import HandedIn, Holder, Lease, Out, Refused
from asympo_jax.runtime.ledger import Ledger, TicketState
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.types import Group

_MAX_HANDED_IN = 10_000  # that nobody asked for


class Outstanding:
    """Leases by number.

    Args:
        pacing: which tickets a lease has.
        ledger: of all tickets; it follows what happens to leases.
        run_id: of this attempt at the run.
        lease_s: seconds until a lease is overdue.
        admission: what groups must be; None for nothing more than those of their lease.
    """

    def __init__(
        self,
        pacing: Pacing,
        ledger: Ledger,
        run_id: str,
        lease_s: float,
        admission: Admission | None,
    ):
        """Nothing is out; tickets of an earlier run that are live wait."""
        self._pacing = pacing
        self._ledger = ledger
        self._run_id = run_id
        self._lease_s = lease_s
        self._admission = admission
        self._attempts: collections.Counter[int] = collections.Counter()
        self._out: dict[int, Out] = {}
        self._handed_in: collections.deque[HandedIn] = collections.deque(maxlen=_MAX_HANDED_IN)
        # Leases whose tickets are issued but waiting: from an earlier run, or of a lost sampler.
        waiting = (t for t, live in ledger.live.items() if live.state is TicketState.WAITING)
        self._waiting = sorted({ticket // pacing.prompts_per_lease for ticket in waiting})

    def __len__(self) -> int:
        """How many are out."""
        return len(self._out)

    @property
    def numbers(self) -> list[int]:
        """Of the leases that are out, ascending."""
        return sorted(self._out)

    @property
    def next_number(self) -> int | None:
        """Of the next lease, those that wait first; None when all tickets of the run are issued."""
        if self._waiting:
            return self._waiting[0]
        issued = self._ledger.issued
        return (
            issued // self._pacing.prompts_per_lease if issued < self._pacing.num_tickets else None
        )

    @property
    def is_next_live(self) -> bool:
        """Whether the tickets of the next lease are issued already."""
        return bool(self._waiting)

    def give(self, version: int, holder: Holder | None, now: float) -> Lease:
        """Gives the next lease out; in ticket order its tickets say with which version."""
        number = self.next_number
        assert number is not None
        tickets = list(self._pacing.tickets_of_lease(number))
        if self._waiting:
            self._waiting.pop(0)
            tickets = [ticket for ticket in tickets if ticket in self._ledger.live]
        else:
            self._ledger.issue(tickets)
        if self._pacing.order == "ticket":
            version = self._pacing.version_for(tickets[0])
        self._ledger.lease(tickets, version)
        lease = Lease(number, self._attempts[number], version, self._run_id)
        self._attempts[number] += 1
        self._out[number] = Out(lease, holder, now + self._lease_s)
        return lease

    def finish(self, lease: Lease, now: float, busy_s: float) -> None:
        """A lease is handed in."""
        out = self._out.pop(lease.number)
        self._handed_in.append(HandedIn(lease, out.holder, now, busy_s))
        del self._attempts[lease.number]  # it is never given out again

    def take_handed_in(self) -> list[HandedIn]:
        """What was handed in since the last call, the newest thousands."""
        found = list(self._handed_in)
        self._handed_in.clear()
        return found

    def take_back(self, lease: Lease) -> None:
        """The tickets of a lease that is out wait again."""
        del self._out[lease.number]
        live = self._ledger.live
        tickets = self._pacing.tickets_of_lease(lease.number)
        self._ledger.reissue(
            t for t in tickets if t in live and live[t].state is TicketState.LEASED
        )
        self._waiting = sorted([*self._waiting, lease.number])

    def take_back_all(self, holder: Holder) -> None:
        """What a sampler had waits again."""
        for out in [out for out in self._out.values() if out.holder == holder]:
            self.take_back(out.lease)

    def overdue(self, now: float) -> list[Out]:
        """What was to be handed in by now."""
        return [out for out in self._out.values() if out.deadline <= now]

    def seconds_left(self, now: float) -> float | None:
        """Until the next deadline; None where there is none."""
        left = min((out.deadline for out in self._out.values()), default=math.inf) - now
        return None if left == math.inf else left

    def check(self, lease: Lease, groups: Sequence[Group], holder: Holder | None) -> None:
        """Lets groups in that are those of a lease that is out to the one who hands them in.

        Raises:
            Refused: it is not out, or to another, or they have another run, version or other
                tickets, or are not what groups of this run must be.
        """
        out = self._out.get(lease.number)
        if lease.run_id != self._run_id:
            raise Refused(f"{lease} is of another run than {self._run_id!r}", "run")
        if out is None or out.lease.attempt != lease.attempt:
            raise Refused(f"{lease} is not out", "duplicate")
        if out.holder != holder:
            raise Refused(f"{lease} is out to another sampler", "holder")
        if {lease.version, *(group.version for group in groups)} != {out.lease.version}:
            raise Refused(f"{out.lease} has groups of another version", "version")
        tickets = [group.ticket for group in groups]
        if tickets != list(self._pacing.tickets_of_lease(lease.number)):
            raise Refused(f"{lease} does not have the tickets {tickets}", "tickets")
        if self._admission is not None:
            for group in groups:
                self._admission.check(group)
