"""The broker: the bound on lag, the bound on the queue, and no waste, without any process.

Samplers and learner are simulated by one thread that makes random legal moves; a call that would
block is never made, so a state in which no move is possible is a deadlock.
"""

import dataclasses
import functools
import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Closed, Lease, Refused, Stalled
from asympo_jax.runtime.ledger import Ledger
from asympo_jax.runtime.tickets import Order, Pacing
from asympo_jax.types import Group

# Until a call that must not block has blocked, and the test fails.
PATIENCE_S = 60.0


def pacing(
    order: Order = "ticket", lag=2, num_updates=6, per_update=4, per_lease=2, refresh=1
) -> Pacing:
    return Pacing(
        order=order,
        lag=lag,
        num_updates=num_updates,
        prompts_per_update=per_update,
        prompts_per_lease=per_lease,
        refresh_every_updates=refresh,
    )


def group(ticket: int, version: int) -> Group:
    return Group(
        ticket=ticket,
        version=version,
        prompt_S=np.zeros(1, np.int32),
        response_GT=np.zeros((2, 3), np.int32),
        length_G=np.ones(2, np.int32),
        stop_G=np.zeros(2, np.int8),
        reward_G=np.zeros(2, np.float32),
    )


def groups_of(pace: Pacing, lease: Lease) -> list[Group]:
    return [group(ticket, lease.version) for ticket in pace.tickets_of_lease(lease.number)]


class Simulation:
    """Samplers that each hold some leases, and a learner, moved one at a time.

    Args:
        num_samplers: leases that are out at most.
        ahead: updates that may be complete and not yet published.
    """

    def __init__(self, pace: Pacing, capacity: int, num_samplers: int, seed: int, ahead: int = 1):
        self.pace, self.capacity, self.ahead = pace, capacity, ahead
        self.broker = Broker(pace, capacity)
        self.broker.open(0)
        self.random = random.Random(seed)
        self.working: list[Lease | None] = [None] * num_samplers
        self.starts = [0] * num_samplers
        self.version = self.published = 0
        self.lags: list[int] = []
        self.trained: list[int] = []
        self.filtered: list[int] = []
        self.filtered_per_update = 0
        self.lost = 0

    def run(self, loss_share: float = 0.0, filtered_per_update: int = 0) -> None:
        self.filtered_per_update = filtered_per_update
        while self.version < self.pace.num_updates:
            self.move(loss_share)
        self.broker.close()

    def move(self, loss_share: float = 0.0) -> None:
        moves = self.possible_moves(loss_share)
        assert moves, "deadlock"
        self.random.choice(moves)()
        assert self.broker.metrics()["queue/depth"] <= self.capacity

    def possible_moves(self, loss_share: float) -> list[Callable[[], None]]:
        moves = []
        for i, lease in enumerate(self.working):
            if lease is None and self.broker._may_lease():
                moves.append(functools.partial(self.lease, i))
            elif lease is not None:
                moves.append(functools.partial(self.finish, i, lease, loss_share))
        # The learner hands an update over once the one before is published.
        if self.broker._select() is not None and self.version - self.published < self.ahead:
            moves.append(self.train)
        if self.published < self.version:
            moves.append(self.publish)
        return moves

    def lease(self, i: int) -> None:
        self.working[i] = self.broker.lease((i, self.starts[i]))

    def finish(self, i: int, lease: Lease, loss_share: float) -> None:
        self.working[i] = None
        if self.random.random() < loss_share:
            self.broker.leave((i, self.starts[i]))
            self.starts[i] += 1
            self.lost += 1
        else:
            holder = (i, self.starts[i])
            self.broker.submit(lease, groups_of(self.pace, lease), 1.0, holder)

    def train(self) -> None:
        batch = self.broker.next_batch(PATIENCE_S)
        assert len(batch) == self.pace.prompts_per_update
        self.lags += [self.version - g.version for g in batch]
        tickets = [g.ticket for g in batch]
        self.random.shuffle(tickets)
        self.filtered += tickets[: self.filtered_per_update]
        trained = sorted(tickets[self.filtered_per_update :])
        self.trained += trained
        self.version += 1
        self.broker.complete(self.version, trained)

    def publish(self) -> None:
        self.published += 1
        self.broker.publish(self.published)


CASES = dict(
    order=st.sampled_from(["ticket", "completion"]),
    lag=st.integers(0, 4),
    per_lease=st.sampled_from([1, 2, 4]),
    num_samplers=st.integers(1, 4),
    extra_room=st.integers(0, 12),
    ahead=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)


@given(**CASES, loss_share=st.sampled_from([0.0, 0.3]), num_filtered=st.integers(0, 3))
def test_every_group_is_used_once_within_the_lag_and_the_queue_within_its_bound(
    order, lag, per_lease, num_samplers, extra_room, ahead, seed, loss_share, num_filtered
):
    pace = pacing(order, lag, per_lease=per_lease)
    capacity = pace.prompts_per_update + extra_room
    simulation = Simulation(pace, capacity, num_samplers, seed, ahead)
    simulation.run(loss_share, num_filtered)
    assert sorted(simulation.trained + simulation.filtered) == list(range(pace.num_tickets))
    assert max(simulation.lags) <= lag
    metrics = simulation.broker.metrics()
    assert metrics["tickets/issued"] == pace.num_tickets
    assert metrics["tickets/filtered"] == len(simulation.filtered) == num_filtered * 6
    assert metrics["tickets/trained"] == len(simulation.trained)
    assert metrics["tickets/failed"] == 0
    assert metrics["tickets/reissued"] == simulation.lost * per_lease


