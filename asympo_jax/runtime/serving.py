"""A sampler that is elsewhere, as both ends see it: frames on two lines, whatever carries them.

A lease may be long in coming and a submission must not wait for it, so each has a line and, in the
learner's process, a thread of its own. A sampler that hands in what must not come in is killed.
"""

import abc
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from asympo_jax.runtime import wire
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Closed, Gone, Holder, Lease, Refused
from asympo_jax.types import Group

# Between the end of a line and the end of its sampler.
_EXIT_TIMEOUT_S = 10.0
_MAX_CAUSE = 2000  # characters
_MAX_SMALL_BYTES = 2**16  # of a frame without groups


class Line(Protocol):
    """What carries frames, as a `multiprocessing.connection.Connection` does."""

    def recv_bytes(self, maxlength: int, /) -> bytes:
        """The next frame; `EOFError` at the end, `OSError` without a number if it is too long."""
        ...

    def send_bytes(self, frame: bytes, /) -> None:
        """Sends a frame."""
        ...

    def close(self) -> None:
        """Ends it; the other end gets `EOFError`."""
        ...


class ServedLine(Line, Protocol):
    """The end of a line in the learner's process."""

    def poll(self, timeout: float, /) -> bool:
        """Whether a frame, or the end, comes within so many seconds."""
        ...


class ServedSampler(abc.ABC):
    """A sampler and the threads that serve it: see `supervisor.SamplerProcess`.

    A subclass says how it is ended, and how it has ended.

    Args:
        holder: its name at the broker.
        broker: what it leases from.
    """

    def __init__(self, holder: Holder, broker: Broker):
        """Nothing is served yet."""
        self.holder = holder
        self.num_handed_in = 0
        self._broker = broker
        self._why_killed: str | None = None
        self._ended = threading.Event()

    def _serve_lines(
        self, leases: ServedLine, submissions: ServedLine, max_frame_bytes: int, start_s: float
    ) -> None:
        """Starts to serve.

        Args:
            leases: on which it asks for leases.
            submissions: on which it hands in groups.
            max_frame_bytes: of a submission; a sampler that sends more is killed.
            start_s: seconds until it must have asked for its first lease, else it is killed.
        """
        name = f"{self.holder[0]}-{self.holder[1]}"
        self._leasing = _started(f"leases-{name}", self._serve_leases, leases, start_s)
        self._submitting = _started(
            f"submissions-{name}", self._serve, submissions, max_frame_bytes
        )

    def kill(self, why: str) -> None:
        """Ends it at once, also one that is stopped."""
        self._why_killed = self._why_killed or why
        self._kill()

    def wait(self) -> str:
        """Waits until it has ended and gives its leases back; how it ended, in words."""
        self._ended.wait()
        # An end of the run is what `stop` has a deadline for.
        words = self._exit(None if self._broker.closed else _EXIT_TIMEOUT_S)
        if words is None:
            self.kill("its pipe closed and it went on")
            words = self._exit(None)
        assert words is not None
        # What it sent before it ended still counts. A child of it that keeps a pipe open does not.
        self._submitting.join(_EXIT_TIMEOUT_S)
        self._broker.leave(self.holder)
        self._leasing.join(_EXIT_TIMEOUT_S)
        return words if self._why_killed is None else f"{words} ({self._why_killed})"

    @abc.abstractmethod
    def _kill(self) -> None:
        """Ends it."""

    @abc.abstractmethod
    def _exit(self, timeout_s: float | None) -> str | None:
        """How it ended, in words; None if it has not within so many seconds."""

    def _serve_leases(self, line: ServedLine, start_s: float) -> None:
        """Answers requests for leases; the first one must come in time."""
        if not line.poll(start_s):
            self.kill("it asked for no lease within runtime.lease_s of its start")
        self._serve(line, _MAX_SMALL_BYTES)

    def _serve(self, line: Line, max_bytes: int) -> None:
        """Answers on one line until either side ends."""
        try:
            with contextlib.closing(line):
                while True:
                    self._answer(line, wire.decode(_received(line, max_bytes)))
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

    def _answer(self, line: Line, message: dict) -> None:
        """Does what a message asks, and answers it."""
        try:
            if message["type"] == "lease":
                lease = self._broker.lease(self.holder)
                answer = {"type": "lease", "lease": wire.lease_fields(lease)}
            elif message["type"] == "submit":
                groups = wire.groups_from(message.get("groups"))
                lease = wire.lease_from(message.get("lease"))
                busy_s = wire.seconds_from(message.get("busy_s"))
                read_s = wire.seconds_from(message.get("read_s"))
                self._broker.submit(lease, groups, busy_s, self.holder, read_s)
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
            line.send_bytes(wire.encode({"type": "closed", "cause": closed.cause or ""}))
            raise
        line.send_bytes(wire.encode(answer))


