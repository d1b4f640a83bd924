"""Immutable, versioned snapshots of the parameters in files that samplers read.

A snapshot is one safetensors file whose metadata is its manifest: run, version, checksum. It is
written beside its name and renamed, so a reader sees all of it or nothing. Several processes that
write together have a file each, whose name says of how many: a snapshot is whole once all are
there.
"""

import collections
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Collection
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from asympo_jax.models import ParamsDtype, gathered, rounded, with_adapters
from asympo_jax.runtime.tensor_files import (
    Place,
    SnapshotRefused,
    pieces_of,
    read_files,
    write_file,
)

_VERSION = re.compile(r"v([0-9]+)(?:\.[0-9]+-of-([0-9]+))?\.safetensors")


def _on_host(name: str, x: np.ndarray) -> Any:
    """The array as it is."""
    return x


def _on_device(name: str, x: np.ndarray) -> Any:
    """The array on jax's first device."""
    return jnp.asarray(x)


class SnapshotStore:
    """Snapshots of one run in one directory.

    Args:
        directory: where the files are; it exists.
        run_id: identity of the run; snapshots of another are refused.
        dtype: of the parameters written; see `models.rounded`.
        part: number of this process among those of the learner.
        num_parts: processes that write what they have of a version, each of which is asked for each
            version, or reads what so many have written; 1 if the first one writes all of it.
        written: (name, bytes) -> bytes; told of each file that is one of several, it waits in the
            first process for those of the others and returns the bytes of all.

    Attributes:
        directory: where the files are.
        run_id: identity of the run.
        num_parts: files of a version that several processes write.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        run_id: str,
        dtype: ParamsDtype = "float32",
        part: int = 0,
        num_parts: int = 1,
        written: Callable[[str, int], int] = lambda _, num_bytes: num_bytes,
    ):
        """A store; nothing is read or written yet."""
        self.directory = pathlib.Path(directory)
        self.run_id = run_id
        self._dtype: ParamsDtype = dtype
        self._part, self.num_parts = part, num_parts
        self._written = written
        self._has_base = False
        self._base: Any = None
        self._copied = jax.jit(lambda params: jax.tree.map(jnp.copy, rounded(params, self._dtype)))

    def write_base(self, base: Any) -> None:
        """Publishes what all versions from now on are adapters on; None if they are not any."""
        self._has_base = base is not None
        if self._has_base:
            self._write(None, base)

    def copied(self, params: Any) -> Any:
        """A copy of the parameters, as `write` stores them, that the device makes in its turn.

        All processes that have parts of the parameters must call it. If only one of them writes,
        the copy is whole in each.
        """
        copy = self._copied(params)
        return copy if self.num_parts > 1 else gathered(copy)

    def write(self, version: int, params: Any) -> int:
        """Publishes a version; blocks until it is computed, and whole if this process is the first.

        Returns:
            Bytes that were written; in the first process by all.

        Raises:
            SnapshotRefused: it cannot be written.
            Stalled: another process did not write its part in time; see `Lockstep.written`.
        """
        return self._write(version, params, has_base=str(self._has_base))

    def read(self, version: int) -> Any:
        """The parameters of a version, as NumPy arrays: adapters alone if they have a base.

        Raises:
            SnapshotRefused: a file is missing, damaged, or of another run or version.
        """
        return self._read(version, _on_host)[0]

    def read_policy(self, version: int, place: Place = _on_device) -> Any:
        """The decoder's parameters of a version; their base, if they have one, is read once.

        Args:
            version: one that is there.
            place: is given each array, by its name, as soon as it is read.

        Raises:
            SnapshotRefused: a file is missing, damaged, or of another run or version.
        """
        params, metadata = self._read(version, place)
        if metadata["has_base"] != str(True):
            return params
        if self._base is None:
            self._base = self._read(None, place)[0]
        return with_adapters(self._base, params)

    def prune(self, oldest_kept: int, needed: Collection[int] = ()) -> None:
        """Deletes the snapshots before a version, but those that are needed."""
        for path, version, _ in self._files():
            if version < oldest_kept and version not in needed:
                path.unlink()

    def has(self, version: int) -> bool:
        """Whether all parts of a version are there."""
        return all(path.exists() for path in self._paths(version))

    def versions(self) -> list[int]:
        """Versions of which all parts are listed, ascending; a shared directory may list late."""
        found = collections.Counter((version, parts) for _, version, parts in self._files())
        return sorted(version for (version, parts), count in found.items() if count == parts)

    def files(self, version: int) -> list[pathlib.Path]:
        """The files that a reader of a version needs, those of its base included."""
        return (self._paths(None) if self._has_base else []) + self._paths(version)

    def _write(self, version: int | None, params: Any, **metadata: str) -> int:
        """Writes what this process has to of a version, or of the base if None."""
        params = rounded(params, self._dtype)  # where they are
        # What each process has whole is one file, which the first one writes.
        is_whole = all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(params))
        if is_whole and self._part:
            return 0
        num_parts = 1 if is_whole else self.num_parts
        manifest = self._manifest(version, self._part, num_parts)
        path = self._path(version, self._part, num_parts)
        num_bytes = write_file(path, pieces_of(params, self._part), **manifest, **metadata)
        return num_bytes if num_parts == 1 else self._written(path.name.split(".")[0], num_bytes)

    def _read(self, version: int | None, place: Place) -> tuple[Any, dict[str, str]]:
        """The parameters and the manifest of a version, or of the base if None."""
        paths = self._paths(version)
        params, found = read_files(paths, place)
        for part, (path, metadata) in enumerate(zip(paths, found, strict=True)):
            wanted = self._manifest(version, part, len(paths))
            has = {name: metadata.get(name) for name in wanted}
            if has != wanted:
                raise SnapshotRefused(f"{path}: is {has}, wanted {wanted}")
        return params, found[0]

    def _manifest(self, version: int | None, part: int, num_parts: int) -> dict[str, str]:
        """What a file says of itself."""
        return {"run_id": self.run_id, "version": str(version), "part": f"{part} of {num_parts}"}

    def _files(self) -> list[tuple[pathlib.Path, int, int]]:
        """The files of versions, with the version and of how many parts it is one."""
        matches = [(path, _VERSION.fullmatch(path.name)) for path in self.directory.glob("v*")]
        return [(path, int(m[1]), int(m[2] or 1)) for path, m in matches if m is not None]

    def _paths(self, version: int | None) -> list[pathlib.Path]:
        """The files that a version, or the base if None, should have."""
        # Nothing is looked for: a network file system may show late what is in a directory.
        one = self._path(version, 0, 1)
        if self.num_parts == 1 or one.exists():
            return [one]
        return [self._path(version, part, self.num_parts) for part in range(self.num_parts)]

    def _path(self, version: int | None, part: int, num_parts: int) -> pathlib.Path:
        """The file of a part of a version, or of the base if None."""
        name = "base" if version is None else f"v{version:08d}"
        of = f".{part}-of-{num_parts}" if num_parts > 1 else ""
        return self.directory / f"{name}{of}.safetensors"


def write_params(path: pathlib.Path, params: Any, **metadata: str) -> None:
    """Writes a parameter tree and its metadata to one safetensors file, atomically.

    Raises:
        SnapshotRefused: it cannot be written.
    """
    write_file(path, pieces_of(params), **metadata)


def read_params(path: pathlib.Path) -> tuple[Any, dict[str, str]]:
    """The parameter tree and the metadata of a file that `write_params` wrote.

    Raises:
        SnapshotRefused: the file is missing, torn or corrupt.
    """
    params, (metadata,) = read_files([path])
    return params, metadata


def flatten_params(params: Any) -> dict[str, np.ndarray]:
    """Names with slashes to host arrays, sorted by name.

    All processes that have parts of the parameters must call it.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    if all(getattr(x, "is_fully_addressable", True) for x in flat.values()):
        flat = jax.device_get(flat)
    # One after the other, so that no device has two of them whole.
    return {name: np.asarray(gathered(flat[name])) for name in sorted(flat)}


def parameters_sha256(params: Any) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a parameter tree."""
    digest = hashlib.sha256()
    for name, array in flatten_params(params).items():
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
