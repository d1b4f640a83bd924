"""The wire: what goes in comes out, and what should not have been sent is refused by field."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asympo_jax.runtime import wire
from asympo_jax.runtime.leases import Lease
from asympo_jax.types import Group


def group(with_logp: bool = False, size: int = 2, room: int = 3) -> Group:
    return Group(
        ticket=5,
        version=2,
        prompt_S=np.arange(4, dtype=np.int32),
        response_GT=np.arange(size * room, dtype=np.int32).reshape(size, room),
        length_G=np.full(size, room, np.int32),
        stop_G=np.zeros(size, np.int8),
        reward_G=np.linspace(0, 1, size, dtype=np.float32),
        behaviour_logp_GT=np.full((size, room), -0.5, np.float32) if with_logp else None,
    )


@given(with_logp=st.booleans(), size=st.integers(1, 5), room=st.integers(1, 5))
def test_groups_come_back_as_they_were_sent(with_logp, size, room):
    sent = group(with_logp, size, room)
    frame = wire.encode({"type": "submit", "groups": [wire.group_fields(sent)]})
    (found,) = wire.groups_from(wire.decode(frame)["groups"])
    assert (found.ticket, found.version) == (5, 2)
    for name in ("prompt_S", "response_GT", "length_G", "stop_G", "reward_G"):
        np.testing.assert_array_equal(getattr(found, name), getattr(sent, name))
        assert getattr(found, name).dtype == getattr(sent, name).dtype
    assert (found.behaviour_logp_GT is None) == (not with_logp)


def test_without_behaviour_log_probs_none_are_on_the_wire():
    assert "behaviour_logp_GT" not in wire.group_fields(group())


def test_leases_come_back_as_they_were_sent():
    lease = Lease(number=3, attempt=1, version=9, run_id="run-1")
    frame = wire.encode({"type": "lease", "lease": wire.lease_fields(lease)})
    assert wire.lease_from(wire.decode(frame)["lease"]) == lease


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused(frame):
    try:
        message = wire.decode(frame)
    except wire.BadFrame:
        return
    assert isinstance(message["type"], str)


WRONG = {
    "ticket": "five",
    "version": None,
    "prompt_S": np.zeros((2, 2), np.int32),
    "response_GT": np.zeros((2, 3), np.int64),
    "length_G": np.array([1, 4], np.int32),
    "stop_G": np.zeros(3, np.int8),
    "reward_G": [0.0, 1.0],
    "behaviour_logp_GT": np.zeros((2, 2), np.float32),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_group_with_a_wrong_field_is_refused_by_its_name(name):
    with pytest.raises(wire.BadFrame, match=rf"group\.{name}"):
        wire.groups_from([{**wire.group_fields(group(True)), name: WRONG[name]}])


def test_a_lease_with_a_wrong_field_is_refused():
    lease = {"number": 1, "attempt": 0, "version": 2, "run_id": "run-1"}
    for name, value in [("version", "newest"), ("number", -1), ("attempt", True), ("run_id", 7)]:
        with pytest.raises(wire.BadFrame, match=name):
            wire.lease_from({**lease, name: value})
