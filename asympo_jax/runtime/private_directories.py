"""Directories that nobody else can enter, and that a next run removes after a kill.

Each has a lock that its process holds: the end of a process, however it comes, frees it.
"""

import contextlib
import fcntl
import os
import pathlib
import platform
import re
import shutil
import stat
import tempfile
from typing import IO

CLUSTER = "ray"  # what one of a Ray cluster has besides its lock
_RAM_DISK = pathlib.Path("/dev/shm")
_PREFIX, _LOCK = "asympo-", "lock"
_MAX_HOST = 4096  # bytes of its name
_CONTENT = re.compile(rf"{CLUSTER}|\.?(v[0-9]+|base)(\.[0-9]+-of-[0-9]+)?\.safetensors(\.[0-9]+)?")


def make_private_directory(parent: str | None, name: str) -> tuple[pathlib.Path, IO[str]]:
    """A new private directory (mode 0700) and the lock that says it is in use.

    Directories of runs that were killed, whose locks are free, are removed first.

    Args:
        parent: where to make it; None for the RAM disk, or the temporary directory without one.
        name: becomes part of its own.

    Raises:
        OSError: it cannot be made or locked there; nothing of it is left.
    """
    parent = remove_unused(parent)
    while True:
        directory = pathlib.Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-", dir=parent))
        # Another run that starts may take it for unused before it is locked.
        with contextlib.suppress(FileNotFoundError):
            lock = (directory / _LOCK).open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                lock.write(platform.node())
                lock.flush()
            except OSError:
                lock.close()
                shutil.rmtree(directory, ignore_errors=True)
                raise
            if (directory / _LOCK).exists():
                return directory, lock
            lock.close()


def remove_unused(parent: str | None) -> str:
    """Removes what killed runs left in `parent`, of `make_private_directory`; returns its path."""
    if parent is None:
        parent = str(_RAM_DISK) if os.access(_RAM_DISK, os.W_OK) else tempfile.gettempdir()
    for directory in pathlib.Path(parent).glob(f"{_PREFIX}*"):
        remove_if_unused(directory)
    return parent


def remove_if_unused(directory: pathlib.Path) -> bool:
    """Removes a directory of `make_private_directory` whose lock nobody holds; whether it is gone.

    It must have nothing but snapshots, or files of a Ray cluster, and its lock, which is gone where
    its removal was cut short. That of another user stays, and nothing in it is opened; and so does
    that of another host, whose locks a shared file system may not show.
    """
    try:
        found = os.lstat(directory)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        names = {path.name for path in directory.iterdir()} - {_LOCK}
        if not all(map(_CONTENT.fullmatch, names)):
            return False
        if not names and not (directory / _LOCK).exists():
            return False
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open(directory / _LOCK, flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.read(lock, _MAX_HOST).decode(errors="replace") not in ("", platform.node()):
                return False
            # The lock goes last: what is left by an end in between is found again.
            if CLUSTER in names:
                names.remove(CLUSTER)
                shutil.rmtree(directory / CLUSTER)
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
