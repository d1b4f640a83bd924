"""What follows an update beside the next one: published in order, or not at all."""

import shutil
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Closed, Stalled
from asympo_jax.runtime.publisher import NonFinite, Publisher, Update
from asympo_jax.runtime.snapshots import SnapshotRefused, SnapshotStore
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.types import Group

PATIENCE_S = 60.0
GUARDED = {"loss": 0.5, "grad/norm": 1.0, "update/norm": 0.1, "params/norm": 2.0}
FINITE = {**GUARDED, "update/skipped": 0.0}


def update(version: int, **metrics: float) -> Update:
    given = {**FINITE, **{name.replace("__", "/"): value for name, value in metrics.items()}}
    found = {name: jnp.float32(value) for name, value in given.items()}
    params = {"w": jnp.full(3, float(version))}
    return Update(version, params, found, [], 4, {}, asked=0.0, taken=0.0)


def group(ticket: int) -> Group:
    zeros = np.zeros((2, 5), np.int32)
    return Group(ticket, 0, zeros[0], zeros, np.full(2, 5, np.int32), np.zeros(2), np.zeros(2))


class Case:
    """A publisher with a real store and a broker whose updates are complete."""

    def __init__(self, directory):
        self.store = SnapshotStore(directory, "run")
        self.broker = Broker(Pacing("completion", 9, 9, 1, 1), capacity=9)
        self.broker.open(0)
        for version in range(1, 5):
            lease = self.broker.lease()
            self.broker.submit(lease, [group(lease.number)], 0.0)
            self.broker.next_batch(0.0)
            self.broker.complete(version, {lease.number})
        self.publisher = Publisher(self.store, self.broker, PATIENCE_S, clock=lambda: 0.0)

    def newest(self) -> int | None:
        return self.broker._version


@pytest.fixture
def case(tmp_path):
    case = Case(tmp_path)
    yield case
    case.publisher.close(PATIENCE_S)


def test_updates_are_published_in_order_and_each_comes_back_once(case):
    found = case.publisher.hand_over(update(1))
    assert found == []
    found += case.publisher.hand_over(update(2, reward__mean=0.25))
    found += case.publisher.wait()
    assert [one.update.version for one in found] == [1, 2]
    expected = {**FINITE, "reward/mean": 0.25}
    assert {name: found[1].metrics[name] for name in expected} == {
        name: np.float32(value) for name, value in expected.items()
    }
    assert case.publisher.wait() == []
    assert (case.store.versions(), case.newest()) == ([1, 2], 2)
    np.testing.assert_array_equal(case.store.read(2)["w"], np.full(3, 2.0))


@pytest.mark.parametrize("name", GUARDED)
def test_nothing_that_is_not_finite_is_published_and_whoever_waits_for_it_hears_why(case, name):
    case.publisher.hand_over(update(1))
    case.publisher.hand_over(update(2, **{name: float("nan")}))
    for call in (case.publisher.wait, lambda: case.publisher.hand_over(update(3))):
        with pytest.raises(NonFinite, match=rf"update 1: .*{name} nan.* nothing of it"):
            call()
    assert (case.store.versions(), case.newest()) == ([1], 1)
    case.publisher.close(PATIENCE_S)
    # A learner that waits for groups, and they for the version that never comes, is woken up.
    with pytest.raises(Closed, match=r"update 1: .* must be finite"):
        case.broker.raise_if_closed()


def test_a_snapshot_that_cannot_be_written_is_raised_where_the_learner_is(case, tmp_path):
    shutil.rmtree(tmp_path)
    case.publisher.hand_over(update(1))
    with pytest.raises(SnapshotRefused, match="cannot be written"):
        case.publisher.wait()
    assert case.newest() == 0


def test_the_learner_is_one_update_ahead_at_most(case, monkeypatch):
    go, writes = threading.Event(), []

    def write(version, params):
        assert go.wait(PATIENCE_S)
        writes.append(version)
        return 0

    monkeypatch.setattr(case.store, "write", write)
    case.publisher.hand_over(update(1))  # returns although nothing is written
    assert writes == []
    second = started(lambda: case.publisher.hand_over(update(2)))
    second.join(0.05)
    assert second.is_alive()
    go.set()
    second.join(PATIENCE_S)
    case.publisher.wait()
    assert writes == [1, 2]


def test_an_update_that_is_never_published_ends_in_a_sentence_that_names_the_bound(
    tmp_path, monkeypatch
):
    case, go = Case(tmp_path), threading.Event()
    monkeypatch.setattr(case.store, "write", lambda version, params: go.wait(PATIENCE_S))
    publisher = Publisher(case.store, case.broker, stall_s=0.01)
    publisher.hand_over(update(1))
    for call in (lambda: publisher.hand_over(update(2)), publisher.wait):
        with pytest.raises(Stalled, match=r"update 0 waited .*runtime\.stall_s"):
            call()
    go.set()
    publisher.close(PATIENCE_S)
    case.publisher.close(PATIENCE_S)
    with pytest.raises(Stalled):  # also once the thread has come to its end
        publisher.wait()


def test_bytes_and_seconds_of_a_snapshot_are_in_the_line_of_its_update(case, tmp_path):
    case.publisher.hand_over(update(1))
    (published,) = case.publisher.wait()
    (path,) = tmp_path.glob("v*")
    assert published.metrics["snapshot/bytes"] == path.stat().st_size
    assert published.metrics["snapshot/write_s"] == 0.0, "the clock of the case stands still"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_outlives_the_step_that_the_parameters_are_donated_to(tmp_path, dtype):
    store = SnapshotStore(tmp_path, "run", dtype)
    params = {"w": jnp.arange(4.0), "scale": jnp.float32(2)}
    copy = store.copied(params)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    step(params)
    assert params["w"].is_deleted()
    store.write(1, copy)
    found = store.read(1)
    assert found["w"].dtype == dtype and found["scale"].dtype == np.float32
    np.testing.assert_array_equal(found["w"].astype(np.float32), np.arange(4.0))


def started(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread
