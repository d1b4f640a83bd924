"""Checkpoints that are written, kept and read, also on full disks and on disks that hang."""

import dataclasses
import gc
import pathlib
import shutil
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from full_disks import no_room
from tiny_runs import wait_until

from asympo_jax import models, states
from asympo_jax.config import default_config, resolve
from asympo_jax.experiment import build_parts
from asympo_jax.learning import state_from_params
from asympo_jax.loops import make_learner
from asympo_jax.outputs import CheckpointConfig
from asympo_jax.runtime.checkpoint import Checkpointer, CheckpointRefused
from asympo_jax.runtime.compilation import Compilations
from asympo_jax.runtime.ledger import Ledger, LiveTicket, Outcome, TicketState
from asympo_jax.runtime.saving import SaveCadence
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.types import Group

PATIENCE_S = 60.0

CONFIG = resolve(default_config())


def state(update: int):
    params = {"w": np.full((64, 64), update, np.float32)}
    made = state_from_params(params, optax.sgd(1.0))
    return dataclasses.replace(made, update=jnp.int32(update))


@pytest.fixture
def store(tmp_path):
    (tmp_path / "snapshots").mkdir()
    made = SnapshotStore(tmp_path / "snapshots", "run")
    made.write(1, {"w": np.zeros((2, 2), np.float32)})
    return made


def ledger_of(update: int) -> dict:
    """As of a run whose updates train on a ticket each."""
    ledger = Ledger()
    ledger.issued = ledger.outcomes[Outcome.TRAINED] = update
    return ledger.to_json()


def save(checkpointer: Checkpointer, update: int, store: SnapshotStore) -> None:
    checkpointer.save(state(update), ledger_of(update), [], "run", store, {1}, skipped=2)
    checkpointer.wait()


def test_finished_groups_come_back_as_they_were_and_what_was_leased_waits(tmp_path, store):
    ledger = Ledger()
    ledger.issued, ledger.outcomes[Outcome.TRAINED] = 3, 1
    ledger.live = {
        1: LiveTicket(TicketState.FINISHED, 1), 2: LiveTicket(TicketState.LEASED, 1)
    }  # fmt: skip
    group = Group(
        ticket=1,
        version=1,
        prompt_S=np.asarray([3, 4], np.int32),
        response_GT=np.asarray([[5, 6], [7, 0]], np.int32),
        length_G=np.asarray([2, 1], np.int32),
        stop_G=np.asarray([0, 1], np.int8),
        reward_G=np.asarray([0.25, -1e30], np.float32),
    )
    checkpointer = Checkpointer(tmp_path, keep=1, is_owner=True)
    assert checkpointer.tickets() == (None, [])
    checkpointer.save(state(1), ledger.to_json(), [group], "run", store, {1})
    checkpointer.wait()
    found, (again,) = checkpointer.tickets()
    assert found is not None
    assert found.live == {
        1: LiveTicket(TicketState.FINISHED, 1), 2: LiveTicket(TicketState.WAITING)
    }  # fmt: skip
    for field in dataclasses.fields(Group):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(group, field.name))
    checkpointer.close()


# Orbax leaves the event loop of a save that failed to the collector, in whose hands it complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_refuses_a_checkpoint_and_the_one_before_is_intact(tmp_path, store):
    checkpointer = Checkpointer(tmp_path, keep=1, is_owner=True)
    save(checkpointer, 1, store)
    with no_room(100), pytest.raises(CheckpointRefused, match=r"checkpoints/2: .* be written"):
        save(checkpointer, 2, store)
    checkpointer.close()
    again = Checkpointer(tmp_path, keep=1, is_owner=True)
    assert again.updates() == [1]
    restored = again.restore(state(0), 1)
    np.testing.assert_array_equal(restored.state.params["w"], 1.0)
    assert restored.skipped == 2
    save(again, 3, store)
    again.close()

    def names() -> list[str]:
        return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    # A thread of the owner removes what was half written.
    assert wait_until(lambda: names() == ["3"]), names()
    gc.collect()


class SlowManager:
    """Orbax on a disk that hangs until it is told."""

    def __init__(self, directory: pathlib.Path, hangs_at: str, failure: Exception | None = None):
        self.directory, self.go, self.hangs_at = directory, threading.Event(), hangs_at
        self.failure = failure

    def latest_step(self) -> None:
        return None

    def save(self, update: int, args: object) -> None:
        assert self.hangs_at != "save" or self.go.wait(PATIENCE_S)

    def wait_until_finished(self) -> None:
        assert self.hangs_at != "finish" or self.go.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        assert self.go.is_set(), "it would hang"


@pytest.mark.parametrize("hangs_at", ["save", "finish"])
def test_a_checkpoint_that_is_never_written_ends_in_a_sentence_that_names_the_bound(
    tmp_path, store, hangs_at
):
    checkpointer = Checkpointer(tmp_path, keep=2, stall_s=0.05)
    checkpointer._manager.close()
    slow: Any = SlowManager(tmp_path, hangs_at)
    checkpointer._manager = slow
    for update in (1, 2):  # the next one waits for it, too
        with pytest.raises(CheckpointRefused, match=r"/1: .* within runtime\.stall_s=0\.05"):
            checkpointer.save(state(update), ledger_of(update), [], "run", store, {1})
            assert hangs_at == "finish"
            checkpointer.wait()
    checkpointer.close()
    slow.go.set()


