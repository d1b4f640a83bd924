"""Snapshots: all of one, or nothing; and only of this run and version."""

import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import safetensors

from asympo_jax.models import MeshShape
from asympo_jax.models.sharding import placed
from asympo_jax.runtime.snapshots import SnapshotRefused, SnapshotStore, parameters_sha256
from asympo_jax.sampling import make_place

PARAMS = {
    "embedding": np.arange(32, dtype=np.float32).reshape(8, 4),
    "layer_0": {
        "attention": {"query": {"kernel": np.arange(16, dtype=np.float32).reshape(4, 4, 1)}},
        "mlp_norm": {"scale": np.ones(2, np.float32)},
        "lora_scale": np.float32(0.5),
    },
}


@pytest.fixture
def store(tmp_path) -> SnapshotStore:
    return SnapshotStore(tmp_path, "run-1", num_parts=2)  # reads both kinds


def test_a_snapshot_comes_back_bit_for_bit(store):
    store.write(7, PARAMS)
    assert parameters_sha256(store.read(7)) == parameters_sha256(PARAMS)
    assert store.versions() == [7]


_QUARTERS = MeshShape(fsdp=2, tensor=2)


class OfProcess:
    """What one of two processes sees of an array on the four devices of both."""

    is_fully_addressable = False

    def __init__(self, x: jax.Array, part: int):
        self.shape, self.dtype, self.ndim = x.shape, x.dtype, x.ndim
        self.sharding = x.sharding
        self.addressable_shards = [s for s in x.addressable_shards if s.device.id // 2 == part]


def write_part(
    directory: pathlib.Path,
    part: int,
    version: int = 1,
    run_id: str = "run-1",
    params: Any = None,
    shape: MeshShape = _QUARTERS,
) -> pathlib.Path:
    """Writes the part that a process has of parameters on a mesh of four devices; its file."""
    on_mesh = placed(shape.make(), params or PARAMS)
    tree = jax.tree.map(lambda x: OfProcess(x, part), on_mesh)
    SnapshotStore(directory, run_id, part=part, num_parts=2).write(version, tree)
    return directory / f"v{version:08d}.{part}-of-2.safetensors"


def write_parts(directory: pathlib.Path, version: int = 1) -> pathlib.Path:
    """Writes both parts; returns the file of the second."""
    write_part(directory, 0, version)
    return write_part(directory, 1, version)


def write_one(directory: pathlib.Path, version: int = 1) -> pathlib.Path:
    """Writes a version as one file."""
    SnapshotStore(directory, "run-1").write(version, PARAMS)
    return directory / f"v{version:08d}.safetensors"


@pytest.fixture(params=[write_one, write_parts])
def write(request):
    return request.param


def test_a_missing_a_foreign_and_a_misnamed_snapshot_are_refused(store, tmp_path, write):
    write(tmp_path)
    with pytest.raises(SnapshotRefused):
        store.read(2)
    with pytest.raises(SnapshotRefused, match="run-1"):
        SnapshotStore(tmp_path, "run-2", num_parts=2).read(1)
    for path in tmp_path.glob("v00000001*"):
        path.rename(tmp_path / path.name.replace("1", "2", 1))
    with pytest.raises(SnapshotRefused, match="version"):
        store.read(2)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_torn_snapshot_is_refused(store, tmp_path, share, write):
    path = write(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SnapshotRefused, match=re.escape(path.name)):
        store.read(1)


def test_a_snapshot_with_one_flipped_bit_is_refused(store, tmp_path, write):
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SnapshotRefused, match=rf"{re.escape(path.name)}: its checksum"):
        store.read(1)


@pytest.mark.parametrize(
    ("shape", "largest"), [(MeshShape(fsdp=2, tensor=2), 8), (MeshShape(data=2, tensor=2), 16)]
)
def test_parts_of_several_processes_are_a_snapshot_once_all_are_there(
    store, tmp_path, shape, largest
):
    write_part(tmp_path, 0, shape=shape)
    assert store.versions() == []
    with pytest.raises(SnapshotRefused, match="cannot be read"):
        store.read(1)
    write_part(tmp_path, 1, shape=shape)
    assert store.versions() == [1]
    assert parameters_sha256(store.read(1)) == parameters_sha256(PARAMS)
    held = []
    for path in tmp_path.glob("v*"):
        with safetensors.safe_open(path, framework="numpy") as file:
            held.append([file.get_tensor(key).size for key in file.offset_keys()])
    assert all(held), "each writes something"
    assert sum(map(sum, held)) == sum(x.size for x in jax.tree.leaves(PARAMS)), "nothing twice"
    assert max(map(max, held)) == largest, "what one device has of the largest array"
    store.prune(2)
    assert not list(tmp_path.glob("v*"))


