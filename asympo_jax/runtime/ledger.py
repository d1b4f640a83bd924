"""The ledger: the state of every ticket, and the balance that proves none is lost or used twice.

    issued = trained + filtered + failed + live        live = waiting, leased or finished

Plain data with checked transitions; no threads, no clocks. The broker owns one and locks around it.
"""

import collections
import dataclasses
import enum
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from asympo_jax.types import Group


class TicketState(enum.StrEnum):
    """Where a live ticket is."""

    WAITING = "waiting"
    LEASED = "leased"
    FINISHED = "finished"


class Outcome(enum.StrEnum):
    """How a ticket left the ledger."""

    TRAINED = "trained"
    FILTERED = "filtered"
    FAILED = "failed"


@dataclasses.dataclass
class LiveTicket:
    """A ticket on its way. `version` is that of its lease, None while it waits for one."""

    state: TicketState
    version: int | None = None


class Ledger:
    """States of all tickets of a run."""

    def __init__(self) -> None:
        """An empty ledger."""
        self.issued = 0
        self.reissued = 0
        self.outcomes: collections.Counter[Outcome] = collections.Counter()
        self.live: dict[int, LiveTicket] = {}

    def issue(self, tickets: Iterable[int]) -> None:
        """Takes up the next tickets; they wait for a lease."""
        for ticket in tickets:
            assert ticket == self.issued, (ticket, self.issued)
            self.live[ticket] = LiveTicket(TicketState.WAITING)
            self.issued += 1

    def lease(self, tickets: Iterable[int], version: int) -> None:
        """Waiting tickets go to a sampler that reads `version`."""
        for ticket in tickets:
            self._move(ticket, TicketState.WAITING, TicketState.LEASED)
            self.live[ticket].version = version

    def reissue(self, tickets: Iterable[int]) -> None:
        """Leased tickets whose sampler is gone wait again."""
        for ticket in tickets:
            self._move(ticket, TicketState.LEASED, TicketState.WAITING)
            self.live[ticket].version = None
            self.reissued += 1

    def finish(self, ticket: int) -> None:
        """A leased ticket has its group."""
        self._move(ticket, TicketState.LEASED, TicketState.FINISHED)

    def settle(self, ticket: int, outcome: Outcome) -> None:
        """A finished ticket leaves the ledger; it never comes back."""
        assert self.live[ticket].state is TicketState.FINISHED, (ticket, self.live[ticket])
        del self.live[ticket]
        self.outcomes[outcome] += 1

    def settle_batch(self, batch: Sequence[Group], trained: Collection[int]) -> None:
        """All groups of a batch leave, trained on or not.

        Args:
            batch: groups of finished tickets.
            trained: tickets of those that are trained on. Of the others those that could not be
                graded have failed, the rest is filtered out.
        """
        assert set(trained) <= {group.ticket for group in batch}
        for group in batch:
            outcome = Outcome.FILTERED if group.is_graded else Outcome.FAILED
            if group.ticket in trained:
                assert group.is_graded, group
                outcome = Outcome.TRAINED
            self.settle(group.ticket, outcome)
        self.check_balance()

    def num_in(self, state: TicketState) -> int:
        """Live tickets in a state."""
        return sum(live.state is state for live in self.live.values())

    def metrics(self) -> dict[str, float]:
        """`tickets/*`."""
        return {
            "tickets/issued": self.issued,
            "tickets/leased": self.num_in(TicketState.LEASED),
            "tickets/reissued": self.reissued,
            **{f"tickets/{one.value}": self.outcomes[one] for one in Outcome},
        }

    def check_balance(self) -> None:
        """Asserts that every ticket issued is accounted for exactly once."""
        assert self.issued == self.outcomes.total() + len(self.live), self.to_json()

    def to_json(self) -> dict[str, Any]:
        """The whole ledger as plain data."""
        return {
            "issued": self.issued,
            "reissued": self.reissued,
            "outcomes": {outcome.value: self.outcomes[outcome] for outcome in Outcome},
            "live": {str(t): [live.state.value, live.version] for t, live in self.live.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], finished: Collection[int] = ()) -> "Ledger":
        """The ledger that `to_json` wrote; live tickets wait again but those that have groups."""
        ledger = cls()
        ledger.issued = data["issued"]
        ledger.reissued = data["reissued"]
        ledger.outcomes = collections.Counter(
            {Outcome(name): count for name, count in data["outcomes"].items() if count}
        )
        for ticket, (state, version) in sorted((int(t), live) for t, live in data["live"].items()):
            if ticket in finished and state == TicketState.FINISHED:
                ledger.live[ticket] = LiveTicket(TicketState.FINISHED, version)
            else:
                ledger.live[ticket] = LiveTicket(TicketState.WAITING)
        ledger.check_balance()
        return ledger

    def _move(self, ticket: int, before: TicketState, after: TicketState) -> None:
        """A checked transition."""
        assert self.live[ticket].state is before, (ticket, self.live[ticket], after)
        self.live[ticket].state = after
