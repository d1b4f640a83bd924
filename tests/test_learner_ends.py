"""How the learner's loop ends, and what is saved before: the step and the files are stand-ins."""

import dataclasses
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_publisher import FINITE, PATIENCE_S

from asympo_jax.learning import TrainState, state_from_params
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.checkpoint import CheckpointRefused
from asympo_jax.runtime.evaluations import EvaluatorEnded
from asympo_jax.runtime.learner import Cadence, Learner
from asympo_jax.runtime.leases import Closed, Stalled
from asympo_jax.runtime.publisher import NonFinite, Publisher
from asympo_jax.runtime.snapshots import SnapshotRefused, SnapshotStore
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.tasks import RewardError
from asympo_jax.types import Group

BREAKS_AT = 2  # updates that are done when something breaks


def group(ticket: int, version: int) -> Group:
    ids = np.zeros(3, np.int32)
    ones = np.ones(2, np.int32)
    reward_G = np.array([0.0, 1.0], np.float32)
    return Group(ticket, version, ids, np.zeros((2, 2), np.int32), ones, np.zeros(2), reward_G)


class Case:
    """A learner whose samplers, step, alarm and evaluator do what the test says."""

    def __init__(self, directory: Any):
        directory.mkdir()
        pacing = Pacing("completion", 1, 6, 1, 1)
        self.broker = Broker(pacing, capacity=2)
        self.store = SnapshotStore(directory, "run")
        self.publisher = Publisher(self.store, self.broker, PATIENCE_S)
        self.saved: list[tuple[int, list[int], dict]] = []
        self.written: list[int] = []
        self.metrics = {name: jnp.float32(value) for name, value in FINITE.items()}
        self.state = state_from_params({"w": jnp.zeros(3)}, optax.sgd(1.0))
        self.store.write(0, self.state.params)
        self.broker.open(0)
        self.evaluations = types.SimpleNamespace(
            evaluations=types.SimpleNamespace(outstanding=lambda: ()), collect=lambda: False
        )
        self.writer = types.SimpleNamespace(
            metrics=dict,
            write=lambda version, *_: self.written.append(version),
            write_times=lambda *_: None,
        )
        self.alarm = types.SimpleNamespace(check=lambda groups, update: None)
        given: Any = dict(
            step=self.step, sign_gradients=None, broker=self.broker, store=self.store,
            pacing=pacing, prompts_per_update=1, group_size=2, num_positions=5, tokenizer=None,
            alarm=self.alarm, publisher=self.publisher,
            meter=types.SimpleNamespace(add=lambda one: None, metrics=dict), in_step=False,
            stall_s=PATIENCE_S, cadence=Cadence(0, 0, 0, 0), writer=self.writer,
            sample=self.sample, evaluations=self.evaluations, is_save_due=lambda version: False,
            save=self.save, show=lambda *_: None, announce=lambda *_: None,
            compiled=lambda version: {},
        )  # fmt: skip
        self.learner = Learner(**given)
        self.breaks = lambda: None

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        return dataclasses.replace(state, update=state.update + 1), self.metrics

    def sample(self) -> None:
        if self.broker._updates == BREAKS_AT:
            self.breaks()
        if self.broker.closed is None and self.learner.stall_s and not self.broker._queue:
            lease = self.broker.lease()
            self.broker.submit(lease, [group(lease.number, lease.version)], 0.0)

    def save(self, state: TrainState) -> None:
        self.saved.append((int(state.update), self.store.versions(), self.broker.unsettled()[0]))

    def run(self) -> TrainState:
        try:
            return self.learner.run(self.state)
        finally:
            self.publisher.close(PATIENCE_S)


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path / "snapshots")


def close(case: Case) -> None:
    case.broker.close("sampler 0: it says why")


def alarm(case: Case) -> None:
    def check(groups, update):
        raise RewardError("none could be graded")

    case.alarm.check = check


def end_evaluator(case: Case) -> None:
    def collect():
        raise EvaluatorEnded("the evaluator ended")

    case.evaluations.collect = collect


FAILURES = [(close, Closed), (alarm, RewardError), (end_evaluator, EvaluatorEnded)]


@pytest.mark.parametrize(("breaks", "kind"), FAILURES)
def test_a_failure_between_two_updates_saves_all_that_was_trained_before_it_is_raised(
    case, breaks, kind
):
    case.breaks = lambda: breaks(case)
    with pytest.raises(kind):
        case.run()
    ((update, versions, ledger),) = case.saved
    # The evaluator is looked at once the next update is on its way, which is saved, too.
    assert update == BREAKS_AT + (kind is EvaluatorEnded)
    assert versions[-1] == update, "its snapshot is published"
    assert ledger["outcomes"]["trained"] == update
    assert case.written == list(range(1, update + 1))


def test_a_learner_that_waits_in_vain_saves_all_that_was_trained(case):
    case.learner = dataclasses.replace(case.learner, stall_s=0.0)
    case.state = dataclasses.replace(case.state, update=jnp.int32(3))
    with pytest.raises(Stalled):
        case.run()
    assert [update for update, *_ in case.saved] == [3]


@pytest.mark.parametrize("also", [end_evaluator, alarm])
def test_a_run_that_is_asked_to_stop_ends_in_good_order_whatever_else_breaks(case, also):
    def breaks() -> None:
        also(case)
        lease = case.broker.lease()
        case.broker.submit(lease, [group(lease.number, lease.version)], 0.0)
        check = case.alarm.check

        def asked(groups: Any, update: int) -> None:
            case.broker.close()
            check(groups, update)

        case.alarm.check = asked

    case.breaks = breaks
    done = BREAKS_AT + (also is end_evaluator)
    assert int(case.run().update) == done
    assert case.written == list(range(1, done + 1))
    assert case.saved == [], "whoever asked saves"


def test_a_run_that_was_asked_to_stop_while_it_waited_ends_in_good_order_without_evaluator(case):
    def breaks() -> None:
        end_evaluator(case)
        case.broker.close()

    case.breaks = breaks
    assert int(case.run().update) == BREAKS_AT


@pytest.mark.parametrize(
    ("pacing", "kept"),
    [
        (Pacing("ticket", 1, 6, 1, 1, refresh_every_updates=4), [4, 6]),
        (Pacing("ticket", 1, 6, 1, 1), [5, 6]),
        (Pacing("completion", 1, 6, 1, 1), [5, 6]),
    ],
)
def test_snapshots_that_nobody_will_read_are_removed(case, pacing, kept):
    case.learner = dataclasses.replace(case.learner, pacing=pacing)
    case.run()
    assert case.store.versions() == kept


def test_nothing_is_saved_that_was_not_published_or_whose_step_was_not_completed(case, tmp_path):
    def not_finite() -> None:
        case.metrics = case.metrics | {"loss": jnp.float32(np.nan)}

    def fails(state: Any, batch: Any) -> Any:
        raise OSError("the device is gone")

    case.breaks = not_finite
    with pytest.raises(NonFinite):
        case.run()
    broken = Case(tmp_path / "broken")
    broken.learner = dataclasses.replace(broken.learner, step=fails)
    with pytest.raises(OSError, match="device is gone"):
        broken.run()
    assert case.saved == broken.saved == []


@pytest.mark.parametrize("refused", [CheckpointRefused, SnapshotRefused])
def test_a_failure_is_told_although_it_cannot_be_saved_either(case, refused):
    def save(state: Any) -> None:
        raise refused("no room")

    case.learner = dataclasses.replace(case.learner, save=save)
    case.breaks = lambda: close(case)
    with pytest.raises(Closed, match="it says why"):
        case.run()
