"""A sampler's two stages."""

import threading
import types

import pytest

from asympo_jax.runtime.leases import Closed, Lease
from asympo_jax.runtime.sampler import SamplerLoop

PATIENCE_S = 60.0


class Stages:
    """A source of leases and a sampler that wait for what a test says.

    Args:
        num_leases: after which the source is closed.
        in_turn: a lease is given out only when all before are handed in, as at lag 0.
    """

    num_devices = 1

    def __init__(self, num_leases: int, in_turn: bool = False):
        self.num_leases, self.in_turn = num_leases, in_turn
        self.changed = threading.Condition()
        self.leased = self.decoded = self.submitted = 0
        self.most_out = 0
        self.closed = False
        self.now = 0.0
        self.busy: list[float] = []
        self.read: list[float] = []

    def wait_for(self, condition) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.closed or condition(), PATIENCE_S)

    def lease(self) -> Lease:
        self.wait_for(lambda: self.submitted == self.leased or not self.in_turn)
        with self.changed:
            if self.closed or self.leased == self.num_leases:
                raise Closed(None)
            self.leased += 1
            self.most_out = max(self.most_out, self.leased - self.submitted)
            return Lease(self.leased - 1, 0, 0)

    def submit(self, lease, groups, busy_s, *, read_s) -> None:
        with self.changed:
            assert lease.number == self.submitted
            self.submitted += 1
            self.busy.append(busy_s)
            self.read.append(read_s)
            self.changed.notify_all()

    def close(self, cause) -> None:
        self.cause = cause
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def read_snapshot(self, version):
        self.now += 0.25
        return {}

    def decode(self, lease, params):
        with self.changed:
            self.decoded += 1
            self.now += 1.0
            self.changed.notify_all()
        return types.SimpleNamespace(lease=lease)

    def grade(self, decoded):
        return []

    def clock(self) -> float:
        return self.now

    def loop(self) -> SamplerLoop:
        return SamplerLoop(self, self, self.clock)  # pyright: ignore[reportArgumentType]


def test_a_lease_is_graded_while_the_next_one_is_decoded_and_two_are_out_at_most():
    stages = Stages(num_leases=5)

    def grade(decoded):
        # Without a thread of its own this would never end.
        stages.wait_for(lambda: stages.decoded > decoded.lease.number + 1 or stages.decoded == 5)
        return []

    stages.grade = grade
    stages.loop().run(pytest.fail)
    assert (stages.submitted, stages.most_out) == (5, 2)


@pytest.mark.parametrize("in_turn", [True, False])
def test_leases_that_wait_for_submissions_do_not_hold_them_up(in_turn):
    stages = Stages(num_leases=4, in_turn=in_turn)
    stages.loop().run(pytest.fail)
    assert stages.submitted == 4
    assert sum(stages.busy) == pytest.approx(4.25), "each second counts once"
    assert stages.read == [0.25, 0.0, 0.0, 0.0], "a version is read once"


def test_grading_that_breaks_is_told_although_the_loop_waits_for_a_lease():
    stages = Stages(num_leases=9, in_turn=True)

    def grade(decoded):
        raise RuntimeError("the grader fell over")

    stages.grade = grade
    with pytest.raises(RuntimeError, match="fell over"):
        stages.loop().run(stages.close)
    assert stages.cause == "RuntimeError: the grader fell over"
