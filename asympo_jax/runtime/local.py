"""Samplers as processes on this machine, each on two private pairs of pipes: nothing listens.

The learner's process keeps the broker. For each sampler it starts a program, hands it one end of
two socket pairs as inherited file descriptors, and serves the other ends in a thread each. A
program that hands in what must not come in is killed.
"""

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

from asympo_jax.runtime import wire
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Closed, Gone, Holder, Lease, Refused
from asympo_jax.types import Group

# Between the end of a pipe and the end of its process.
_EXIT_TIMEOUT_S = 10.0
_MAX_CAUSE = 2000  # characters
_MAX_SMALL_BYTES = 2**16  # of a frame without groups


class LocalProcess:
    """One process of a sampler and the threads that serve it: see `supervisor.SamplerProcess`.

    A lease may be long in coming and a submission must not wait for it, so each has a pipe and a
    thread of its own.

    Args:
        holder: its name at the broker.
        broker: what it leases from.
        command: program and arguments; `--index=I`, `--fd=N` and `--submit_fd=M` follow.
        environment: environment of the program.
        max_frame_bytes: of a submission; a process that sends more is killed.
        start_s: seconds until it must have asked for its first lease, else it is killed.
    """

    def __init__(
        self,
        holder: Holder,
        broker: Broker,
        command: Sequence[str],
        environment: Mapping[str, str],
        max_frame_bytes: int,
        start_s: float,
    ):
        """Starts the program."""
        self.holder = holder
        self.num_handed_in = 0
        self._broker = broker
        self._why_killed: str | None = None
        self._ended = threading.Event()
        (leases, leases_end), (submissions, submissions_end) = Pipe(), Pipe()
        with leases_end, submissions_end:
            fds = [leases_end.fileno(), submissions_end.fileno()]
            self._process = subprocess.Popen(
                [*command, f"--index={holder[0]}", f"--fd={fds[0]}", f"--submit_fd={fds[1]}"],
                env=dict(environment),
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C reaches the learner alone, which closes the pipes
            )
        name = f"{holder[0]}-{holder[1]}"
        self._leasing = _started(f"leases-{name}", self._serve_leases, leases, start_s)
        self._submitting = _started(
            f"submissions-{name}", self._serve, submissions, max_frame_bytes
        )

    def kill(self, why: str) -> None:
        """Ends the process at once, also one that is stopped."""
        self._why_killed = self._why_killed or why
        self._process.kill()

    def wait(self) -> str:
        """Waits until the process has ended and gives its leases back; how it ended, in words."""
        self._ended.wait()
        try:
            # An end of the run is what `stop` has a deadline for.
            code = self._process.wait(None if self._broker.closed else _EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill("its pipe closed and it went on")
            code = self._process.wait()
        # What it sent before it ended still counts. A child of it that keeps a pipe open does not.
        self._submitting.join(_EXIT_TIMEOUT_S)
        self._broker.leave(self.holder)
        self._leasing.join(_EXIT_TIMEOUT_S)
        words = f"signal {-code}" if code < 0 else f"exit code {code}"
        return words if self._why_killed is None else f"{words} ({self._why_killed})"

    def _serve_leases(self, connection: Connection, start_s: float) -> None:
        """Answers requests for leases; the first one must come in time."""
        if not connection.poll(start_s):
            self.kill("it asked for no lease within runtime.lease_s of its start")
        self._serve(connection, _MAX_SMALL_BYTES)

    def _serve(self, connection: Connection, max_bytes: int) -> None:
        """Answers on one pipe until either side ends."""
        try:
            with connection:
                while True:
                    self._answer(connection, wire.decode(_received(connection, max_bytes)))
        except wire.BadFrame as refused:
            self._broker.count(f"refused/{refused.reason}")
            self.kill(str(refused))
        except Refused as refused:  # counted by the broker
            self.kill(str(refused))
        except (EOFError, OSError, Gone, Closed):
            pass
        except Exception as error:
            # Not the sampler's fault; the thread's own traceback says where.
            self._broker.close(f"serving sampler {self.holder[0]}: {type(error).__name__}: {error}")
            raise
        finally:
            self._ended.set()

    def _answer(self, connection: Connection, message: dict) -> None:
        """Does what a message asks, and answers it."""
        try:
            if message["type"] == "lease":
                lease = self._broker.lease(self.holder)
                answer = {"type": "lease", "lease": wire.lease_fields(lease)}
            elif message["type"] == "submit":
                groups = wire.groups_from(message.get("groups"))
                lease = wire.lease_from(message.get("lease"))
                busy_s = wire.seconds_from(message.get("busy_s"))
                self._broker.submit(lease, groups, busy_s, self.holder)
                self.num_handed_in += 1
                answer = {"type": "accepted"}
            elif message["type"] == "failed":
                # What it says it would find again; but not one that was to end anyway.
                if self._why_killed is None:
                    cause = str(message.get("cause"))[:_MAX_CAUSE]
                    self._broker.close(f"sampler {self.holder[0]}: {cause}")
                return
            else:
                raise wire.BadFrame(f"unknown message {message['type']!r:.80}")
        except Closed as closed:
            connection.send_bytes(wire.encode({"type": "closed", "cause": closed.cause or ""}))
            raise
        connection.send_bytes(wire.encode(answer))


def _received(connection: Connection, max_bytes: int) -> bytes:
    """The next frame.

    Raises:
        BadFrame: it is too long, or cut short.
        EOFError: the other end is closed.
    """
    try:
        return connection.recv_bytes(max_bytes)
    except OSError as error:
        if error.errno is not None:  # a call of the system failed
            raise
        raise wire.BadFrame(f"a frame is cut short or has more than {max_bytes} bytes") from error


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
            message = {"type": "failed", "cause": cause[:_MAX_CAUSE]}
            self._submissions.send_bytes(wire.encode(message))


def _call(connection: Connection, message: dict, expected: str) -> dict:
    """Sends a message and returns the answer.

    Raises:
        Closed: the run has ended, or the learner is gone.
    """
    try:
        connection.send_bytes(wire.encode(message))
        answer = wire.decode(_received(connection, _MAX_SMALL_BYTES))
    except (EOFError, OSError) as error:
        raise Closed("the learner is gone") from error
    if answer["type"] == "closed":
        raise Closed(answer.get("cause") or None)
    if answer["type"] != expected:
        raise wire.BadFrame(f"wanted {expected!r}, got {answer['type']!r:.80}")
    return answer
