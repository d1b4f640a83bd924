"""Snapshots: all of one, or nothing; and only of this run and version."""

import fcntl
import os
import shutil
import stat

import numpy as np
import pytest

from asympo_jax.runtime.snapshots import (
    SnapshotRefused,
    SnapshotStore,
    make_snapshot_directory,
    parameters_sha256,
)

PARAMS = {
    "embedding": np.arange(12, dtype=np.float32).reshape(3, 4),
    "layer_0": {"scale": np.ones(2, np.float32)},
}


@pytest.fixture
def store(tmp_path) -> SnapshotStore:
    return SnapshotStore(tmp_path, "run-1")


def test_a_snapshot_comes_back_bit_for_bit(store):
    store.write(7, PARAMS)
    assert parameters_sha256(store.read(7)) == parameters_sha256(PARAMS)
    assert store.versions() == [7]


def test_a_missing_a_foreign_and_a_misnamed_snapshot_are_refused(store, tmp_path):
    store.write(1, PARAMS)
    with pytest.raises(SnapshotRefused):
        store.read(2)
    with pytest.raises(SnapshotRefused, match="run-1"):
        SnapshotStore(tmp_path, "run-2").read(1)
    os.rename(tmp_path / "v00000001.safetensors", tmp_path / "v00000002.safetensors")
    with pytest.raises(SnapshotRefused, match="version"):
        store.read(2)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_torn_snapshot_is_refused(store, tmp_path, share):
    store.write(1, PARAMS)
    path = tmp_path / "v00000001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SnapshotRefused):
        store.read(1)


def test_a_snapshot_with_one_flipped_bit_is_refused(store, tmp_path):
    store.write(1, PARAMS)
    path = tmp_path / "v00000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SnapshotRefused, match="checksum"):
        store.read(1)


def test_pruning_keeps_the_versions_from_the_given_one_on_and_those_needed(store):
    for version in range(6):
        store.write(version, PARAMS)
    store.prune(4, needed=[1, 5])
    assert store.versions() == [1, 4, 5]
    store.prune(4)
    assert store.versions() == [4, 5]


def test_a_store_of_bfloat16_rounds_what_is_written(tmp_path):
    store = SnapshotStore(tmp_path, "run", "bfloat16")
    store.write(0, {"w": np.array([1.0, 1.001], np.float32)})
    assert store.read(0)["w"].dtype == "bfloat16"
    assert store.read(0)["w"].astype(np.float32).tolist() == [1.0, 1.0]


def test_the_directory_is_private_and_goes_away(tmp_path):
    directory, lock = make_snapshot_directory(str(tmp_path), "abc")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    store = SnapshotStore(directory, "abc")
    store.write(0, PARAMS)
    store.remove()
    assert not directory.exists()
    lock.close()


def test_directories_of_killed_runs_are_removed_and_those_in_use_stay(tmp_path):
    killed, lock = make_snapshot_directory(str(tmp_path), "killed")
    lock.close()  # what the end of a process does
    alive, lock = make_snapshot_directory(str(tmp_path), "alive")
    newest, newest_lock = make_snapshot_directory(str(tmp_path), "newest")
    assert (killed.exists(), alive.exists(), newest.exists()) == (False, True, True)
    lock.close()
    newest_lock.close()


def test_a_directory_that_another_run_removed_before_it_was_locked_is_made_again(
    tmp_path, monkeypatch
):
    lock_file, removed = fcntl.flock, []

    def flock(file, operation):
        if not removed:
            removed.extend(tmp_path.glob("*"))
            shutil.rmtree(removed[0])
        lock_file(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    directory, lock = make_snapshot_directory(str(tmp_path), "abc")
    with lock:
        assert list(tmp_path.glob("*")) == [directory] != removed


def test_the_hash_sees_names_shapes_types_and_values():
    changed = [
        {**PARAMS, "embedding": PARAMS["embedding"] + 1},
        {**PARAMS, "embedding": PARAMS["embedding"].reshape(4, 3)},
        {**PARAMS, "embedding": PARAMS["embedding"].view(np.int32)},
        {"other": PARAMS["embedding"], "layer_0": PARAMS["layer_0"]},
    ]
    hashes = {parameters_sha256(params) for params in [PARAMS, *changed]}
    assert len(hashes) == 5