@given(**{k: v for k, v in CASES.items() if k != "order"})
def test_ticket_order_trains_each_slot_with_exactly_the_lag_of_the_config(
    lag, per_lease, num_samplers, extra_room, ahead, seed
):
    pace = pacing("ticket", lag, per_lease=per_lease)
    capacity = pace.prompts_per_update + extra_room
    simulation = Simulation(pace, capacity, num_samplers, seed, ahead)
    simulation.run()
    assert simulation.trained == list(range(pace.num_tickets))
    wanted = [min(lag, update) for update in range(pace.num_updates)]
    assert simulation.lags == [x for x in wanted for _ in range(pace.prompts_per_update)]


@given(
    lag=st.integers(0, 4),
    refresh=st.integers(1, 5),
    num_samplers=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_samplers_refreshed_every_few_updates_are_late_by_exactly_the_updates_since(
    lag, refresh, num_samplers, seed
):
    pace = pacing("ticket", lag, num_updates=9, refresh=refresh)
    simulation = Simulation(pace, max(1, lag) * pace.prompts_per_update, num_samplers, seed)
    simulation.run()
    versions = [max(0, update - lag) // refresh * refresh for update in range(9)]
    wanted = [update - version for update, version in enumerate(versions)]
    assert simulation.lags == [x for x in wanted for _ in range(pace.prompts_per_update)]
    assert max(simulation.lags) <= pace.max_lag == lag + refresh - 1


def test_a_batch_in_completion_order_waits_for_the_straggler_that_is_due():
    pace = pacing("completion", lag=1, per_update=2, per_lease=1)
    broker = Broker(pace, capacity=8)
    broker.open(0)
    leases = [broker.lease() for _ in range(4)]
    for lease in leases[1:]:
        broker.submit(lease, groups_of(pace, lease), 0.0)
    assert [g.ticket for g in broker.next_batch(1.0)] == [1, 2]
    broker.complete(1, {1, 2})
    broker.publish(1)
    later = [broker.lease() for _ in range(2)]
    for lease in later:
        broker.submit(lease, groups_of(pace, lease), 0.0)
    # Ticket 0 is due at update 1: three others are finished, and still the batch waits for it.
    with pytest.raises(Stalled):
        broker.next_batch(0.0)
    broker.submit(leases[0], groups_of(pace, leases[0]), 0.0)
    assert [g.ticket for g in broker.next_batch(1.0)] == [0, 3]


def test_nothing_is_leased_before_the_first_snapshot():
    broker = Broker(pacing(), capacity=8)
    thread = threading.Thread(target=broker.lease, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    broker.open(0)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_closing_wakes_every_blocked_call_with_the_first_cause():
    broker = Broker(pacing(), capacity=8)
    causes = []

    def blocked(call):
        with pytest.raises(Closed) as raised:
            call()
        causes.append(raised.value.cause)

    calls = [broker.lease, lambda: broker.next_batch(PATIENCE_S)]
    threads = [threading.Thread(target=blocked, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    broker.close("sampler 0 ended with signal 9")
    broker.close("something later")
    for thread in threads:
        thread.join(PATIENCE_S)
    assert causes == ["sampler 0 ended with signal 9"] * 2


def test_waiting_without_any_new_group_ends_in_a_sentence_that_names_the_bound():
    broker = Broker(pacing(), capacity=8)
    broker.open(0)
    broker.lease()
    with pytest.raises(Stalled, match=r"update 0 waited .* leases out: \[0\] .*runtime.stall_s"):
        broker.next_batch(0.0)


def trained_once(clock: Callable[[], float] = time.monotonic) -> Broker:
    """A broker at lag 0 that waits for the version of its first update."""
    pace = pacing(lag=0, per_lease=4)
    broker = Broker(pace, 8, clock=clock)
    broker.open(0)
    lease = broker.lease()
    broker.submit(lease, groups_of(pace, lease), 0.0)
    broker.complete(1, {g.ticket for g in broker.next_batch(0.0)})
    return broker


def test_a_version_that_never_comes_ends_in_a_sentence_that_says_so():
    with pytest.raises(Stalled, match=r"update 1 waited .*version 1 not there.*runtime\.stall_s"):
        trained_once().next_batch(0.0)


def test_the_time_until_a_version_is_there_is_not_the_samplers():
    clock = Clock()
    broker, ends = trained_once(clock), []

    def wait_for_groups():
        with pytest.raises((Stalled, Closed)) as raised:
            broker.next_batch(10.0)
        ends.append(raised.type)

    thread = threading.Thread(target=wait_for_groups, daemon=True)
    thread.start()
    clock.set_once_asked(8.0)
    broker.publish(1)
    clock.set_once_asked(12.0)  # beyond 10, but not 10 after the version came
    broker.leave((0, 0))  # wakes it, and nothing else
    clock.set_once_asked(12.0)
    broker.close()
    thread.join(PATIENCE_S)
    assert ends == [Closed]


class Clock:
    """Seconds that a test sets once they were asked for."""

    def __init__(self):
        self._now = 0.0
        self._asked = threading.Event()

    def __call__(self) -> float:
        self._asked.set()
        return self._now

    def set_once_asked(self, now: float) -> None:
        assert self._asked.wait(PATIENCE_S)
        self._asked.clear()
        self._now = now


def test_groups_of_another_version_or_ticket_are_not_taken():
    pace = pacing()
    broker = Broker(pace, capacity=8)
    broker.open(0)
    lease = broker.lease()
    with pytest.raises(Refused, match="version"):
        broker.submit(lease, [group(t, 1) for t in (0, 1)], 0.0)
    with pytest.raises(Refused, match=r"\[0, 2\]"):
        broker.submit(lease, [group(t, 0) for t in (0, 2)], 0.0)
    broker.submit(lease, groups_of(pace, lease), 0.0)
    with pytest.raises(Refused, match="not out"):
        broker.submit(lease, groups_of(pace, lease), 0.0)


def test_a_resumed_run_leases_what_was_live_and_trains_the_rest_once():
    pace = pacing(lag=1)
    simulation = Simulation(pace, 8, num_samplers=2, seed=3)
    while (
        simulation.published < 3
        or simulation.published < simulation.version
        or not simulation.broker.metrics()["tickets/leased"]
    ):
        simulation.move()
    ledger = Ledger.from_json(simulation.broker.unsettled()[0])
    simulation.broker.close()
    resumed = Simulation(pace, 8, num_samplers=2, seed=4)
    resumed.broker = Broker(pace, 8, ledger)
    resumed.broker.open(simulation.version)
    resumed.version = resumed.published = simulation.version
    resumed.run()
    assert simulation.trained + resumed.trained == list(range(pace.num_tickets))


@pytest.mark.parametrize("order", ["ticket", "completion"])
def test_groups_that_were_finished_are_not_sampled_again_in_a_resumed_run(order):
    pace = pacing(order, lag=1)
    broker = Broker(pace, capacity=8)
    broker.open(0)
    first, second = broker.lease(), broker.lease()
    broker.submit(second, groups_of(pace, second), 0.0)
    plain, groups = broker.unsettled()
    assert [group.ticket for group in groups] == list(pace.tickets_of_lease(second.number))
    ledger = Ledger.from_json(plain, [group.ticket for group in groups])
    resumed = Broker(pace, 8, ledger, groups)
    resumed.open(0)
    assert resumed.metrics()["queue/depth"] == len(groups)
    again = resumed.lease()
    assert again.number == first.number
    resumed.submit(again, groups_of(pace, again), 0.0)
    assert resumed.next_batch(1.0)[-1] is groups[-1]
    assert resumed.lease().number == 2


def test_a_lease_with_a_group_that_could_not_be_graded_is_sampled_again_by_a_resumed_run():
    pace = pacing("ticket", lag=1)
    broker = Broker(pace, capacity=8)
    broker.open(0)
    leases = [broker.lease() for _ in range(4)]
    for number, lease in enumerate(leases):
        groups = groups_of(pace, lease)
        if number == 1:
            failure_G = np.ones_like(groups[0].stop_G)
            groups = [dataclasses.replace(groups[0], failure_G=failure_G), *groups[1:]]
        broker.submit(lease, groups, 0.0)
    broker.next_batch(1.0)  # what is taken and not trained on counts, too
    plain, groups = broker.unsettled()
    tickets = {group.ticket for group in groups}
    assert tickets == {t for lease in (0, 2, 3) for t in pace.tickets_of_lease(lease)}
    # The room is that of the run before, although there is less for a new one.
    resumed = Broker(pace, 4, Ledger.from_json(plain, tickets), groups)
    resumed.open(0)
    assert not resumed.has_batch()
    again = resumed.lease()
    assert again.number == 1
    resumed.submit(again, groups_of(pace, again), 0.0)
    assert resumed.has_batch()


@pytest.mark.parametrize("order", ["ticket", "completion"])
def test_an_update_that_is_not_published_lets_the_next_batch_be_taken_and_no_sampler_use_it(order):
    pace = pacing(order, lag=1)
    broker = Broker(pace, capacity=8)
    broker.open(0)
    for _ in range(4):
        lease = broker.lease()
        broker.submit(lease, groups_of(pace, lease), 0.0)
    for version in (1, 2):
        batch = broker._select()
        assert batch is not None and batch == broker.next_batch(1.0)
        broker.complete(version, {g.ticket for g in batch})
    # A group of version 0 could be trained at update 1 at the latest, and that is complete.
    assert not broker._may_lease()
    broker.publish(1)
    assert broker.lease().version == 1
    with pytest.raises(AssertionError):
        broker.publish(3)
