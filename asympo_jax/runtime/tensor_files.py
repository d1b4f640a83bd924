"""Trees of arrays in safetensors files, a part of an array at a time.

An array that lies on several devices is written part by part, as they have it, so that no more
than two parts are on the host at once; it may be spread over the files of several processes.
Whoever reads puts it together, one array after the other.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors

# Name of a parameter, with slashes, and the array -> what is kept of it.
Place = Callable[[str, np.ndarray], Any]
_DTYPES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bfloat16": "BF16",
    "bool": "BOOL",
}
_AT = "@"  # between the name of an array and where a part of it begins
_ALIGNMENT = 64


class SnapshotRefused(Exception):
    """A snapshot that cannot be written, or is torn, corrupt, foreign or of another version."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """An array, or a part of one.

    Attributes:
        name: of the array.
        shape: of the array.
        start: index in it of the first element; None where this is all of it.
        data: of the part, on the host or on one device.
    """

    name: str
    shape: tuple[int, ...]
    start: tuple[int, ...] | None
    data: Any

    @property
    def key(self) -> str:
        """What it is called in a file."""
        return (
            self.name if self.start is None else f"{self.name}{_AT}{','.join(map(str, self.start))}"
        )


def pieces_of(params: Any, part: int = 0) -> list[Piece]:
    """What a process writes of a tree: what its devices have and no other process writes.

    What several devices have is written by one of them, of each array by another, so that copies
    of the parameters share the work.

    Args:
        params: NumPy arrays, or jax arrays on devices of one or of several processes.
        part: number of this process; arrays that each has whole are written by the first.
    """
    found = []
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    for number, (name, x) in enumerate(sorted(flat.items())):
        if getattr(x, "is_fully_addressable", True) and part:
            continue
        if not hasattr(x, "addressable_shards"):
            found.append(Piece(name, x.shape, None, x))
            continue
        writer = number % _num_copies(x)
        for shard in x.addressable_shards:
            if shard.replica_id == writer:
                is_whole = shard.data.shape == x.shape
                start = None if is_whole else tuple(index.start or 0 for index in shard.index)
                found.append(Piece(name, x.shape, start, shard.data))
    return found


def _num_copies(x: jax.Array) -> int:
    """How many devices have the same part of an array."""
    of_part = x.sharding.shard_shape(x.shape)
    num_parts = math.prod(-(-n // max(1, part)) for n, part in zip(x.shape, of_part, strict=True))
    return max(1, len(x.sharding.device_set) // max(1, num_parts))


def write_file(path: pathlib.Path, pieces: Sequence[Piece], **metadata: str) -> int:
    """Writes one safetensors file, atomically; returns its bytes.

    Raises:
        SnapshotRefused: it cannot be written.
    """
    shapes = {piece.name: piece.shape for piece in pieces if piece.start is not None}
    header: dict[str, Any] = {"__metadata__": {**metadata, "shapes": json.dumps(shapes)}}
    end = 0
    for piece in pieces:
        start, end = end, end + piece.data.size * piece.data.dtype.itemsize
        header[piece.key] = {
            "dtype": _DTYPES[piece.data.dtype.name],
            "shape": piece.data.shape,
            "data_offsets": [start, end],
        }

    def head(checksum: int) -> bytes:
        header["__metadata__"]["checksum"] = f"{checksum:08x}"
        text = json.dumps(header).encode()
        padding = -(8 + len(text)) % _ALIGNMENT
        return (len(text) + padding).to_bytes(8, "little") + text + b" " * padding

    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(head(0))  # as long as the one that is known at the end
            checksum = 0
            for piece in pieces:
                content = _bytes(_on_host(piece.data))
                checksum = _checksum(piece.key, content, checksum)
                file.write(content)
            num_bytes = file.tell()
            file.seek(0)
            file.write(head(checksum))
        os.replace(partial, path)
    except OSError as error:
        raise SnapshotRefused(f"{path}: cannot be written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return num_bytes


def read_files(
    paths: Sequence[pathlib.Path], place: Place = lambda _, x: x
) -> tuple[Any, list[dict[str, str]]]:
    """The tree in the files that were written together, and the metadata of each.

    Args:
        paths: of all of them.
        place: is given each array, which nothing here keeps; that of the tree is what it returns.

    Raises:
        SnapshotRefused: a file is missing, torn or corrupt, or parts of an array are missing.
    """
    with contextlib.ExitStack() as stack:
        try:
            files = [
                stack.enter_context(safetensors.safe_open(path, framework="numpy"))
                for path in paths
            ]
            flat, checksums = _read(files, place)
            found = [dict(file.metadata() or {}) for file in files]
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            names = ", ".join(map(str, paths))
            raise SnapshotRefused(f"{names}: cannot be read ({error})") from error
    for path, metadata, checksum in zip(paths, found, checksums, strict=True):
        if metadata.get("checksum") != f"{checksum:08x}":
            raise SnapshotRefused(f"{path}: its checksum does not fit its contents")
    return flax.traverse_util.unflatten_dict(flat, sep="/"), found


def _read(files: Sequence[Any], place: Place) -> tuple[dict[str, Any], list[int]]:
    """The arrays by name, and the checksums of the files."""
    shapes: dict[str, list[int]] = {}
    places: dict[str, list[tuple[int, str]]] = {}
    for number, file in enumerate(files):
        shapes |= json.loads((file.metadata() or {}).get("shapes", "{}"))
        for key in file.offset_keys():
            places.setdefault(key.split(_AT)[0], []).append((number, key))
    checksums = [0] * len(files)

    def pieces(name: str) -> Iterator[tuple[str, np.ndarray]]:
        for number, key in places[name]:
            data = files[number].get_tensor(key)
            checksums[number] = _checksum(key, _bytes(data), checksums[number])
            yield key, data

    # In the order in which each file was written.
    flat = {
        name: place(name, _together(name, shapes.get(name), pieces(name)))
        for name in sorted(places)
    }
    return flat, checksums


def _together(
    name: str, shape: Sequence[int] | None, pieces: Iterator[tuple[str, np.ndarray]]
) -> np.ndarray:
    """An array that is whole, or put together from its parts."""
    whole, num_found = None, 0
    for key, data in pieces:
        if key == name:
            return data
        if whole is None:
            whole = np.empty(shape or (), data.dtype)
        starts = [int(start) for start in key.removeprefix(name + _AT).split(",")]
        ends = [start + size for start, size in zip(starts, data.shape, strict=True)]
        whole[tuple(map(slice, starts, ends))] = data
        num_found += data.size
    if whole is None or num_found != whole.size:
        raise ValueError(f"parts of {name} are missing")
    return whole


def _on_host(x: Any) -> np.ndarray:
    """The array on the host, for as long as the caller has it."""
    if isinstance(x, jax.Array):
        # What jax brings to the host it keeps with the array: so it is another one with the same
        # buffer that is brought. A copy on the device would wait for the step at work there.
        x = jax.make_array_from_single_device_arrays(x.shape, x.sharding, [x])
    return np.asarray(x)


def _bytes(x: np.ndarray) -> memoryview:
    """The bytes of an array, in C order."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data


def _checksum(key: str, content: memoryview, before: int) -> int:
    """CRC-32 over names and bytes: against accidents, not against attackers."""
    return zlib.crc32(content, zlib.crc32(key.encode(), before))
