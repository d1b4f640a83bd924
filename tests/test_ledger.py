"""The ledger: every ticket is accounted for exactly once."""

import json

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asympo_jax.runtime.ledger import Ledger, Outcome, TicketState


def finished_ledger(num_tickets: int) -> Ledger:
    ledger = Ledger()
    ledger.issue(range(num_tickets))
    ledger.lease(range(num_tickets), version=0)
    for ticket in range(num_tickets):
        ledger.finish(ticket)
    return ledger


def test_a_ticket_is_settled_once_and_only_after_it_is_finished():
    ledger = Ledger()
    ledger.issue([0])
    ledger.lease([0], version=0)
    with pytest.raises(AssertionError):
        ledger.settle(0, Outcome.TRAINED)
    ledger.finish(0)
    ledger.settle(0, Outcome.TRAINED)
    with pytest.raises(KeyError):
        ledger.settle(0, Outcome.TRAINED)


def test_a_leased_ticket_cannot_be_leased_again_before_it_is_reissued():
    ledger = Ledger()
    ledger.issue([0])
    ledger.lease([0], version=3)
    with pytest.raises(AssertionError):
        ledger.lease([0], version=3)
    ledger.reissue([0])
    ledger.lease([0], version=4)
    assert ledger.live[0].version == 4
    assert ledger.reissued == 1


def test_tickets_are_issued_in_order_and_once():
    ledger = Ledger()
    ledger.issue([0, 1])
    with pytest.raises(AssertionError):
        ledger.issue([1])
    with pytest.raises(AssertionError):
        ledger.issue([3])


def test_a_stored_ledger_counts_the_same_and_its_live_tickets_wait_again():
    ledger = finished_ledger(4)
    ledger.settle(0, Outcome.TRAINED)
    ledger.settle(2, Outcome.FAILED)
    restored = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert restored.issued == 4
    assert restored.outcomes == {Outcome.TRAINED: 1, Outcome.FAILED: 1}
    assert {t: live.state for t, live in restored.live.items()} == {
        1: TicketState.WAITING,
        3: TicketState.WAITING,
    }


def test_a_stored_ledger_that_does_not_balance_is_refused():
    data = finished_ledger(3).to_json()
    del data["live"]["1"]
    with pytest.raises(AssertionError):
        Ledger.from_json(data)


class AnyHistory(RuleBasedStateMachine):
    """Random legal moves: the balance holds after each."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.settled: set[int] = set()

    def in_state(self, state: TicketState) -> list[int]:
        return [t for t, live in self.ledger.live.items() if live.state is state]

    @rule(count=st.integers(1, 4))
    def issue(self, count):
        self.ledger.issue(range(self.ledger.issued, self.ledger.issued + count))

    @precondition(lambda self: self.in_state(TicketState.WAITING))
    @rule(data=st.data())
    def lease(self, data):
        self.ledger.lease([data.draw(st.sampled_from(self.in_state(TicketState.WAITING)))], 0)

    @precondition(lambda self: self.in_state(TicketState.LEASED))
    @rule(data=st.data(), lost=st.booleans())
    def finish_or_reissue(self, data, lost):
        ticket = data.draw(st.sampled_from(self.in_state(TicketState.LEASED)))
        if lost:
            self.ledger.reissue([ticket])
        else:
            self.ledger.finish(ticket)

    @precondition(lambda self: self.in_state(TicketState.FINISHED))
    @rule(data=st.data(), outcome=st.sampled_from(list(Outcome)))
    def settle(self, data, outcome):
        ticket = data.draw(st.sampled_from(self.in_state(TicketState.FINISHED)))
        self.ledger.settle(ticket, outcome)
        assert ticket not in self.settled
        self.settled.add(ticket)

    @invariant()
    def every_ticket_is_live_or_settled(self):
        self.ledger.check_balance()
        assert self.settled | set(self.ledger.live) == set(range(self.ledger.issued))
        assert not self.settled & set(self.ledger.live)


TestAnyHistory = AnyHistory.TestCase
