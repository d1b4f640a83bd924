"""A process that grades, as its pool sees it: asked by lines of JSON, killed at its deadlines."""

import contextlib
import dataclasses
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time

from asympo_jax.tasks import RewardError
from asympo_jax.types import GradingFailure

_START_S = 120.0  # imports, and a task that reads its data
_MAX_FAILED_STARTS = 2  # in a row that are tried again
_END_S = 10.0  # for a guard to kill what a grader started
_MAX_ANSWER_BYTES = 2**16
_GRADER = [sys.executable, "-m", "asympo_jax.runtime.reward_worker"]
_COMMAND = [sys.executable, "-m", "asympo_jax.runtime.reward_guard", *_GRADER]


@dataclasses.dataclass(frozen=True)
class Graded:
    """What became of one response.

    Attributes:
        value: the reward, or 1 and 0 for right and wrong; 0 where there was a failure.
        failure: a timeout if the deadline came first, a death if the process ended or answered
            nonsense, an error if the reward raised or is not a finite number.
        words: on the error.
    """

    value: float
    failure: GradingFailure = GradingFailure.NONE
    words: str = ""


class RewardProcess:
    """One process, started when it is asked, and started anew after it was killed.

    Args:
        setup: the line that says what it makes its rewards of.
        deadline_s: seconds that one grading may take.

    Attributes:
        job: number of the response that it is asked for; None while it has nothing to do.
    """

    def __init__(self, setup: bytes, deadline_s: float):
        """Starts nothing yet."""
        self.job: int | None = None
        self._setup = setup
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._failed_starts = 0  # in a row
        self._request = b""
        self._outgoing = memoryview(b"")
        self._incoming = bytearray()
        self._deadline = 0.0

    def ask(self, job: int, request: bytes) -> None:
        """Gives it a request, to be sent once it is ready.

        Raises:
            RewardError: the process cannot be started.
        """
        self.job, self._request = job, request
        if self._process is None:
            self._start()
        else:
            self._send(request, self._deadline_s)

    def watch(self, selector: selectors.BaseSelector) -> float:
        """Registers the pipes that it waits for and returns the seconds that it has left."""
        stdin, stdout = self._pipes()
        selector.register(stdout, selectors.EVENT_READ, self)
        if self._outgoing:
            selector.register(stdin, selectors.EVENT_WRITE, self)
        return self._deadline - time.monotonic()

    def advance(self) -> Graded | None:
        """Writes and reads what it can; the result where the job is over, whatever its end.

        Raises:
            RewardError: the process cannot be started.
        """
        stdin, stdout = self._pipes()
        try:
            if self._outgoing:
                with contextlib.suppress(BlockingIOError):
                    self._outgoing = self._outgoing[os.write(stdin, self._outgoing) :]
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(stdout, _MAX_ANSWER_BYTES)
                if not chunk:
                    return self._fail(GradingFailure.DEATH)
                self._incoming += chunk
        except BrokenPipeError:
            return self._fail(GradingFailure.DEATH)
        if b"\n" in self._incoming:
            return self._take_line()
        if len(self._incoming) > _MAX_ANSWER_BYTES:
            return self._fail(GradingFailure.DEATH)
        return self._fail(GradingFailure.TIMEOUT) if time.monotonic() > self._deadline else None

    def stop(self) -> None:
        """Kills the process and all that it started, and forgets the job."""
        self.job = None
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        if process.returncode != 0:  # The guard itself was stopped or killed.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            pipe.close()

    def _start(self) -> None:
        """Starts the process and sends what it makes its rewards of."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        # A grader that uses jax must not take memory of the sampler's accelerator.
        environment["JAX_PLATFORMS"] = "cpu"
        try:
            self._process = subprocess.Popen(
                _COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=environment,
                process_group=0,
            )
        except OSError as error:
            self._start_again(f"could not be started ({error})")
            return
        for pipe in self._pipes():
            os.set_blocking(pipe, False)
        self._is_ready = False
        self._send(self._setup, _START_S)

    def _send(self, line: bytes, seconds: float) -> None:
        """Begins to send a line, whose answer must come within that time."""
        self._outgoing, self._incoming = memoryview(line), bytearray()
        self._deadline = time.monotonic() + seconds

    def _take_line(self) -> Graded | None:
        """Reads an answer; the first one only says that the process is ready."""
        line, _, rest = bytes(self._incoming).partition(b"\n")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if rest or self._outgoing or not isinstance(answer, dict):
            return self._fail(GradingFailure.DEATH)
        if not self._is_ready:
            self._is_ready, self._failed_starts = True, 0
            self._send(self._request, self._deadline_s)
            return None
        match answer:
            case {"timeout": True}:
                graded = Graded(0.0, GradingFailure.TIMEOUT)
            case {"error": str(words)}:
                graded = Graded(0.0, GradingFailure.ERROR, words)
            case {"value": float(value)} if math.isfinite(value):
                graded = Graded(value)
            case _:
                return self._fail(GradingFailure.DEATH)
        self.job = None
        return graded

    def _start_again(self, how: str) -> None:
        """Starts the process once more for the same request, after a start that failed.

        Raises:
            RewardError: too often in a row.
        """
        self._failed_starts += 1
        if self._failed_starts > _MAX_FAILED_STARTS:
            raise RewardError(f"a grading process {how}, {self._failed_starts} times in a row")
        job = self.job
        self.stop()
        self.job = job
        self._start()

    def _fail(self, failure: GradingFailure) -> Graded | None:
        """Ends the process, its next job starts another; nothing where that was its start."""
        if self._is_ready:
            self.stop()
            return Graded(0.0, failure)
        how = f"was not ready after {_START_S:g} s"
        if failure != GradingFailure.TIMEOUT:
            how = "ended before it was ready; see what it printed"
        self._start_again(how)
        return None

    def _pipes(self) -> tuple[int, int]:
        """Descriptors to write to and to read from."""
        process = self._process
        assert process and process.stdin and process.stdout
        return process.stdin.fileno(), process.stdout.fileno()
