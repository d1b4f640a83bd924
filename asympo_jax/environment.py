"""What a run ran on: a line of `environment.jsonl` for each attempt at it."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from asympo_jax.runtime.files import Lines

_PACKAGES = ("asympo_jax", "jax", "jaxlib", "flax", "optax", "numpy")
_GIT_TIMEOUT_S = 5.0


def describe(devices: list[str]) -> dict[str, Any]:
    """When and how this process was started, of which commit, with which versions and hardware.

    Args:
        devices: kinds of the learner's devices.
    """
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": commit(pathlib.Path(__file__).parent),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "system": platform.platform(),
        "host": platform.node(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "devices": devices,
    }


def record(workdir: pathlib.Path, found: dict[str, Any], warn: Callable[[str], object]) -> None:
    """Appends the line of an attempt; what cannot be written is told and ends no run."""
    lines = Lines(workdir / "environment.jsonl")
    try:
        lines.append(json.dumps(found))
        lines.close()
    except OSError as error:
        warn(f"{workdir / 'environment.jsonl'}: cannot be written ({error}); training goes on")


def commit(package: pathlib.Path) -> str | None:
    """The commit of a clone in which the package lies, `+changes` if files of it differ.

    None where it is installed elsewhere, or there is no git.
    """
    top = _git(package, "rev-parse", "--show-toplevel")
    # Not that of another project's clone, in whose virtual environment the package is installed.
    if top is None or pathlib.Path(top) != package.resolve().parent:
        return None
    found = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no", "--", str(package))
    return f"{found}+changes" if found and changes else found


def _git(directory: pathlib.Path, *arguments: str) -> str | None:
    """What git says of a directory; None if it cannot."""
    command = ["git", "--no-optional-locks", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The name of the processor, as well as the system tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    """Of the machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None
