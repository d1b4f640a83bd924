"""The process that evaluates snapshots, and the learner's end of its pipe."""

import contextlib
import math
import multiprocessing.connection
import os
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeGuard

from asympo_jax.runtime import wire
from asympo_jax.runtime.evaluations import (
    Evaluate,
    Evaluation,
    Evaluations,
    EvaluatorEnded,
    EvaluatorLost,
)

_EXIT_TIMEOUT_S = 10.0  # between the end of a pipe and the end of its process
_STOP_S = 2.0
_MAX_RESTARTS = 3  # without an evaluation that came in
_MAX_BYTES = 2**16  # of an answer


class EvaluatorProcess(Evaluations):
    """A program that evaluates snapshots, on a private pair of pipes.

    One that ended, or that hangs, is started anew and asked again for what is outstanding: the
    snapshots are still there. That is done a few times without any evaluation. One that says why it
    cannot evaluate is not started anew.

    Args:
        command: program and arguments; `--fd=N` is appended.
        environment: of the program.
        deadline_s: seconds without an evaluation that was asked for after which it hangs.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], deadline_s: float):
        """Starts the program."""
        self._command, self._environment = list(command), dict(environment)
        self._deadline_s = deadline_s
        self._outstanding: dict[int, bool] = {}  # version -> whether greedily
        self._restarts_left = _MAX_RESTARTS
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def request(self, version: int, params: Any, greedily: bool) -> None:
        """See `Evaluations`."""
        if not self._outstanding:
            self._since = time.monotonic()
        self._outstanding[version] = greedily
        self._send(version, greedily)

    def finished(self, timeout_s: float = 0.0) -> list[Evaluation]:
        """See `Evaluations`."""
        found = []
        try:
            while self._outstanding and self._connection.poll(0.0 if found else timeout_s):
                message = wire.decode(self._connection.recv_bytes(_MAX_BYTES))
                found.append(self._taken(message))
        except (EOFError, OSError):  # also of a message that is too long
            self._restart(self._end_words())
        except wire.BadFrame as refused:
            raise EvaluatorEnded(f"the evaluator: {refused}") from refused
        if self._outstanding and time.monotonic() - self._since > self._deadline_s:
            self._restart(f"no evaluation came in within eval.deadline_s={self._deadline_s:g}")
        return found

    def outstanding(self) -> Collection[int]:
        """See `Evaluations`."""
        return tuple(self._outstanding)

    def _start(self) -> None:
        """Starts the program and asks for what is outstanding."""
        self._since = time.monotonic()
        self._connection, theirs = multiprocessing.connection.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, f"--fd={theirs.fileno()}"],
                env=self._environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C reaches the learner alone, which closes the pipe
            )
        for version, greedily in self._outstanding.items():
            self._send(version, greedily)

    def _send(self, version: int, greedily: bool) -> None:
        """Asks; where the program is gone, `finished` is who finds out."""
        message = {"type": "evaluate", "version": version, "greedily": greedily}
        with contextlib.suppress(OSError):
            self._connection.send_bytes(wire.encode(message))

    def _restart(self, words: str) -> None:
        """Starts the program anew.

        Raises:
            EvaluatorLost: too often without an evaluation.
        """
        self.stop()
        if not self._restarts_left:
            versions = self.outstanding()
            self._outstanding, self._restarts_left = {}, _MAX_RESTARTS
            raise EvaluatorLost(words, versions)
        self._restarts_left -= 1
        with contextlib.suppress(OSError):  # no process: its pipe is closed, which is found next
            self._start()

    def stop(self) -> None:
        """Ends the program; what it is at work on is not waited for."""
        self._connection.close()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _taken(self, message: dict[str, Any]) -> Evaluation:
        """The evaluation in a message."""
        if message["type"] == "failed":
            raise wire.BadFrame(str(message.get("cause"))[:2000])
        version, metrics = message.get("version"), message.get("metrics")
        if (
            type(version) is not int
            or version not in self._outstanding
            or not _are_metrics(metrics)
        ):
            raise wire.BadFrame(f"sent no evaluation that was asked for: {message!r:.200}")
        del self._outstanding[version]
        self._since, self._restarts_left = time.monotonic(), _MAX_RESTARTS
        return Evaluation(version, metrics)

    def _end_words(self) -> str:
        """How the process ended, in words."""
        if self._process is None:
            return "the evaluator could not be started"
        try:
            code = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "the evaluator closed its pipe and is alive"
        words = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the evaluator ended with {words}; what it printed above may say why"


class EvaluatorLoop:
    """The evaluating process at work on its pipe.

    Args:
        fd: file descriptor of the pipe.
    """

    def __init__(self, fd: int):
        """Takes over the descriptor."""
        os.set_inheritable(fd, False)
        self._connection = multiprocessing.connection.Connection(fd)

    def run(self, evaluate: Evaluate, read_policy: Callable[[int], Any]) -> None:
        """Evaluates what it is asked for until the learner closes the pipe.

        Args:
            evaluate: (parameters, whether greedily, too) -> metrics.
            read_policy: version -> parameters.
        """
        while True:
            try:
                request = wire.decode(self._connection.recv_bytes())
            except (EOFError, OSError):
                return
            start = time.monotonic()
            metrics = evaluate(read_policy(request["version"]), request["greedily"])
            metrics["time/evaluation_s"] = time.monotonic() - start
            answer = {"type": "evaluated", "version": request["version"], "metrics": metrics}
            try:
                self._connection.send_bytes(wire.encode(answer))
            except OSError:
                return

    def fail(self, cause: str) -> None:
        """Tells the learner why this process ends."""
        self._connection.send_bytes(wire.encode({"type": "failed", "cause": cause}))


def _are_metrics(data: Any) -> TypeGuard[dict[str, float]]:
    """Whether this is a mapping of names to numbers."""
    return isinstance(data, dict) and all(
        isinstance(name, str) and isinstance(value, float) and not math.isinf(value)
        for name, value in data.items()
    )
