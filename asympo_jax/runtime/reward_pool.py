"""A pool of processes that grade, each under a deadline that nothing in it can outlast.

Decisions. A grader is code that may hang, ignore signals, start processes or die, and what it reads
was written by a model. So it runs in a process of its own, answers in lines of JSON, and is killed
at the deadline with all that it started (`reward_guard`); a fresh process takes its place. What
could not be graded is counted by kind, never silently a 0. One thread drives all processes.
"""

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
import weakref
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from asympo_jax.tasks import RewardError
from asympo_jax.types import GradingFailure, Prompt

Call = Literal["reward", "correct"]

_START_S = 120.0  # imports, and a task that reads its data
_END_S = 10.0  # for a guard to kill what a grader started
_MANY_FAILURES = 16
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


@dataclasses.dataclass(frozen=True)
class RewardSource:
    """What a process of the pool makes its rewards of.

    Attributes:
        task_name: name or import path of a task.
        task_options: of its constructor, plain data.
        function: import path of a reward instead of the task's; None for the task's.
        isolate: whether each response is graded in a copy of a process that has graded nothing.
    """

    task_name: str
    task_options: Mapping[str, Any]
    function: str | None = None
    isolate: bool = False


class RewardPool:
    """Processes that grade responses; they start with the first one.

    Args:
        source: what they grade with.
        num_processes: at work at once, at least 1.
        deadline_s: seconds that one grading may take.
        max_share: of many gradings, those that may fail.

    Attributes:
        counts: gradings by what became of them.
    """

    def __init__(self, source: RewardSource, num_processes: int, deadline_s: float, max_share=0.5):
        """Starts nothing yet."""
        setup = {**dataclasses.asdict(source), "deadline_s": deadline_s}
        self._workers = [_Worker(_line(setup), deadline_s) for _ in range(num_processes)]
        self._deadline_s, self._max_share = deadline_s, max_share
        self.counts: Counter[GradingFailure] = Counter()
        # Also where nobody calls `close`: nothing is left behind when the pool or the program ends.
        self._finalizer = weakref.finalize(self, _stop, self._workers)

    @property
    def num_failed(self) -> int:
        """Gradings that failed so far, of whatever kind."""
        return self.counts.total() - self.counts[GradingFailure.NONE]

    def close(self) -> None:
        """Ends the processes; the next grading would start them again."""
        _stop(self._workers)

    def grade(self, call: Call, pairs: Sequence[tuple[Prompt, str]]) -> list[Graded]:
        """What each response is worth.

        Args:
            call: "reward", or "correct" for 1 and 0.
            pairs: prompts and responses.

        Raises:
            RewardError: no process can be started, or most responses so far could not be graded.
        """
        graded: dict[int, Graded] = {}
        waiting = deque(enumerate(pairs))
        try:
            while len(graded) < len(pairs):
                for worker in self._workers:
                    if worker.job is None and waiting:
                        job, (prompt, text) = waiting.popleft()
                        fields = dataclasses.asdict(prompt)
                        worker.ask(job, _line({"call": call, "prompt": fields, "text": text}))
                for worker in _active([w for w in self._workers if w.job is not None]):
                    job = worker.job
                    found = worker.advance()
                    if found is not None and job is not None:
                        graded[job] = found
                        self.counts[found.failure] += 1
        except BaseException:
            # A late answer to this call must not become the answer to the next.
            _stop(self._workers)
            raise
        self._refuse_useless([text for _, text in pairs], [graded[j] for j in range(len(pairs))])
        return [graded[job] for job in range(len(pairs))]

    def _refuse_useless(self, texts: Sequence[str], graded: Sequence[Graded]) -> None:
        """Raises once too many gradings failed: nothing is learnt from such a run."""
        counts, total, num_failed = self.counts, self.counts.total(), self.num_failed
        pairs = zip(texts, graded, strict=True)
        examples = [one.words or repr(text[:200]) for text, one in pairs if one.failure]
        few = num_failed <= max(_MANY_FAILURES - 1, self._max_share * total)
        if few or not examples:
            return
        raise RewardError(
            f"{num_failed} of {total} gradings failed: {counts[GradingFailure.TIMEOUT]} took "
            f"longer than reward.deadline_s={self._deadline_s:g}, in "
            f"{counts[GradingFailure.DEATH]} the process died, {counts[GradingFailure.ERROR]} "
            f"raised or gave no finite number; such as {examples[-1]}"
        )


class _Worker:
    """One process, started when it is asked, and started anew after it was killed."""

    def __init__(self, setup: bytes, deadline_s: float):
        self.job: int | None = None
        self._setup = setup
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._request = b""
        self._outgoing = memoryview(b"")
        self._incoming = bytearray()
        self._deadline = 0.0

    def ask(self, job: int, request: bytes) -> None:
        """Gives it a request, to be sent once it is ready."""
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
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            process_group=0,
        )
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
            self._is_ready = True
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

    def _fail(self, failure: GradingFailure) -> Graded:
        """Ends the process; its next job starts another."""
        assert self._process is not None
        if not self._is_ready:
            how = f"was not ready after {_START_S:g} s"
            if failure != GradingFailure.TIMEOUT:
                how = "ended before it was ready; see what it printed"
            raise RewardError(f"a grading process {how}")
        self.stop()
        return Graded(0.0, failure)

    def _pipes(self) -> tuple[int, int]:
        """Descriptors to write to and to read from."""
        process = self._process
        assert process and process.stdin and process.stdout
        return process.stdin.fileno(), process.stdout.fileno()


def _active(workers: list[_Worker]) -> list[_Worker]:
    """The workers, once one of them can go on or its time is up."""
    with selectors.DefaultSelector() as selector:
        selector.select(max(0.0, min(worker.watch(selector) for worker in workers)))
    return workers


def _line(message: Mapping[str, Any]) -> bytes:
    """A message as a line; half a character of a text is escaped."""
    return json.dumps(message).encode() + b"\n"


def _stop(workers: Sequence[_Worker]) -> None:
    """Ends all processes."""
    for worker in workers:
        worker.stop()
