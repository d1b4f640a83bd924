"""Immutable, versioned snapshots of the parameters in files that samplers read.

A snapshot is one safetensors file whose metadata is its manifest: run, version, checksum. It is
written beside its name and renamed, so a reader sees all of it or nothing.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Collection
from typing import IO, Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from asympo_jax.models import ParamsDtype, gathered, rounded, with_adapters

_RAM_DISK = pathlib.Path("/dev/shm")
_PREFIX, _LOCK = "asympo-", "lock"
_SNAPSHOT = re.compile(r"\.?(v[0-9]+|base)\.safetensors(\.[0-9]+)?")


class SnapshotRefused(Exception):
    """A snapshot that cannot be written, or is torn, corrupt, foreign or of another version."""


class SnapshotStore:
    """Snapshots of one run in one directory.

    Args:
        directory: where the files are; it exists.
        run_id: identity of the run; snapshots of another are refused.
        dtype: of the parameters written; see `models.rounded`.
    """

    def __init__(
        self, directory: str | os.PathLike[str], run_id: str, dtype: ParamsDtype = "float32"
    ):
        """A store; nothing is read or written yet."""
        self.directory = pathlib.Path(directory)
        self._run_id = run_id
        self._dtype: ParamsDtype = dtype
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

        Of parameters on devices of several processes it is whole in each; all must call it.
        """
        return gathered(self._copied(params))

    def write(self, version: int, params: Any) -> None:
        """Publishes the parameters of a version; blocks until they are computed."""
        self._write(version, params, has_base=str(self._has_base))

    def read(self, version: int) -> Any:
        """The parameters of a version, as NumPy arrays: adapters alone if they have a base.

        Raises:
            SnapshotRefused: the file is missing, damaged, or of another run or version.
        """
        return self._read(version)[0]

    def read_policy(self, version: int) -> Any:
        """The decoder's parameters of a version; their base, if they have one, is read once.

        Raises:
            SnapshotRefused: a file is missing, damaged, or of another run or version.
        """
        params, metadata = self._read(version)
        if metadata["has_base"] != str(True):
            return params
        if self._base is None:
            # On the device, where it stays.
            self._base = jax.tree.map(jnp.asarray, self._read(None)[0])
        return with_adapters(self._base, params)

    def prune(self, oldest_kept: int, needed: Collection[int] = ()) -> None:
        """Deletes the snapshots before a version, but those that are needed."""
        for version in self.versions():
            if version < oldest_kept and version not in needed:
                self._path(version).unlink()

    def versions(self) -> list[int]:
        """Versions that are there, ascending."""
        return sorted(int(path.stem[1:]) for path in self.directory.glob("v*.safetensors"))

    def remove(self) -> None:
        """Deletes the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _write(self, version: int | None, params: Any, **metadata: str) -> None:
        """Writes the file of a version, or of the base if None, with its manifest."""
        params = rounded(params, self._dtype)  # where they are
        manifest = {"run_id": self._run_id, "version": str(version), **metadata}
        write_params(self._path(version), params, **manifest)

    def _read(self, version: int | None) -> tuple[Any, dict[str, str]]:
        """The parameters and the manifest of a version, or of the base if None."""
        params, metadata = read_params(self._path(version))
        wanted = {"run_id": self._run_id, "version": str(version)}
        found = {name: metadata.get(name) for name in wanted}
        if found != wanted:
            raise SnapshotRefused(f"{self._path(version)}: is {found}, wanted {wanted}")
        return params, metadata

    def _path(self, version: int | None) -> pathlib.Path:
        """The file of a version, or of the base if None."""
        name = "base" if version is None else f"v{version:08d}"
        return self.directory / f"{name}.safetensors"


def make_snapshot_directory(parent: str | None, run_id: str) -> tuple[pathlib.Path, IO[str]]:
    """A new private directory (mode 0700) and the lock that says it is in use.

    Directories of runs that were killed, whose locks are free, are removed first.

    Args:
        parent: where to make it; None for the RAM disk, or the temporary directory without one.
        run_id: becomes part of its name.
    """
    if parent is None:
        parent = str(_RAM_DISK) if os.access(_RAM_DISK, os.W_OK) else tempfile.gettempdir()
    for other in pathlib.Path(parent).glob(f"{_PREFIX}*"):
        remove_if_unused(other)
    while True:
        directory = pathlib.Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{run_id}-", dir=parent))
        # Another run that starts may take it for unused before it is locked.
        with contextlib.suppress(FileNotFoundError):
            lock = (directory / _LOCK).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (directory / _LOCK).exists():
                return directory, lock
            lock.close()


def remove_if_unused(directory: pathlib.Path) -> bool:
    """Removes a directory of `make_snapshot_directory` whose lock nobody holds; whether it is gone.

    That of another user stays, and nothing in it is opened. One whose lock is gone, because its
    removal was cut short, is known by its contents: snapshots and nothing else.
    """
    try:
        found = os.lstat(directory)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        names = {path.name for path in directory.iterdir()} - {_LOCK}
        is_known = names and all(map(_SNAPSHOT.fullmatch, names))
        if not is_known and not (directory / _LOCK).exists():
            return False
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open(directory / _LOCK, flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The lock goes last: what is left by an end in between is found again.
            for name in [*names, _LOCK]:
                (directory / name).unlink()
            directory.rmdir()
        finally:
            os.close(lock)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # in use
    return True


def write_params(path: pathlib.Path, params: Any, **metadata: str) -> None:
    """Writes a parameter tree and its metadata to one safetensors file, atomically.

    Raises:
        SnapshotRefused: it cannot be written.
    """
    # Not ascontiguousarray, which makes a vector of a scalar.
    flat = {name: np.asarray(x, order="C") for name, x in flatten_params(params).items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        safetensors.numpy.save_file(flat, partial, {"checksum": _checksum(flat), **metadata})
        os.replace(partial, path)
    except (OSError, safetensors.SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise SnapshotRefused(f"{path}: cannot be written ({error})") from error


def read_params(path: pathlib.Path) -> tuple[Any, dict[str, str]]:
    """The parameter tree and the metadata of a file that `write_params` wrote.

    Raises:
        SnapshotRefused: the file is missing, torn or corrupt.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise SnapshotRefused(f"{path}: cannot be read ({error})") from error
    if metadata.get("checksum") != _checksum(flat):
        raise SnapshotRefused(f"{path}: its checksum does not fit its contents")
    return flax.traverse_util.unflatten_dict(flat, sep="/"), metadata


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


def _checksum(flat: dict[str, np.ndarray]) -> str:
    """CRC-32 over names and bytes: against accidents, not against attackers."""
    crc = 0
    for name in sorted(flat):
        content = np.ascontiguousarray(flat[name]).reshape(-1).view(np.uint8)
        crc = zlib.crc32(content.data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"