def _received(line: Line, max_bytes: int) -> bytes:
    """The next frame.

    Raises:
        BadFrame: it is too long, or cut short.
        EOFError: the other end is closed.
    """
    try:
        return line.recv_bytes(max_bytes)
    except OSError as error:
        if error.errno is not None:  # a call of the system failed
            raise
        raise wire.BadFrame(f"a frame is cut short or has more than {max_bytes} bytes") from error


def _started(name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
    """A thread at work that does not keep the process alive."""
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread


class LineEnd:
    """The end of a `Line` in a sampler whose methods are called: each call brings the answer."""

    def __init__(self) -> None:
        """Nothing was sent yet."""
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def exchange(self, answer: bytes | None) -> bytes | None:
        """Takes an answer, unless there is none, and waits for the next frame; None at the end."""
        if answer is not None:
            self._answers.put(answer)
        return self._frames.get()

    def recv_bytes(self, maxlength: int, /) -> bytes:
        """The answer; the learner's process sends none that is too long."""
        return self._answers.get()

    def send_bytes(self, frame: bytes, /) -> None:
        """Sends a frame."""
        self._frames.put(frame)

    def close(self) -> None:
        """Ends it, after the frames that were sent."""
        self._frames.put(None)


class Client:
    """The broker as a sampler elsewhere sees it.

    One thread leases and one submits; neither waits for the other's answer.
    """

    def __init__(self, leases: Line, submissions: Line):
        """Takes over the lines."""
        self._leases, self._submissions = leases, submissions
        self._submitting = threading.Lock()

    def lease(self) -> Lease:
        """See `Broker.lease`."""
        answer = _call(self._leases, {"type": "lease"}, "lease")
        return wire.lease_from(answer.get("lease"))

    def submit(
        self, lease: Lease, groups: Sequence[Group], busy_s: float, *, read_s: float = 0.0
    ) -> None:
        """See `Broker.submit`."""
        message = {
            "type": "submit",
            "lease": wire.lease_fields(lease),
            "groups": [wire.group_fields(group) for group in groups],
            "busy_s": busy_s,
            "read_s": read_s,
        }
        with self._submitting:
            _call(self._submissions, message, "accepted")

    def fail(self, cause: str) -> None:
        """Tells the learner why this sampler ends; nobody if it is gone."""
        with self._submitting, contextlib.suppress(OSError):
            message = {"type": "failed", "cause": cause[:_MAX_CAUSE]}
            self._submissions.send_bytes(wire.encode(message))


def _call(line: Line, message: dict, expected: str) -> dict:
    """Sends a message and returns the answer.

    Raises:
        Closed: the run has ended, or the learner is gone.
    """
    try:
        line.send_bytes(wire.encode(message))
        answer = wire.decode(_received(line, _MAX_SMALL_BYTES))
    except (EOFError, OSError) as error:
        raise Closed("the learner is gone") from error
    if answer["type"] == "closed":
        raise Closed(answer.get("cause") or None)
    if answer["type"] != expected:
        raise wire.BadFrame(f"wanted {expected!r}, got {answer['type']!r:.80}")
    return answer
