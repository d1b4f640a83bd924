"""Samplers as processes on this machine, each on a private pair of pipes: nothing listens.

The learner's process keeps the broker. For each sampler it starts a program, hands it one end of a
socket pair as an inherited file descriptor, and serves the other end in a thread.
"""

import multiprocessing.connection
import os
import subprocess
import threading
import time
from collections.abc import Sequence

from asympo_jax.runtime import wire
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Closed, Lease, Refused
from asympo_jax.types import Group

# Between the end of a pipe and the end of its process.
_EXIT_TIMEOUT_S = 10.0


class LocalSamplers:
    """Sampler processes, served from threads of this one.

    Args:
        broker: what they lease from.
        command: program and arguments; `--index=I` and `--fd=N` are appended.
        environment: environment of the programs.
        count: number of processes.
    """

    def __init__(
        self, broker: Broker, command: Sequence[str], environment: dict[str, str], count: int
    ):
        """Starts the programs."""
        self._sessions = [
            _Session(index, broker, [*command, f"--index={index}"], environment)
            for index in range(count)
        ]

    def stop(self, timeout_s: float) -> None:
        """Waits for the processes after the broker was closed; kills those that are too slow.

        Args:
            timeout_s: for all of them together.
        """
        deadline = time.monotonic() + timeout_s
        for session in self._sessions:
            session.stop(deadline)


class _Session:
    """One sampler process and the thread that serves it; the first failure ends the run."""

    def __init__(self, index: int, broker: Broker, command: list[str], environment: dict[str, str]):
        self._index = index
        self._broker = broker
        self._lease: Lease | None = None  # what the sampler has to work on
        self._connection, theirs = multiprocessing.connection.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [*command, f"--fd={theirs.fileno()}"],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C reaches the learner alone, which closes the pipe
            )
        self._thread = threading.Thread(target=self._serve, name=f"sampler-{index}", daemon=True)
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Waits for the process until the deadline, then kills it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(max(1.0, deadline - time.monotonic()))

    def _serve(self) -> None:
        """Answers until either side ends."""
        try:
            with self._connection as connection:
                while True:
                    self._answer(wire.decode(connection.recv_bytes()))
        except (EOFError, OSError):
            if self._broker.closed is None:
                self._broker.close(
                    f"sampler {self._index} ended with {self._exit_words()}; what it printed above "
                    "may say why"
                )
        except Closed:
            pass
        except (wire.BadFrame, Refused) as refused:
            self._broker.close(f"sampler {self._index}: {refused}")
        except Exception as error:
            # Not the sampler's fault; the thread's own traceback says where.
            self._broker.close(f"serving sampler {self._index}: {type(error).__name__}: {error}")
            raise
        finally:
            if self._lease is not None:
                self._broker.abandon(self._lease)

    def _answer(self, message: dict) -> None:
        """Does what a message asks, and answers it."""
        try:
            if message["type"] == "lease":
                # Held before it is sent: a sampler that dies meanwhile must not take it along.
                self._lease = self._broker.lease()
                answer = {"type": "lease", "lease": wire.lease_fields(self._lease)}
            elif message["type"] == "submit":
                groups = wire.groups_from(message.get("groups"))
                lease = wire.lease_from(message.get("lease"))
                self._broker.submit(lease, groups, wire.seconds_from(message.get("busy_s")))
                self._lease = None
                answer = {"type": "accepted"}
            elif message["type"] == "failed":
                raise wire.BadFrame(str(message.get("cause"))[:2000])
            else:
                raise wire.BadFrame(f"unknown message {message['type']!r:.80}")
        except Closed as closed:
            self._send({"type": "closed", "cause": closed.cause or ""})
            raise
        self._send(answer)

    def _send(self, message: dict) -> None:
        """One frame."""
        self._connection.send_bytes(wire.encode(message))

    def _exit_words(self) -> str:
        """How the process ended, in words."""
        try:
            code = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "its pipe closed and the process alive"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class LocalClient:
    """The broker as a sampler process sees it, through its file descriptor."""

    def __init__(self, fd: int):
        """Takes over the descriptor."""
        os.set_inheritable(fd, False)
        self._connection = multiprocessing.connection.Connection(fd)

    def lease(self) -> Lease:
        """See `Broker.lease`."""
        return wire.lease_from(self._call({"type": "lease"}, "lease").get("lease"))

    def submit(self, lease: Lease, groups: Sequence[Group], busy_s: float) -> None:
        """See `Broker.submit`."""
        fields = [wire.group_fields(group) for group in groups]
        message = {
            "type": "submit", "lease": wire.lease_fields(lease), "groups": fields, "busy_s": busy_s
        }  # fmt: skip
        self._call(message, "accepted")

    def fail(self, cause: str) -> None:
        """Tells the learner why this sampler ends."""
        self._connection.send_bytes(wire.encode({"type": "failed", "cause": cause}))

    def _call(self, message: dict, expected: str) -> dict:
        """Sends a message and returns the answer.

        Raises:
            Closed: the run has ended, or the learner is gone.
        """
        try:
            self._connection.send_bytes(wire.encode(message))
            answer = wire.decode(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise Closed("the learner is gone") from error
        if answer["type"] == "closed":
            raise Closed(answer.get("cause") or None)
        if answer["type"] != expected:
            raise wire.BadFrame(f"wanted {expected!r}, got {answer['type']!r:.80}")
        return answer
