"""The program that a `RewardPool` starts: runs a grader and ends with it all that it started.

No process group and no alarm holds a grader that hangs in C or starts sessions of its own. This
process runs none of its code, so it can always act: when it is terminated, or the pool is gone, or
the grader ended, it kills the grader and whatever that left behind, then itself. On Linux it adopts
every orphan among them, whatever its session; elsewhere it kills its process group.
"""

import contextlib
import ctypes
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading

_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
_IS_LINUX = sys.platform == "linux"


def main(command: list[str]) -> None:
    """Runs a command to its end; must be the leader of a process group and read from a pipe."""
    if _IS_LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: _end_all())
    grader = subprocess.Popen(command)
    threading.Thread(target=_watch, daemon=True).start()
    while os.wait()[0] != grader.pid:
        pass  # An orphan that it adopted has ended.
    _end_all()


def _watch() -> None:
    """Ends all once nobody can write to the grader any more; reads nothing."""
    pipe = select.poll()
    pipe.register(sys.stdin.fileno(), 0)
    pipe.poll()
    os.kill(os.getpid(), signal.SIGTERM)


def _end_all() -> None:
    """Kills until nothing is left; children of what was killed become children of this one."""
    if not _IS_LINUX:
        os.killpg(0, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            for child in _children():
                os.kill(child, signal.SIGKILL)
            os.wait()
    os._exit(0)


def _children() -> list[int]:
    """The processes whose parent is this one."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may have anything in it.
            _, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(parent) == os.getpid():
                found.append(int(folder.name))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
