"""Samplers as processes on this machine, each on two private pairs of pipes: nothing listens.

The learner's process keeps the broker. For each sampler it starts a program, hands it one end of
two socket pairs as inherited file descriptors, and serves the other ends in a thread each.
"""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

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
        command: program and arguments; `--index=I`, `--fd=N` and `--submit_fd=M` follow.
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
    """One sampler process and the threads that serve it; the first failure ends the run.

    A lease may be long in coming and a submission must not wait for it, so each has a pipe and a
    thread of its own.
    """

    def __init__(self, index: int, broker: Broker, command: list[str], environment: dict[str, str]):
        self._index = index
        self._broker = broker
        self._leases: dict[int, Lease] = {}  # what the sampler has to work on, by number
        (leases, leases_end), (submissions, submissions_end) = Pipe(), Pipe()
        with leases_end, submissions_end:
            fds = [leases_end.fileno(), submissions_end.fileno()]
            self._process = subprocess.Popen(
                [*command, f"--fd={fds[0]}", f"--submit_fd={fds[1]}"],
                env=environment,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C reaches the learner alone, which closes the pipes
            )
        self._threads = [
            _started(f"leases-{index}", self._serve, leases, False),
            _started(f"submissions-{index}", self._serve, submissions, True),
        ]
        self._last_thread = _started(f"sampler-{index}", self._abandon)

    def stop(self, deadline: float) -> None:
        """Waits for the process until the deadline, then kills it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._last_thread.join(max(1.0, deadline - time.monotonic()))

    def _abandon(self) -> None:
        """Gives back what the sampler had when both pipes are at their end."""
        for thread in self._threads:
            thread.join()
        for lease in self._leases.values():
            self._broker.abandon(lease)

    def _serve(self, connection: Connection, tells_end: bool) -> None:
        """Answers on one pipe until either side ends."""
        try:
            with connection:
                while True:
                    self._answer(connection, wire.decode(connection.recv_bytes()))
        except (EOFError, OSError):
            # Told by the thread whose pipe also carries the sampler's own words on its end.
            if tells_end and self._broker.closed is None:
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

    def _answer(self, connection: Connection, message: dict) -> None:
        """Does what a message asks, and answers it."""
        try:
            if message["type"] == "lease":
                lease = self._broker.lease()
                # Held before it is sent: a sampler that dies meanwhile must not take it along.
                self._leases[lease.number] = lease
                answer = {"type": "lease", "lease": wire.lease_fields(lease)}
            elif message["type"] == "submit":
                groups = wire.groups_from(message.get("groups"))
                lease = wire.lease_from(message.get("lease"))
                self._broker.submit(lease, groups, wire.seconds_from(message.get("busy_s")))
                self._leases.pop(lease.number, None)
                answer = {"type": "accepted"}
            elif message["type"] == "failed":
                raise wire.BadFrame(str(message.get("cause"))[:2000])
            else:
                raise wire.BadFrame(f"unknown message {message['type']!r:.80}")
        except Closed as closed:
            connection.send_bytes(wire.encode({"type": "closed", "cause": closed.cause or ""}))
            raise
        connection.send_bytes(wire.encode(answer))

    def _exit_words(self) -> str:
        """How the process ended, in words."""
        try:
            code = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "its pipe closed and the process alive"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _started(name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
    """A thread at work that does not keep the process alive."""
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread


class LocalClient:
    """The broker as a sampler process sees it, through two file descriptors.

    One thread leases and one submits; neither waits for the other's answer.
    """

    def __init__(self, fd: int, submit_fd: int):
        """Takes over the descriptors."""
        for each in (fd, submit_fd):
            os.set_inheritable(each, False)
        self._leases, self._submissions = Connection(fd), Connection(submit_fd)
        self._submitting = threading.Lock()

    def lease(self) -> Lease:
        """See `Broker.lease`."""
        answer = _call(self._leases, {"type": "lease"}, "lease")
        return wire.lease_from(answer.get("lease"))

    def submit(self, lease: Lease, groups: Sequence[Group], busy_s: float) -> None:
        """See `Broker.submit`."""
        fields = [wire.group_fields(group) for group in groups]
        message = {
            "type": "submit", "lease": wire.lease_fields(lease), "groups": fields, "busy_s": busy_s
        }  # fmt: skip
        with self._submitting:
            _call(self._submissions, message, "accepted")

    def fail(self, cause: str) -> None:
        """Tells the learner why this sampler ends; nobody if it is gone."""
        with self._submitting, contextlib.suppress(OSError):
            self._submissions.send_bytes(wire.encode({"type": "failed", "cause": cause}))


def _call(connection: Connection, message: dict, expected: str) -> dict:
    """Sends a message and returns the answer.

    Raises:
        Closed: the run has ended, or the learner is gone.
    """
    try:
        connection.send_bytes(wire.encode(message))
        answer = wire.decode(connection.recv_bytes())
    except (EOFError, OSError) as error:
        raise Closed("the learner is gone") from error
    if answer["type"] == "closed":
        raise Closed(answer.get("cause") or None)
    if answer["type"] != expected:
        raise wire.BadFrame(f"wanted {expected!r}, got {answer['type']!r:.80}")
    return answer
