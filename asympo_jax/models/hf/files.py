"""Safetensors files read and written one tensor at a time.

The library maps whole files into memory, or wants all tensors of a file at once. Here no more than
the tensor at hand is in host memory: its bytes are read, or written, where the header says.
"""

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": jnp.dtype("bfloat16")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # as in the library


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is.

    Attributes:
        name: in the file.
        path: the file.
        dtype: as safetensors spells it, such as BF16.
        shape: of the tensor.
        start: offset of its first byte in the file.
    """

    name: str
    path: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def require(self, shape: tuple[int, ...]) -> None:
        """Refuses another shape than this, and types that are no plain floats.

        Raises:
            ValueError: naming file, tensor, what it has and what it must have.
        """
        where = f"{self.path}: tensor {self.name!r}"
        if self.dtype not in _DTYPES:
            raise ValueError(f"{where} has dtype {self.dtype}, must be one of {', '.join(_DTYPES)}")
        if self.shape != shape:
            raise ValueError(f"{where} has shape {self.shape}, must have {shape}")

    def read(self) -> np.ndarray:
        """The tensor."""
        dtype = _DTYPES[self.dtype]
        raw = self._bytes(0, math.prod(self.shape) * dtype.itemsize)
        return raw.view(dtype).reshape(self.shape)

    def has_bytes_of(self, other: "StoredTensor") -> bool:
        """Whether both tensors are the same, type included; reads a little at a time."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        num_bytes = math.prod(self.shape) * _DTYPES[self.dtype].itemsize
        step = 2**24
        return all(
            np.array_equal(
                self._bytes(done, min(step, num_bytes - done)),
                other._bytes(done, min(step, num_bytes - done)),
            )
            for done in range(0, num_bytes, step)
        )

    def _bytes(self, first: int, num_bytes: int) -> np.ndarray:
        """Some of its bytes."""
        return np.fromfile(self.path, np.uint8, num_bytes, offset=self.start + first)


def stored_tensors(directory: pathlib.Path) -> dict[str, StoredTensor]:
    """What the weights' files of a directory hold, by name; no tensor is read.

    Raises:
        ValueError: there are no such files, one is missing or damaged.
    """
    if (directory / SINGLE_FILE).is_file():
        return _read_header(directory / SINGLE_FILE)
    index = directory / INDEX_FILE
    if not index.is_file():
        raise ValueError(f"{directory}: has neither {SINGLE_FILE} nor {INDEX_FILE}")
    file_of = read_object(index).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise ValueError(f"{index}: has no weight_map")
    for file in file_of.values():
        if not isinstance(file, str) or pathlib.PurePath(file).name != file:
            raise ValueError(f"{index}: names {file!r}, must be a file beside it")
    headers = {file: _read_header(directory / file) for file in sorted(set(file_of.values()))}
    for name, file in file_of.items():
        if name not in headers[file]:
            raise ValueError(f"{directory / file}: has no tensor {name!r}, which {index.name} says")
    return {name: headers[file][name] for name, file in file_of.items()}


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it cannot be read or holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {type(found).__name__}")
    return found


def write_tensors(
    path: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    read: Callable[[str], np.ndarray],
) -> None:
    """Writes tensors of one type to a file.

    Args:
        path: the file.
        shapes: of the tensors by name.
        dtype: float32 or bfloat16.
        read: name -> the tensor; called once each, in order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers 4 refuses without
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in shapes.items():
            array = np.ascontiguousarray(read(name), dtype)
            assert array.shape == shape, name
            file.write(array.reshape(-1).view(np.uint8).data)


def _read_header(path: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name.

    Raises:
        ValueError: it cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as file:
            num_header_bytes = struct.unpack("<Q", file.read(8))[0]
            if num_header_bytes > _MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = json.loads(file.read(num_header_bytes))
        num_data_bytes = path.stat().st_size - 8 - num_header_bytes
        header.pop("__metadata__", None)
        return {
            name: _stored_tensor(path, name, entry, 8 + num_header_bytes, num_data_bytes)
            for name, entry in header.items()
        }
    except (OSError, ValueError, struct.error) as error:
        raise ValueError(f"{path}: is no whole safetensors file ({error})") from error
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: is no safetensors file, its header is malformed") from error


def _stored_tensor(
    path: pathlib.Path, name: str, entry: Mapping[str, Any], data_start: int, num_data_bytes: int
) -> StoredTensor:
    """A tensor of the header, whose bytes are all there."""
    shape: Sequence[int] = entry["shape"]
    start, end = entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"])
    if not all(type(number) is int for number in (*shape, start, end)):
        raise TypeError(name)
    is_sized = dtype is None or end - start == math.prod(shape) * dtype.itemsize
    if not (0 <= start <= end <= num_data_bytes and is_sized and min(shape, default=1) >= 0):
        raise ValueError(f"tensor {name!r} lies outside the file")
    return StoredTensor(name, path, str(entry["dtype"]), tuple(shape), data_start + start)
