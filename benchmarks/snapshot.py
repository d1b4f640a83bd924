"""Seconds and memory of handing a version over: parameters written to files and read again.

    python benchmarks/snapshot.py
    python benchmarks/snapshot.py --num_layers=2 --repeats=3 --directory=/var/tmp

A decoder's float32 parameters (0.94 GB) lie whole on one simulated device, or spread over a mesh of
four. Sides: one file from one device, in float32, bfloat16 and int8; one file from the mesh; four
files from the mesh, one for each device as if each were a process, written by four threads; and
Orbax's StandardCheckpointer, save and restore, from one device and from the mesh. What is read ends
as arrays of jax on the devices that it came from, of ours on one where it is one file of one.

Rounds take the sides in turns; medians are printed, and beside them bytes a second of the float32
tree, so that what is rounded counts for what it stands for. Writing to a disk ends in the system's
cache: nothing is synced, as in a run. The memory above the tree is the largest resident set of a
process of its own that writes once, without what it had before. Files in the RAM disk count as
memory of nobody. Linux only.
Prints a table and, as its last line, JSON.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import orbax.checkpoint as ocp
from protocol import peak_bytes

from asympo_jax import models
from asympo_jax.models import MeshShape, ParamsDtype
from asympo_jax.models.sharding import placed, sharding_of
from asympo_jax.runtime.snapshots import SnapshotStore

SHAPE: dict[str, Any] = {
    "vocab_size": 32_768,
    "width": 1024,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_width": 64,
    "mlp_width": 4096,
}
NUM_DEVICES = 4


class _OfDevice:
    """What one device has of an array, as a process with that device would see it."""

    is_fully_addressable = False

    def __init__(self, x: jax.Array, number: int):
        self.shape, self.dtype, self.ndim = x.shape, x.dtype, x.ndim
        self.sharding = x.sharding
        self.addressable_shards = [s for s in x.addressable_shards if s.device.id == number]


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to hand a version over.

    Attributes:
        name: in the table.
        dtype: of what is written.
        on_mesh: whether the parameters lie on four devices.
        write: (directory, parameters) -> None.
        read: (directory, parameters to be like) -> parameters.
    """

    name: str
    dtype: ParamsDtype
    on_mesh: bool
    write: Callable[[pathlib.Path, Any], Any]
    read: Callable[[pathlib.Path, Any], Any]


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_layers", type=int, default=12, help="of the decoder (12)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    parser.add_argument("--directory", default="/dev/shm", help="where to write (/dev/shm)")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)  # what a process of its own does
    arguments = parser.parse_args()
    config = models.ModelConfig(num_layers=arguments.num_layers, **SHAPE)
    if arguments.memory_of:
        side = next(side for side in sides() if side.name == arguments.memory_of)
        print(json.dumps(memory(config, side, arguments.directory)))
        return
    whole, spread = parameters(config, False), parameters(config, True)
    num_bytes = sum(x.nbytes for x in jax.tree.leaves(whole))
    seconds: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides()}
    for turn in range(arguments.repeats + 1):
        for side in sides():
            given = spread if side.on_mesh else whole
            with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
                took = timed(side, pathlib.Path(directory), given)
            if turn:  # the first compiles
                seconds[side.name].append(took)
    rows = [row(side, seconds[side.name], num_bytes, arguments) for side in sides()]
    print(f"{num_bytes / 1e9:.2f} GB of float32 to {arguments.directory}")
    print(f"{'':<32}{'write':>9}{'':>12}{'read':>9}{'':>12}{'memory above':>15}")
    for one in rows:
        speeds = [(one[name], num_bytes / one[name] / 1e9) for name in ("write_s", "read_s")]
        text = "".join(f"{took:>7.2f} s{speed:>7.2f} GB/s" for took, speed in speeds)
        print(f"{one['side']:<32}{text}{one['memory_bytes'] / 1e6:>12.0f} MB")
    record = {"benchmark": "snapshot", "bytes": num_bytes, "sides": rows, "machine": machine()}
    print(json.dumps(record | {"directory": arguments.directory, "repeats": arguments.repeats}))


