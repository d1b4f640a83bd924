"""Sampler processes that do what a test says: small programs that import nothing but the system's.

They speak on the pipes of `asympo_jax.runtime.local` in frames that the test has encoded before.
"""

import os
import pathlib
import sys
import threading
from collections.abc import Sequence

import numpy as np

from asympo_jax.runtime import wire
from asympo_jax.runtime.admission import Admission
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Holder, Lease
from asympo_jax.runtime.local import LocalProcess
from asympo_jax.runtime.supervisor import Supervisor
from asympo_jax.types import Group

RUN_ID = "run-1"
ADMISSION = Admission(
    group_size=2, vocab_size=10, max_prompt_tokens=4, max_response_tokens=3, has_logp=False
)
_PRELUDE = """
import os, signal, struct, sys
given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
home, index = given["home"], given["index"]
leasing, submitting = int(given["fd"]), int(given["submit_fd"])
attempt = sum(name.startswith(f"pid-{index}-") for name in os.listdir(home))
with open(f"{home}/pid-{index}-{attempt}", "w") as file:
    file.write(str(os.getpid()))

def frame(name):
    with open(f"{home}/{name}", "rb") as file:
        return file.read()

def send(fd, content, share=1):
    whole = struct.pack("!i", len(content)) + content
    os.write(fd, whole[: int(len(whole) * share)])

def read(fd, size):
    found = b""
    while len(found) < size:
        more = os.read(fd, size - len(found))
        if not more:
            sys.exit(0)
        found += more
    return found

def answer(fd):
    read(fd, struct.unpack("!i", read(fd, 4))[0])

def lease():
    send(leasing, frame("lease"))
    answer(leasing)

def submit(name):
    send(submitting, frame(name))
    answer(submitting)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def stop():
    os.kill(os.getpid(), signal.SIGSTOP)

def wait():
    signal.pause()
"""


def group(ticket: int, version: int = 0) -> Group:
    """A group that `ADMISSION` lets in."""
    return Group(
        ticket=ticket,
        version=version,
        prompt_S=np.zeros(1, np.int32),
        response_GT=np.ones((2, 3), np.int32),
        length_G=np.ones(2, np.int32),
        stop_G=np.zeros(2, np.int8),
        reward_G=np.zeros(2, np.float32),
    )


def submission(lease: Lease, groups: Sequence[Group], **changed: object) -> bytes:
    """The frame that hands in groups."""
    message = {
        "type": "submit",
        "lease": wire.lease_fields(lease),
        "groups": [wire.group_fields(each) for each in groups],
        "busy_s": 1.0,
        "read_s": 0.0,
    }
    return wire.encode({**message, **changed})


class StandIns:
    """Programs under a supervisor.

    Args:
        home: an empty directory: frames by name, and the process ids of each attempt.
        broker: what they lease from.
    """

    def __init__(self, home: pathlib.Path, broker: Broker):
        self.home, self.broker = home, broker
        self.said: list[str] = []
        self._has_said = threading.Event()
        self.write("lease", wire.encode({"type": "lease"}))

    def write(self, name: str, frame: bytes) -> None:
        """Puts a frame where programs find it."""
        (self.home / name).write_bytes(frame)

    def start(
        self, *programs: Sequence[str], max_restarts: int = 3, start_s: float = 1e6
    ) -> Supervisor:
        """Starts samplers: for each its statements at the first attempt, the second, and so on."""

        def start(holder: Holder) -> LocalProcess:
            lines = [f"if attempt == {i}: {does}" for i, does in enumerate(programs[holder[0]])]
            command = [sys.executable, "-S", "-c", "\n".join([_PRELUDE, *lines])]
            command.append(f"--home={self.home}")
            largest = ADMISSION.max_frame_bytes(2)
            return LocalProcess(holder, self.broker, command, os.environ, largest, start_s)

        return Supervisor(self.broker, start, len(programs), max_restarts, self._say)

    def is_alive(self, index: int, attempt: int) -> bool:
        """Whether the process of an attempt is there, be it as a zombie."""
        try:
            os.kill(int((self.home / f"pid-{index}-{attempt}").read_text()), 0)
        except ProcessLookupError:
            return False
        return True

    def has_said(self, timeout_s: float) -> bool:
        """Waits until the supervisor says something."""
        return self._has_said.wait(timeout_s)

    def _say(self, words: str) -> None:
        self.said.append(words)
        self._has_said.set()
