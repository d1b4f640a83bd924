"""Compiled programs: kept on disk for the next process, and counted.

jax names an entry of its cache by the program, the flags and the versions, but not by the host: on
CPUs the machine code also depends on the instructions that the host has, and the way loops are
split on its number of cores. So each kind of host has a directory of its own here, and a home that
is shared never serves another's code.
"""

import collections
import contextlib
import hashlib
import os
import pathlib
import platform
import stat
from collections.abc import Callable

import jax

from asympo_jax.runtime import placement

_USERS_OWN = "JAX_COMPILATION_CACHE_DIR"
_USERS_OWN_TIME = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_MIN_COMPILE_TIME_S = 0.5
_MAX_BYTES = 2**31
_COMPILED = "/jax/core/compile/backend_compile_duration"  # also where it was found in the cache
_FOUND = "/jax/compilation_cache/cache_hits"


def keep_compiled(directory: str | None) -> pathlib.Path | None:
    """Keeps compiled programs on disk from now on; before anything is compiled, after pinning.

    Args:
        directory: where; None for `$ASYMPO_CACHE/xla` or `~/.cache/asympo_jax/xla`, empty for
            nowhere. Where jax's own variable says it, that stays.

    Returns:
        The directory of this kind of host, None if nothing is kept here: also where others own or
        may write it, as what is in it is run.
    """
    if directory == "" or os.environ.get(_USERS_OWN):
        return None
    try:
        path = _default_directory() if directory is None else pathlib.Path(directory)
        path = path / _host_kind()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(path):
            return None
        _drop_oldest(path, _MAX_BYTES)
    except (OSError, RuntimeError):  # no home, or one that cannot be written
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    if _USERS_OWN_TIME not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_TIME_S)
    return path


def _is_private(path: pathlib.Path) -> bool:
    """Whether a path is a directory that its user alone may write."""
    found = path.lstat()
    is_own = found.st_uid == os.getuid() and not found.st_mode & 0o022
    return stat.S_ISDIR(found.st_mode) and is_own


class Compilations:
    """Counts what jax compiles in this process from now on.

    Attributes:
        count: programs that were compiled.
        found: programs that were taken from the cache on disk.
        seconds: that both took.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self.count = self.found = 0
        self.seconds = 0.0
        self._seconds_by_name: dict[str, list[float]] = collections.defaultdict(list)
        jax.monitoring.register_event_listener(self._hear)
        jax.monitoring.register_event_duration_secs_listener(self._hear_seconds)

    def metrics(self) -> dict[str, float]:
        """`compile/*`."""
        return {
            "compile/count": float(self.count),
            "compile/found": float(self.found),
            "compile/seconds": self.seconds,
        }

    def of(self, name: str) -> tuple[float, ...]:
        """Seconds of each program of a function of this name: one for each shape."""
        return tuple(self._seconds_by_name.get(name, ()))

    def _hear(self, event: str, **_: str | int) -> None:
        """A program was found on disk; its seconds follow."""
        if event == _FOUND:
            self.found += 1
            self.count -= 1

    def _hear_seconds(self, event: str, duration_secs: float, **given: str | int) -> None:
        """A program is ready."""
        if event == _COMPILED:
            self.count += 1
            self.seconds += duration_secs
            self._seconds_by_name[str(given.get("fun_name", ""))].append(duration_secs)


def make_step_watch(
    compilations: Compilations, name: str, tell: Callable[[str], None]
) -> Callable[[int], dict[str, float]]:
    """A function of the version just given to the device: the metrics of what was compiled.

    It tells of a step that was compiled once more, after the first one.

    Args:
        compilations: of this process.
        name: of the step, as jax calls it.
        tell: says a line.
    """
    told = 0

    def watch(version: int) -> dict[str, float]:
        nonlocal told
        seconds = compilations.of(name)
        if told and len(seconds) > told:
            tell(
                f"update {version}: its step was compiled, for shape number {len(seconds)} "
                f"({sum(seconds[told:]):.1f} s)"
            )
        told = len(seconds)
        return compilations.metrics()

    return watch


def _default_directory() -> pathlib.Path:
    """Where compiled programs are kept unless the config says otherwise."""
    root = os.environ.get("ASYMPO_CACHE")
    return (pathlib.Path(root) if root else pathlib.Path.home() / ".cache/asympo_jax") / "xla"


def _host_kind() -> str:
    """A name for hosts whose compiled programs are the same."""
    parts = [platform.machine(), platform.processor(), _cpu_features()]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"{platform.machine()}-{digest}-{len(placement.available_cores())}cores"


def _cpu_features() -> str:
    """What the kernel says of the model and the instructions of the first core."""
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    with contextlib.suppress(OSError):
        first, _, _ = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")
        return "\n".join(line for line in first.splitlines() if line.startswith(wanted))
    return ""


def _drop_oldest(directory: pathlib.Path, max_bytes: int) -> None:
    """Deletes the entries written first while there are more bytes than this."""
    entries = []
    for path in directory.iterdir():
        # Another process may have deleted it meanwhile; folders are not of this cache.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                entries.append((path.stat(), path))
    size = sum(status.st_size for status, _ in entries)
    for status, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
        if size <= max_bytes:
            return
        path.unlink(missing_ok=True)
        size -= status.st_size
