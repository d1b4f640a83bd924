"""The wire: what goes in comes out, and what should not have been sent is refused by field."""

import subprocess
import sys

import msgpack
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


def with_array(*fields: object, code: int = 1) -> bytes:
    array = msgpack.ExtType(code, msgpack.packb(fields))
    return msgpack.packb({"type": "submit", "groups": [array]}) or b""


NO_ARRAYS = {
    "a date": with_array((1,), "M8[s]", bytes(8)),
    "a type that cannot be parsed": with_array((1,), "f4,(", bytes(8)),
    "objects": with_array((1,), "O", bytes(8)),
    "a name as bytes": with_array((1,), b"int8", bytes(1)),
    "too few bytes": with_array((2, 2), "int8", bytes(3)),
    "a negative length": with_array((-1, 1), "int8", bytes(1)),
    "lengths that are none": with_array((True, "1"), "int8", bytes(1)),
    "too many axes": with_array((1,) * 999, "int8", bytes(1)),
    "a length of many bits": with_array((0, 2**63), "int8", b""),
    "no shape": with_array("int8", bytes(1)),
    "another extension": with_array((1,), "int8", bytes(1), code=2),
}


@pytest.mark.parametrize("name", NO_ARRAYS)
def test_what_is_no_array_of_a_known_type_is_refused(name):
    with pytest.raises(wire.BadFrame):
        wire.decode(NO_ARRAYS[name])


def test_no_type_from_outside_ends_the_process():
    """NumPy divides by the zero, which is no exception but a signal."""
    frame = with_array((1,), b"M8[s/0]", bytes(8))
    program = f"from asympo_jax.runtime import wire; wire.decode({frame!r})"
    ended = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True
    )
    assert ended.returncode == 1, ended.stderr
    assert b"BadFrame" in ended.stderr


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 1, 3)])
def test_an_array_of_any_shape_comes_back_as_it_was_sent(shape):
    for dtype in (bool, np.int8, np.int64, np.float16, np.float64):
        sent = np.ones(shape, dtype)
        found = wire.decode(wire.encode({"type": "any", "array": sent}))["array"]
        np.testing.assert_array_equal(found, sent, strict=True)


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
