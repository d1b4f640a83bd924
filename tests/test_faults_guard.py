"""NaN and infinity: the update is skipped and counted, nothing of it is published or saved."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from step_cases import ONE_LAYER, STEP, copied_params, example_batch
from test_publisher import PATIENCE_S, Case, group, update

from asympo_jax import learning, objectives
from asympo_jax.objectives import Objective
from asympo_jax.runtime.batches import (
    BatchRecorder,
    BatchRefused,
    RecordedBatch,
    read_batch,
    recorded_versions,
    write_batch,
)
from asympo_jax.runtime.publisher import NonFinite, Publisher

ADAM = learning.make_optimizer(learning.OptimizerConfig(learning_rate=0.1))


def of_weight(value: float) -> Objective:
    """An objective all of whose weights are `value`."""
    return Objective("constant", lambda batch: jnp.full_like(batch.advantage_B, value)[:, None])


def updated(objective: Objective, optimizer: Any) -> tuple[Any, Any, dict[str, float]]:
    """Copies of the state before and after an update, and its metrics."""
    step = learning.make_train_step(ONE_LAYER, objective, optimizer, STEP)
    state = learning.state_from_params(copied_params(model=ONE_LAYER), optimizer)
    # As if something had been learnt, so that the optimiser's state is not all zeros.
    moments = jax.tree.map(lambda x: x + 1, state.opt_state)
    state = dataclasses.replace(state, opt_state=moments)
    before = jax.tree.map(np.array, state)
    after, metrics = step(state, example_batch())
    return before, jax.tree.map(np.array, after), {n: float(x) for n, x in metrics.items()}


def assert_same_bits(found: Any, expected: Any) -> None:
    """All leaves are equal, bit for bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.tobytes() == y.tobytes()


# --------------------------------------------------------------------------------- in the step


@pytest.mark.parametrize("weight", [np.nan, np.inf, 1e36])
def test_a_loss_or_a_gradient_that_is_not_finite_leaves_the_old_state_bit_for_bit(weight):
    before, after, metrics = updated(of_weight(weight), ADAM)
    assert_same_bits(after.params, before.params)
    assert_same_bits(after.opt_state, before.opt_state)
    assert (before.update, after.update) == (0, 1), "the version advances"
    assert metrics["update/skipped"] == 1
    assert np.isfinite(metrics["params/norm"]) and not np.isfinite(metrics["grad/norm"])
    assert np.isfinite(metrics["loss"]) == (weight == 1e36), "there the gradient alone is at fault"


def test_a_step_that_is_not_finite_leaves_the_old_parameters_bit_for_bit():
    before, after, metrics = updated(of_weight(1.0), optax.sgd(np.inf))
    assert_same_bits(after.params, before.params)
    assert metrics["update/skipped"] == 1
    assert np.isfinite(metrics["grad/norm"]) and not np.isfinite(metrics["update/norm"])


def test_an_update_that_is_finite_is_not_skipped():
    before, after, metrics = updated(objectives.make("reinforce"), optax.sgd(1.0))
    assert metrics["update/skipped"] == 0
    moved = jax.tree.map(jnp.subtract, after.params, before.params)
    np.testing.assert_allclose(metrics["update/norm"], optax.tree.norm(moved), rtol=1e-4)
    np.testing.assert_allclose(metrics["update/norm"], metrics["grad/norm"], rtol=1e-4)


# ----------------------------------------------------------------------------- in the publisher


@pytest.fixture
def case(tmp_path):
    case = Case(tmp_path / "snapshots")
    yield case
    case.publisher.close(PATIENCE_S)


@pytest.fixture(autouse=True)
def snapshots(tmp_path):
    (tmp_path / "snapshots").mkdir()


SKIPPED = {"loss": np.nan, "grad__norm": np.nan, "update__norm": np.nan, "update__skipped": 1.0}


def publisher_of(case: Case, max_skipped: int, record: Any = lambda *_: None) -> Publisher:
    return Publisher(case.store, case.broker, PATIENCE_S, max_skipped, record, lambda: 0.0)


def test_skipped_updates_are_published_until_there_are_too_many_in_a_row(case, tmp_path):
    publisher, needed = publisher_of(case, 1, lambda *given: needed.append(given)), []
    for version, fields in ((1, SKIPPED), (2, {}), (3, SKIPPED)):
        publisher.hand_over(update(version, **fields))
    publisher.wait()
    assert (case.store.versions(), case.newest()) == ([1, 2, 3], 3)
    publisher.hand_over(update(4, **SKIPPED))
    with pytest.raises(
        NonFinite, match=r"update 3: loss nan.* 2 updates in a row are skipped, .*updates=1"
    ):
        publisher.wait()
    assert (case.store.versions(), case.newest()) == ([1, 2, 3], 3)
    assert needed == [(1, (), True), (2, (), False), (3, (), True), (4, (), True)]
    publisher.close(PATIENCE_S)