def parameters(config: models.ModelConfig, on_mesh: bool) -> Any:
    """Random parameters on one device or on the mesh."""
    params = models.init_params(config, jax.random.key(0))
    return placed(mesh(), params) if on_mesh else params


def mesh() -> Any:
    """The four devices, each with a quarter of the matrices."""
    return MeshShape(fsdp=NUM_DEVICES).make()


def sides() -> list[Side]:
    """All ways."""
    dtypes: list[ParamsDtype] = ["float32", "bfloat16", "int8"]
    ours = [Side(f"one device, one file, {d}", d, False, _write, _read) for d in dtypes]
    return [
        *ours,
        Side("mesh, one file, float32", "float32", True, _write, _read_onto_mesh),
        Side("mesh, four files, float32", "float32", True, _write_parts, _read_onto_mesh),
        Side("Orbax, one device, float32", "float32", False, _write_orbax, _read_orbax),
        Side("Orbax, mesh, float32", "float32", True, _write_orbax, _read_orbax),
    ]


def _write(directory: pathlib.Path, params: Any) -> None:
    SnapshotStore(directory, "run").write(0, params)


def _write_parts(directory: pathlib.Path, params: Any) -> None:
    def write(part: int) -> None:
        tree = jax.tree.map(lambda x: _OfDevice(x, part), params)
        SnapshotStore(directory, "run", part=part, num_parts=NUM_DEVICES).write(0, tree)

    with concurrent.futures.ThreadPoolExecutor(NUM_DEVICES) as pool:
        list(pool.map(write, range(NUM_DEVICES)))


def _read(directory: pathlib.Path, like: Any) -> Any:
    return SnapshotStore(directory, "run").read_policy(0)


def _read_onto_mesh(directory: pathlib.Path, like: Any) -> Any:
    devices = mesh()

    def place(name: str, x: Any) -> jax.Array:
        return jax.device_put(x, sharding_of(devices, name))

    num_parts = len(list(directory.iterdir()))
    return SnapshotStore(directory, "run", num_parts=num_parts).read_policy(0, place)


def _write_orbax(directory: pathlib.Path, params: Any) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "0", params)


def _read_orbax(directory: pathlib.Path, like: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return checkpointer.restore(directory / "0", wanted)


def timed(side: Side, directory: pathlib.Path, params: Any) -> tuple[float, float]:
    """Seconds to write, rounding left out, and to read."""
    given = jax.block_until_ready(models.rounded(params, side.dtype))
    start = time.perf_counter()
    side.write(directory, given)
    written = time.perf_counter()
    jax.block_until_ready(side.read(directory, params))
    return written - start, time.perf_counter() - written


def row(
    side: Side, seconds: list[tuple[float, float]], num_bytes: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """A side's numbers."""
    command = [sys.executable, __file__, f"--memory_of={side.name}"]
    command += [f"--num_layers={arguments.num_layers}", f"--directory={arguments.directory}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    writes, reads = zip(*seconds, strict=True)
    return {
        "side": side.name,
        "write_s": statistics.median(writes),
        "read_s": statistics.median(reads),
        "all_s": seconds,
        "memory_bytes": json.loads(done.stdout.splitlines()[-1]),
    }


def memory(config: models.ModelConfig, side: Side, directory: str) -> int:
    """Bytes by which the largest resident set grows while a version is written once."""
    params = jax.block_until_ready(parameters(config, side.on_mesh))
    given = jax.block_until_ready(models.rounded(params, side.dtype))
    del params
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is what it holds now
    before = peak_bytes()
    with tempfile.TemporaryDirectory(dir=directory) as made:
        side.write(pathlib.Path(made), given)
    return peak_bytes() - before


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    names = ("jax", "orbax-checkpoint", "safetensors")
    versions = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), "cores": os.cpu_count(), **versions}


if __name__ == "__main__":
    main()