def test_a_checkpoint_that_fails_while_training_goes_on_is_told_after_the_update_at_work(
    tmp_path, store
):
    checkpointer = Checkpointer(tmp_path, keep=2)
    checkpointer._manager.close()
    slow: Any = SlowManager(tmp_path, "finish", OSError("No space left on device"))
    checkpointer._manager = slow
    config = dataclasses.replace(CONFIG, checkpoint=CheckpointConfig(0, 0.0, 2, 25.0))
    nothing: Any = [None] * 6
    given: Any = [config, build_parts(config), *nothing, Compilations(), print, checkpointer.check]
    learner = make_learner(*given)
    checkpointer.save(state(1), ledger_of(1), [], "run", store, {1})
    assert not learner.is_save_due(2)
    slow.go.set()
    with pytest.raises(CheckpointRefused, match=r"/1: .* written .*No space left"):
        assert wait_until(lambda: learner.is_save_due(3))
    checkpointer.close()


def test_the_newest_checkpoints_are_kept_and_nothing_is_saved_twice(tmp_path, store):
    checkpointer = Checkpointer(tmp_path, keep=2, is_owner=True)
    for update in (1, 2, 3, 4):
        save(checkpointer, update, store)
        save(checkpointer, update, store)
    assert checkpointer.updates() == [3, 4]
    checkpointer.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_a_checkpoint_has_the_snapshots_that_are_still_to_be_read_and_no_others(tmp_path, store):
    for version in (2, 3):
        store.write(version, {"w": np.full((2, 2), version, np.float32)})
    checkpointer = Checkpointer(tmp_path, keep=1)
    checkpointer.save(state(3), ledger_of(3), [], "run", store, {0, 1, 3})
    checkpointer.wait()
    found = checkpointer.restore(state(0), 1).snapshots
    assert {version: params["w"].max() for version, params in found.items()} == {1: 0, 3: 3}
    checkpointer.close()


@pytest.mark.parametrize(
    ("state_of", "ledger", "words"),
    [(2, 3, "its state is of update 2"), (3, 2, "its ledger is of")],
)
def test_a_checkpoint_whose_parts_are_of_different_updates_is_refused(
    tmp_path, store, state_of, ledger, words
):
    checkpointer = Checkpointer(tmp_path, keep=1)
    checkpointer.save(state(state_of), ledger_of(ledger), [], "run", store, {1})
    checkpointer.wait()
    if state_of == 2:
        (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "3")
        checkpointer.close()
        checkpointer = Checkpointer(tmp_path, keep=1)
    with pytest.raises(CheckpointRefused, match=rf"checkpoints/3: .*read \(ValueError: {words}"):
        checkpointer.restore(state(0), 1)
    checkpointer.close()


def test_a_state_is_read_without_another_one_in_memory(tmp_path, store):
    parts, checkpointer = build_parts(CONFIG), Checkpointer(tmp_path, keep=1)
    like = states.state_like(CONFIG, parts, tmp_path, checkpointer)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(like))
    params = models.init_params(parts.model, jax.random.key(3))
    first = states.first_state(CONFIG, parts, params)
    checkpointer.save(first, ledger_of(0), [], "run", store, {1})
    checkpointer.wait()
    found = checkpointer.restore(like, 1).state
    assert jax.tree.structure(found) == jax.tree.structure(first)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(first), strict=True):
        assert (one.dtype, one.devices()) == (other.dtype, other.devices())
        np.testing.assert_array_equal(one, other)
    checkpointer.close()


def test_an_old_checkpoint_loses_its_name_before_it_is_deleted(tmp_path, store, monkeypatch):
    checkpointer = Checkpointer(tmp_path, keep=1, is_owner=True)
    save(checkpointer, 1, store)
    whole = {path.name for path in (tmp_path / "checkpoints" / "1").iterdir()}
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *_, **__: None)
        save(checkpointer, 2, store)
    checkpointer.close()
    directory = tmp_path / "checkpoints"
    assert {path.name for path in (directory / ".deleted" / "1").iterdir()} == whole
    again = Checkpointer(tmp_path, keep=1, is_owner=True)
    assert again.updates() == [2]
    again.close()
    assert [path.name for path in directory.iterdir()] == ["2"]


def test_who_only_reads_a_run_leaves_what_is_being_written(tmp_path, store):
    checkpointer = Checkpointer(tmp_path, keep=2, is_owner=True)
    save(checkpointer, 1, store)
    checkpointer.close()
    partial = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "1", partial)
    for is_owner in (False, True):
        reader = Checkpointer(tmp_path, keep=2, is_owner=is_owner)
        assert reader.updates() == [1]
        reader.restore(state(0), 1)
        reader.close()
        assert partial.exists() or is_owner
    assert wait_until(lambda: not partial.exists())  # a thread of the owner removes it


def test_a_checkpoint_is_due_by_count_and_by_seconds_since_the_last():
    now = 0.0
    cadence = SaveCadence(4, 10.0, lambda: now)
    due = []
    for version in range(1, 13):
        now += 4.0
        due.append(cadence.is_due(version))
    assert [version for version in range(1, 13) if due[version - 1]] == [3, 4, 7, 8, 11, 12]
    never = SaveCadence(0, 0.0, lambda: 1e9)
    assert not any(never.is_due(version) for version in range(1, 13))
