"""What Linux tells of the processes of a run: who they are, what they hold, what they wait for."""

import contextlib
import dataclasses
import os
import pathlib

_PROC = pathlib.Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass(frozen=True)
class Process:
    """A live process.

    Attributes:
        pid: its number.
        role: the last part of the name of its program, such as `train` of `asympo_jax.train`.
        resident_bytes: memory.
        num_descriptors: open ones.
    """

    pid: int
    role: str
    resident_bytes: int
    num_descriptors: int


def marked(mark: str) -> list[Process]:
    """The live processes that have `NAME=VALUE` in the environment that they were started with."""
    wanted = mark.encode()
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            # One that ends meanwhile, or is another user's.
            with contextlib.suppress(OSError, IndexError, ValueError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(_process(entry))
    return [process for process in found if process is not None]


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return _state(_PROC / str(pid)) not in "ZX"
    except (OSError, IndexError):
        return False


def waits_for(pid: int) -> str:
    """What a process is at in the kernel, in words: its state, and the stack where it is told."""
    entry = _PROC / str(pid)
    words = []
    with contextlib.suppress(OSError, IndexError):
        words.append(f"state {_state(entry)}")
        words.append((entry / "wchan").read_text())
        words += (entry / "stack").read_text().split("\n")[:3]
    return " ".join(" ".join(words).split()) or "gone"


def sockets_of(pid: int) -> set[str]:
    """Inodes of a process's sockets."""
    links = []
    with contextlib.suppress(OSError):
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(os.readlink(entry))
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def listening_sockets() -> set[str]:
    """Inodes of all sockets that listen: TCP in state 0A, UDP at all, Unix with the accept flag."""
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" or table.startswith("udp"):
                found.add(fields[9])
    for line in (_PROC / "net" / "unix").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & 0x10000:
            found.add(fields[6])
    return found


def _process(entry: pathlib.Path) -> Process | None:
    """What there is to know of a process, None of one that has ended."""
    if _state(entry) in "ZX":
        return None
    arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    program = arguments[arguments.index("-m") + 1] if "-m" in arguments else arguments[0]
    resident_pages = int((entry / "statm").read_text().split()[1])
    return Process(
        pid=int(entry.name),
        role=program.rpartition(".")[2],
        resident_bytes=resident_pages * _PAGE_BYTES,
        num_descriptors=len(os.listdir(entry / "fd")),
    )


def _state(entry: pathlib.Path) -> str:
    """The letter of a process's state."""
    return (entry / "stat").read_text().rpartition(")")[2].split()[0]