def test_what_every_process_has_whole_is_written_by_the_first(store, tmp_path):
    for num_parts in (1, 2):
        assert SnapshotStore(tmp_path, "run-1", part=1, num_parts=num_parts).write(1, PARAMS) == 0
    assert not list(tmp_path.iterdir())
    store.write(1, PARAMS)
    assert [path.name for path in tmp_path.iterdir()] == ["v00000001.safetensors"]


def test_parts_that_do_not_belong_together_are_refused(store, tmp_path):
    path = write_parts(tmp_path)
    other = write_parts(tmp_path, version=2)
    write_part(tmp_path, 1, run_id="run-2")
    with pytest.raises(SnapshotRefused, match="'run_id': 'run-2'"):
        store.read(1)
    shutil.copy(other, path)
    with pytest.raises(SnapshotRefused, match="'version': '2'"):
        store.read(1)
    write_part(tmp_path, 1, params={"other": PARAMS["embedding"]})
    with pytest.raises(SnapshotRefused, match="parts of embedding are missing"):
        store.read(1)
    # As many numbers as there should be, and half of them twice.
    first = write_part(tmp_path, 0, 3, params={"embedding": PARAMS["embedding"]})
    shutil.copy(first, tmp_path / "v00000003.1-of-2.safetensors")
    with pytest.raises(SnapshotRefused, match="'part': '0 of 2'"):
        store.read(3)


def test_a_snapshot_of_a_mesh_is_read_onto_devices_array_by_array(store, tmp_path):
    store.write(1, placed(MeshShape(fsdp=2, tensor=4).make(), PARAMS))
    names, place = [], make_place(4, tensor=2)

    def noted(name: str, x: np.ndarray) -> jax.Array:
        names.append(name)
        return place(name, x)

    params = store.read_policy(1, noted)
    assert names == sorted(names) and len(names) == len(jax.tree.leaves(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    assert len(params["embedding"].devices()) == 4
    assert params["embedding"].sharding.shard_shape((8, 4)) == (4, 4)


def test_writing_gives_the_devices_nothing_to_do(store, monkeypatch):
    """On the one core of a learner that would wait for the step at work there."""
    params = placed(MeshShape(fsdp=2, tensor=2).make(), PARAMS)
    monkeypatch.setattr(jax, "device_put", None)
    with jax.transfer_guard_host_to_device("disallow"):
        store.write(1, params)
    monkeypatch.undo()
    assert parameters_sha256(store.read(1)) == parameters_sha256(PARAMS)


def test_pruning_keeps_the_versions_from_the_given_one_on_and_those_needed(store):
    for version in range(6):
        store.write(version, PARAMS)
    store.prune(4, needed=[1, 5])
    assert store.versions() == [1, 4, 5]
    store.prune(4)
    assert store.versions() == [4, 5]


def test_a_store_of_bfloat16_rounds_what_is_written(tmp_path):
    store = SnapshotStore(tmp_path, "run", "bfloat16")
    params = {"w": np.array([1.0, 1.001], np.float32)}
    num_bytes = store.write(0, params)
    assert num_bytes == (tmp_path / "v00000000.safetensors").stat().st_size
    assert num_bytes == SnapshotStore(tmp_path, "run").write(1, params) - 2 * 2
    assert store.read(0)["w"].dtype == "bfloat16"
    assert store.read(0)["w"].astype(np.float32).tolist() == [1.0, 1.0]


def test_the_hash_sees_names_shapes_types_and_values():
    changed = [
        {**PARAMS, "embedding": PARAMS["embedding"] + 1},
        {**PARAMS, "embedding": PARAMS["embedding"].reshape(4, 8)},
        {**PARAMS, "embedding": PARAMS["embedding"].view(np.int32)},
        {"other": PARAMS["embedding"], "layer_0": PARAMS["layer_0"]},
    ]
    hashes = {parameters_sha256(params) for params in [PARAMS, *changed]}
    assert len(hashes) == 5