def test_a_run_that_is_resumed_goes_on_counting_the_updates_that_are_skipped_in_a_row(case):
    first = publisher_of(case, 2)
    for version in (1, 2):
        first.hand_over(update(version, **SKIPPED))
    first.wait()
    saved = first.skipped
    first.close(PATIENCE_S)
    resumed = Publisher(case.store, case.broker, PATIENCE_S, 2, clock=lambda: 0.0, skipped=saved)
    resumed.hand_over(update(3, **SKIPPED))
    with pytest.raises(NonFinite, match="3 updates in a row are skipped"):
        resumed.wait()
    resumed.close(PATIENCE_S)


def test_parameters_that_are_not_finite_end_the_run_at_once_although_updates_may_be_skipped(case):
    publisher = publisher_of(case, 100)
    publisher.hand_over(update(1, **SKIPPED, params__norm=np.nan))
    with pytest.raises(NonFinite, match=r"update 0: .*params/norm nan must be finite"):
        publisher.wait()
    assert case.store.versions() == []
    publisher.close(PATIENCE_S)


def test_the_batch_that_ends_a_run_is_saved_and_named(case, tmp_path):
    recorder = BatchRecorder(tmp_path, 0, every=False, keep=1, tell=print)
    publisher = publisher_of(case, 0, recorder.record)
    publisher.hand_over(dataclasses.replace(update(1), batch=[typed_group(7)]))
    publisher.wait()
    assert recorded_versions(tmp_path) == []
    publisher.hand_over(dataclasses.replace(update(2, **SKIPPED), batch=[typed_group(8)]))
    path = tmp_path / "batches" / "update_00000002.safetensors"
    with pytest.raises(NonFinite, match=f"its batch is in {path}"):
        publisher.wait()
    assert recorded_versions(tmp_path) == [2]
    publisher.close(PATIENCE_S)


def typed_group(ticket: int) -> Any:
    """A group as samplers hand it in."""
    zeros = np.zeros(2, np.int8)
    return dataclasses.replace(group(ticket), stop_G=zeros, reward_G=np.zeros(2, np.float32))


# --------------------------------------------------------------------------------- in the files


def test_recorded_batches_are_read_as_they_were_written(tmp_path):
    logp = np.full((2, 5), -0.5, np.float32)
    groups = [
        typed_group(70),
        dataclasses.replace(typed_group(9), failure_G=np.array([0, 2], np.int8)),
        dataclasses.replace(typed_group(8), behaviour_logp_GT=logp),
    ]
    path = tmp_path / "batch.safetensors"
    write_batch(path, RecordedBatch(12, groups))
    found = read_batch(path)
    assert found.version == 12
    for one, other in zip(found.groups, groups, strict=True):
        assert vars(one).keys() == vars(other).keys()
        for name, value in vars(other).items():
            np.testing.assert_equal(getattr(one, name), value)
            assert getattr(getattr(one, name), "dtype", None) == getattr(value, "dtype", None)


def test_the_newest_batches_are_kept_and_what_another_attempt_recorded_later_is_not(tmp_path):
    recorder = BatchRecorder(tmp_path, 0, every=True, keep=3, tell=print)
    for version in range(1, 7):
        recorder.record(version, [typed_group(version)], False)
    assert recorded_versions(tmp_path) == [4, 5, 6]
    (tmp_path / "batches" / ".update_00000007.safetensors.123").touch()  # of a run that was killed
    recorder = BatchRecorder(tmp_path, 5, every=True, keep=3, tell=print)
    assert [path.name for path in sorted((tmp_path / "batches").iterdir())] == [
        "update_00000004.safetensors", "update_00000005.safetensors"
    ]  # fmt: skip
    for version in (6, 7):
        recorder.record(version, [typed_group(version)], False)
    assert recorded_versions(tmp_path) == [5, 6, 7]


def test_batches_that_cannot_be_written_are_told_once_and_end_no_run(tmp_path):
    (tmp_path / "batches").touch()
    told: list[str] = []
    recorder = BatchRecorder(tmp_path, 0, every=True, keep=3, tell=told.append)
    assert [recorder.record(version, [typed_group(0)], False) for version in (1, 2)] == [None] * 2
    assert len(told) == 1 and "batches are not recorded" in told[0]


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_file_that_holds_no_whole_batch_is_refused(tmp_path, size):
    path = tmp_path / "batch.safetensors"
    write_batch(path, RecordedBatch(1, [typed_group(0)]))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BatchRefused, match=r"batch\.safetensors"):
        read_batch(path)
    safetensors.numpy.save_file({"0/ticket": np.zeros(1)}, path, {"checksum": "00000000"})
    with pytest.raises(BatchRefused, match=r"batch\.safetensors"):
        read_batch(path)
