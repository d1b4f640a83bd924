"""Tickets: pure functions of the seed and the index."""

from hypothesis import given
from hypothesis import strategies as st

from asympo_jax.runtime.tickets import Pacing, ticket


@given(seed=st.integers(0, 2**31), index=st.integers(0, 10**6))
def test_a_ticket_is_a_pure_function_of_seed_and_index(seed, index):
    assert ticket(seed, index, 4, 50) == ticket(seed, index, 4, 50)
    assert ticket(seed, index, 4, 50).slot == index // 4


@given(seed=st.integers(0, 1000), epoch=st.integers(0, 5))
def test_each_epoch_has_each_prompt_once_in_an_order_of_its_own(seed, epoch):
    def order(e):
        return [ticket(seed, e * 50 + i, 4, 50).prompt_index for i in range(50)]

    assert sorted(order(epoch)) == list(range(50))
    assert order(epoch) != order(epoch + 1)


def test_keys_differ_between_tickets_and_between_seeds():
    keys = {ticket(seed, index, 4, 50).key for seed in range(20) for index in range(200)}
    assert len(keys) == 20 * 200


@given(lag=st.integers(0, 8), slot=st.integers(0, 20))
def test_the_version_of_a_slot_is_the_lag_before_it_and_never_below_zero(lag, slot):
    pace = Pacing("ticket", lag, 30, 4, 2)
    for index in range(slot * 4, slot * 4 + 4):
        assert pace.version_for(index) == max(0, slot - lag)


@given(lag=st.integers(0, 8), refresh=st.integers(1, 5), update=st.integers(0, 30))
def test_a_run_that_is_resumed_needs_the_versions_of_its_tickets_and_no_others(
    lag, refresh, update
):
    pace = Pacing("ticket", lag, 60, 4, 2, refresh)
    later = {pace.version_for(ticket) for ticket in range(update * 4, 60 * 4)}
    expected = {update, *(version for version in later if version <= update)}
    assert pace.versions_to_resume(update) == expected
    assert Pacing("completion", lag, 60, 4, 2).versions_to_resume(update) == {update}


@given(lease=st.integers(0, 100))
def test_leases_part_the_tickets(lease):
    pace = Pacing("ticket", 0, 30, 6, 3)
    tickets = pace.tickets_of_lease(lease)
    assert len(tickets) == 3
    assert tickets.stop == pace.tickets_of_lease(lease + 1).start
    assert len({index // 6 for index in tickets}) == 1
