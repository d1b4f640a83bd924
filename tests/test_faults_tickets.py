"""Tickets of runs that are killed and resumed, that have stragglers, or that have little to train.

No process: samplers and learner are the simulation that tests the broker.
"""

import collections
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_broker import CASES, Simulation, pacing
from tiny_runs import TINY

from asympo_jax.config import default_config, resolve
from asympo_jax.experiment import build_parts
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.ledger import Ledger
from asympo_jax.types import Group

NUM_UPDATES, PER_UPDATE, NUM_KILLS = 12, 4, 10


class Killed(Simulation):
    """A run that is killed after some updates, and carries on from its newest checkpoint."""

    saved: tuple[int, str, list[Group], list[int]] = (0, json.dumps(Ledger().to_json()), [], [])

    def save(self) -> None:
        """A checkpoint: it waits until all is published."""
        while self.published < self.version:
            self.publish()
        ledger, groups = self.broker.unsettled()
        self.saved = self.version, json.dumps(ledger), groups, list(self.trained)

    def kill(self) -> None:
        version, plain, groups, trained = self.saved
        ledger = Ledger.from_json(json.loads(plain), [group.ticket for group in groups])
        self.broker = Broker(self.pace, self.capacity, ledger, groups)
        self.broker.open(version)
        self.version = self.published = version
        self.working = [None] * len(self.working)
        self.trained = list(trained)


def simulated(kind, order, lag, per_lease, num_samplers, extra_room, ahead, seed):
    pace = pacing(order, lag, NUM_UPDATES, PER_UPDATE, per_lease)
    capacity = max(1, lag) * PER_UPDATE + extra_room
    return kind(pace, capacity, num_samplers, seed, ahead)


@given(**CASES, kills=st.lists(st.integers(1, 40), min_size=NUM_KILLS, max_size=NUM_KILLS))
def test_a_run_resumed_ten_times_trains_the_tickets_of_one_that_was_not_killed(kills, **case):
    run = simulated(Killed, **case)
    for moves in kills:
        for _ in range(moves):
            before = run.version
            if run.version < NUM_UPDATES:
                run.move()
            if run.version > before and run.version % 3 == 0:
                run.save()
        run.kill()
    run.run()
    whole = simulated(Simulation, **case)
    whole.run()
    assert sorted(run.trained) == sorted(whole.trained) == list(range(NUM_UPDATES * PER_UPDATE))
    assert max(run.lags) <= case["lag"]
    if case["order"] == "ticket":
        assert run.trained == whole.trained


class Stragglers(Simulation):
    """Every hundredth ticket has a response of 20 times the tokens, and its lease takes as long."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.left: collections.Counter[int] = collections.Counter()
        self.sampled: list[int] = []

    def lease(self, i: int) -> None:
        super().lease(i)
        lease = self.working[i]
        assert lease is not None
        tickets = self.pace.tickets_of_lease(lease.number)
        self.sampled += tickets
        self.left[i] = max(map(tokens, tickets))

    def finish(self, i, lease, loss_share) -> None:
        self.left[i] -= 1
        if not self.left[i]:
            super().finish(i, lease, loss_share)


def tokens(ticket: int) -> int:
    return 20 if ticket % 100 == 7 else 1


@pytest.mark.parametrize("order", ["ticket", "completion"])
def test_the_lengths_trained_on_are_those_sampled_although_some_take_far_longer(order):
    run = Stragglers(pacing(order, 4, 100, 4, 2), 16, 3, 0)
    run.run()
    lengths = [collections.Counter(map(tokens, tickets)) for tickets in (run.sampled, run.trained)]
    assert lengths[0] == lengths[1] == {1: 396, 20: 4}
    assert max(run.lags) <= 4


def test_a_data_set_smaller_than_a_batch_is_refused_with_its_size():
    config: Any = default_config()
    config.task.name = "tasks_for_tests:Few"
    with pytest.raises(ValueError, match=r"prompts_per_update=32.* 3 training prompts"):
        build_parts(resolve(config))


def test_a_run_in_which_no_group_has_anything_to_teach_ends_and_says_so(runner, tmp_path):
    run = runner.train(tmp_path / "run", task__name="tasks_for_tests:AllTheSame")
    assert run.result["updates"] == TINY["num_updates"]
    for line in run.metrics[1:]:
        assert line["group/degenerate_share"] == 1.0
        assert line["grad/norm"] == 0.0
    np.testing.assert_equal(run.metrics[-1]["tickets/trained"], 24)
