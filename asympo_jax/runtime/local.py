"""Samplers as processes on this machine, each on a private pair of pipes: nothing listens.

The learner's process keeps the broker. For each sampler it starts a program, hands it one end of a
socket pair as an inherited file descriptor, and serves the other end in a thread.
"""

import multiprocessing.connection
import os
import subprocess
import threading
from collections.abc import Sequence

from asympo_jax.runtime import wire
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Closed, Lease
from asympo_jax.types import Group

_Connection = multiprocessing.connection.Connection


class LocalSamplers:
    """Sampler processes, served from threads of this one.

    Args:
        broker: what they lease from.
        command: program and arguments; `--fd=N` and `--index=I` are appended.
        environment: environment of the programs.
        count: number of processes.
    """

    def __init__(
        self, broker: Broker, command: Sequence[str], environment: dict[str, str], count: int
    ):
        """Starts the programs."""
        self._broker = broker
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        for index in range(count):
            self._start(index, [*command, f"--index={index}"], environment)

    def _start(self, index: int, command: list[str], environment: dict[str, str]) -> None:
        """Starts one program and the thread that serves it."""
        ours, theirs = multiprocessing.connection.Pipe()
        with theirs:
            process = subprocess.Popen(
                [*command, f"--fd={theirs.fileno()}"],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        thread = threading.Thread(
            target=self._serve, args=(index, ours, process), name=f"sampler-{index}", daemon=True
        )
        self._processes.append(process)
        self._threads.append(thread)
        thread.start()

    def stop(self, timeout_s: float) -> None:
        """Waits for the processes after the broker was closed; kills those that are too slow."""
        for process in self._processes:
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for thread in self._threads:
            thread.join(timeout_s)

    def _serve(self, index: int, connection: _Connection, process: subprocess.Popen[bytes]) -> None:
        """Answers one sampler until either side ends; the first failure ends the run."""
        lease: Lease | None = None
        try:
            with connection:
                while True:
                    message = wire.decode(connection.recv_bytes())
                    lease = self._answer(connection, message, lease)
        except (EOFError, OSError):
            if self._broker.closed is None:
                cause = f"sampler {index} ended with {_exit_words(process.wait())}"
                self._broker.close(f"{cause}; what it printed above says why")
        except Closed:
            pass
        except Exception as error:
            self._broker.close(f"sampler {index}: {error}")
        finally:
            if lease is not None:
                self._broker.abandon(lease)

    def _answer(self, connection: _Connection, message: dict, lease: Lease | None) -> Lease | None:
        """Does what a message asks; returns the lease that the sampler then holds."""
        try:
            if message["type"] == "lease":
                lease = self._broker.lease()
                reply = {"type": "lease", "lease": wire.lease_fields(lease)}
            elif message["type"] == "submit":
                groups = wire.groups_from(message.get("groups"))
                given = wire.lease_from(message.get("lease"))
                self._broker.submit(given, groups, float(message.get("busy_s", 0.0)))
                lease, reply = None, {"type": "accepted"}
            elif message["type"] == "failed":
                raise wire.BadFrame(str(message.get("cause"))[:2000])
            else:
                raise wire.BadFrame(f"unknown message {message['type']!r:.80}")
        except Closed as closed:
            connection.send_bytes(wire.encode({"type": "closed", "cause": closed.cause or ""}))
            raise
        connection.send_bytes(wire.encode(reply))
        return lease


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


def _exit_words(code: int) -> str:
    """An exit code in words."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
