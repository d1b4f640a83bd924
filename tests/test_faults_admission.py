"""The door: what no group may be is refused, counted by its reason, and never seen by a learner."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampler_stand_ins import ADMISSION, RUN_ID, group, submission

from asympo_jax.runtime import wire
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Lease, Refused, Stalled
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.tasks import reward_of
from asympo_jax.types import Prompt

IDS = np.ones((2, 3), np.int32)
WRONG = {
    "no prompt": (dict(prompt_S=np.zeros(0, np.int32)), "length"),
    "a prompt that is too long": (dict(prompt_S=np.zeros(5, np.int32)), "length"),
    "no tokens": (dict(length_G=np.array([1, 0], np.int32)), "length"),
    "too many tokens": (dict(length_G=np.array([1, 4], np.int32)), "length"),
    "a prompt beyond the vocabulary": (dict(prompt_S=np.array([10], np.int32)), "vocabulary"),
    "a response beyond the vocabulary": (dict(response_GT=IDS * 10), "vocabulary"),
    "negative ids": (dict(response_GT=-IDS), "vocabulary"),
    "ids of 64 bits": (dict(response_GT=IDS.astype(np.int64)), "shape"),
    "a longer room": (dict(response_GT=np.ones((2, 4), np.int32)), "shape"),
    "another number of responses": (
        dict(
            response_GT=np.ones((3, 3), np.int32),
            length_G=np.ones(3, np.int32),
            stop_G=np.zeros(3, np.int8),
            reward_G=np.zeros(3, np.float32),
        ),
        "shape",
    ),
    "a list": (dict(reward_G=[0.0, 0.0]), "shape"),
    "log-probs that nobody asked for": (
        dict(behaviour_logp_GT=np.zeros((2, 3), np.float32)),
        "shape",
    ),
    "an unknown end": (dict(stop_G=np.array([0, 7], np.int8)), "value"),
    "an unknown failure": (dict(failure_G=np.array([0, 9], np.int8)), "value"),
    "a reward that is not finite": (dict(reward_G=np.array([0, np.nan], np.float32)), "value"),
    "an infinite reward": (dict(reward_G=np.array([-np.inf, 0], np.float32)), "value"),
    "a reward whose square overflows": (dict(reward_G=np.array([0, -2e30], np.float32)), "value"),
    "a version from the future": (dict(version=3), "version"),
    "another ticket": (dict(ticket=4), "tickets"),
}


def open_broker(admission=ADMISSION) -> tuple[Broker, Lease]:
    broker = Broker(Pacing("ticket", 2, 6, 2, 2), 4, run_id=RUN_ID, admission=admission)
    broker.open(0)
    return broker, broker.lease()


@pytest.mark.parametrize("name", WRONG)
def test_what_no_group_may_be_is_refused_and_counted_by_its_reason(name):
    fields, reason = WRONG[name]
    broker, lease = open_broker()
    with pytest.raises(Refused) as refused:
        broker.submit(lease, [group(0), dataclasses.replace(group(1), **fields)], 1.0)
    assert refused.value.reason == reason
    found = {n: count for n, count in broker.metrics().items() if n.startswith("refused/")}
    assert {n: count for n, count in found.items() if count} == {f"refused/{reason}": 1}
    with pytest.raises(Stalled):
        broker.next_batch(0.0)
    assert broker.sampling_totals().groups == 0
    broker.submit(lease, [group(0), group(1)], 1.0)
    assert len(broker.next_batch(0.0)) == 2


def test_log_probs_that_were_asked_for_must_be_there_and_finite():
    broker, lease = open_broker(dataclasses.replace(ADMISSION, has_logp=True))
    with_logp = [
        dataclasses.replace(group(ticket), behaviour_logp_GT=np.full((2, 3), -1.0, np.float32))
        for ticket in (0, 1)
    ]
    for logp, reason in [(None, "shape"), (np.full((2, 3), -np.inf, np.float32), "value")]:
        wrong = dataclasses.replace(with_logp[0], behaviour_logp_GT=logp)
        with pytest.raises(Refused) as refused:
            broker.submit(lease, [wrong, with_logp[1]], 1.0)
        assert refused.value.reason == reason
    broker.submit(lease, with_logp, 1.0)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (dict(run_id="run-2"), "run"),
        (dict(attempt=1), "duplicate"),
        (dict(number=1), "duplicate"),
        (dict(version=1), "version"),
    ],
)
def test_a_lease_that_was_not_given_out_is_refused(changed, reason):
    broker, lease = open_broker()
    with pytest.raises(Refused) as refused:
        broker.submit(dataclasses.replace(lease, **changed), [group(0), group(1)], 1.0)
    assert refused.value.reason == reason


@pytest.mark.parametrize("largest", [1e30, -1e30])
def test_the_largest_reward_that_a_grader_lets_through_is_let_in(largest):
    reward = reward_of(lambda prompt, text: largest, Prompt(0, "", ""), "")
    reward_G = np.array([reward, 0], np.float32)
    ADMISSION.check(dataclasses.replace(group(0), reward_G=reward_G))


def test_a_sampler_that_was_given_up_or_never_had_it_cannot_hand_in_the_lease_of_another():
    """Whatever it says of the lease; the one who has it still can."""
    broker = Broker(Pacing("ticket", 2, 6, 2, 2), 4, run_id=RUN_ID, admission=ADMISSION)
    broker.open(0)
    lost, groups = broker.lease((0, 0)), [group(0), group(1)]
    broker.leave((0, 0))
    with pytest.raises(Refused, match="is not out"):
        broker.submit(lost, groups, 1.0, (0, 0))
    again = broker.lease((1, 0))
    assert again == dataclasses.replace(lost, attempt=1)
    for lease, holder in [(lost, (0, 0)), (again, (0, 0)), (again, (0, 1)), (again, None)]:
        with pytest.raises(Refused) as refused:
            broker.submit(lease, groups, 1.0, holder)
        assert refused.value.reason == ("duplicate" if lease is lost else "holder")
    broker.submit(again, groups, 1.0, (1, 0))
    found = broker.metrics()
    assert (found["refused/duplicate"], found["refused/holder"]) == (2, 3)
    assert [each.ticket for each in broker.next_batch(0.0)] == [0, 1]


@given(
    num_groups=st.integers(1, 4),
    size=st.integers(1, 6),
    prompt=st.integers(1, 40),
    room=st.integers(1, 60),
    has_logp=st.booleans(),
)
def test_no_submission_that_is_let_in_has_more_bytes_than_the_bound(
    num_groups, size, prompt, room, has_logp
):
    admission = dataclasses.replace(
        ADMISSION,
        group_size=size,
        max_prompt_tokens=prompt,
        max_response_tokens=room,
        has_logp=has_logp,
    )
    largest = dataclasses.replace(
        group(2**31, version=2**31),
        prompt_S=np.full(prompt, 9, np.int32),
        response_GT=np.full((size, room), 9, np.int32),
        length_G=np.full(size, room, np.int32),
        stop_G=np.ones(size, np.int8),
        reward_G=np.ones(size, np.float32),
        behaviour_logp_GT=np.ones((size, room), np.float32) if has_logp else None,
        failure_G=np.ones(size, np.int8),
    )
    admission.check(largest)
    frame = submission(Lease(2**31, 2**31, 2**31, RUN_ID), [largest] * num_groups)
    assert len(frame) <= admission.max_frame_bytes(num_groups)
    assert admission.max_frame_bytes(num_groups) < 2 * len(frame) + 2**17


@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 2**16))
def test_a_submission_that_is_cut_or_damaged_is_refused_or_still_one(share, flip):
    """Whatever comes, nothing but `Refused` is raised, and what gets in is a group of the run."""
    whole = submission(Lease(0, 0, 0, RUN_ID), [group(0), group(1)])
    damaged = bytearray(whole)
    damaged[flip % len(whole)] ^= 1 << flip % 8
    for frame in (whole[: int(len(whole) * share)], bytes(damaged)):
        broker, _ = open_broker()
        try:
            message = wire.decode(frame)
            groups = wire.groups_from(message.get("groups"))
            broker.submit(wire.lease_from(message.get("lease")), groups, 1.0)
        except Refused:
            continue
        for each in broker.next_batch(0.0):
            ADMISSION.check(each)
