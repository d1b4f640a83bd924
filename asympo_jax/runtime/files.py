"""Files of a run: no link leads a write elsewhere, and a crash leaves whole lines and files.

A name that is a link is refused where a file is appended to, and replaced where one is written
anew.
"""

import collections
import contextlib
import os
import pathlib

_FLAGS = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o666  # less the umask
_MAX_WAITING = 10_000  # lines
_MAX_RUNS = 8  # that a sentence names


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all: beside its name, then renamed.

    Raises:
        OSError: it cannot be written; what was there still is.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Whatever the locale is; half a character of a response is escaped.
        content = text.encode("utf-8", "backslashreplace")
        with open(os.open(partial, os.O_WRONLY | os.O_TRUNC | _FLAGS, _MODE), "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def not_a_run(directory: pathlib.Path) -> str:
    """What is said of a directory without a run's config.json: what it is not, and runs in it."""
    runs = [path.parent.name for path in sorted(directory.glob("*/config.json"))]
    words = "is not the directory of a run, no config.json"
    if not runs:
        return words
    more = f" and {len(runs) - _MAX_RUNS} more" if len(runs) > _MAX_RUNS else ""
    return f"{words}; the runs in it are {', '.join(map(repr, runs[:_MAX_RUNS]))}{more}"


class Lines:
    """Appends lines to a file; those that cannot be written wait for the next one.

    Args:
        path: of the file; a last line that a crash cut short is dropped.

    Attributes:
        num_lost: lines that waited for so long that there was no room for them.
    """

    def __init__(self, path: pathlib.Path):
        """Nothing is opened yet."""
        self.num_lost = 0
        self._path = path
        self._waiting: collections.deque[bytes] = collections.deque()
        self._fd: int | None = None
        self._size = 0

    @property
    def num_waiting(self) -> int:
        """Lines that are not written yet."""
        return len(self._waiting)

    def append(self, line: str) -> None:
        """Writes the lines that wait and this one.

        Raises:
            OSError: they cannot be written; all that is in the file are whole lines.
        """
        if len(self._waiting) == _MAX_WAITING:
            self._waiting.popleft()
            self.num_lost += 1
        self._waiting.append(line.encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Writes the lines that wait.

        Raises:
            OSError: they cannot be written.
        """
        try:
            while self._waiting:
                fd = self._open() if self._fd is None else self._fd
                self._size += _write_all(fd, self._waiting[0])
                self._waiting.popleft()
        except OSError:
            self._close()
            raise

    def close(self) -> None:
        """Writes what waits and closes the file.

        Raises:
            OSError: it cannot be written.
        """
        self.flush()
        self._close()

    def _open(self) -> int:
        """Opens the file behind its last whole line."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | _FLAGS, _MODE)
        self._size = os.fstat(self._fd).st_size
        while self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self._size -= 1
        os.ftruncate(self._fd, self._size)
        return self._fd

    def _close(self) -> None:
        """Closes the file at the end of its last whole line."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):
                os.ftruncate(fd, self._size)
            os.close(fd)


def _write_all(fd: int, data: bytes) -> int:
    """Writes all bytes, however many at a time; returns their number."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
    return len(data)
