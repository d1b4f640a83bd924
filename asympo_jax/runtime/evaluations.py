"""Evaluations while training goes on: asked for by version, written down when they come in.

In a process of its own an evaluation reads the published snapshot of its version, which is kept
until then, and the learner never waits for it. Where there is no such process, the learner
evaluates at once.
"""

import contextlib
import dataclasses
import math
import multiprocessing.connection
import os
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

from asympo_jax.runtime import wire
from asympo_jax.runtime.metrics import MetricsWriter
from asympo_jax.runtime.snapshots import SnapshotStore

# (Parameters, whether greedily, too) -> metrics.
Evaluate = Callable[[Any, bool], dict[str, float]]

_EXIT_TIMEOUT_S = 10.0  # between the end of a pipe and the end of its process
_STOP_S = 2.0
_MAX_RESTARTS = 3
_LOOK_S = 0.5  # between looks whether the run is to end while nothing but evaluations is left


class EvaluatorEnded(Exception):
    """The process that evaluates ended too often, could not evaluate, or takes too long."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        version: of the parameters, which is the update that it belongs to.
        metrics: name -> value.
    """

    version: int
    metrics: dict[str, float]


class Evaluations(Protocol):
    """Where evaluations are asked for."""

    def request(self, version: int, params: Any, greedily: bool) -> None:
        """Asks for the evaluation of a version that was published.

        Args:
            version: of the parameters.
            params: the parameters, for whoever evaluates here and now.
            greedily: whether greedy responses are wanted, too.
        """
        ...

    def finished(self, timeout_s: float = 0.0) -> list[Evaluation]:
        """Those that came in since the last call; waits for the first one if there is none.

        Raises:
            EvaluatorEnded: there will be none.
        """
        ...

    def outstanding(self) -> Collection[int]:
        """Versions asked for, whose evaluations are not finished: their snapshots are needed."""
        ...


class EvaluationsHere(Evaluations):
    """Evaluates in this process, by `evaluate`, while the learner waits."""

    def __init__(self, evaluate: Evaluate):
        self._evaluate = evaluate
        self._finished: list[Evaluation] = []

    def request(self, version: int, params: Any, greedily: bool) -> None:
        """See `Evaluations`."""
        self._finished.append(Evaluation(version, self._evaluate(params, greedily)))

    def finished(self, timeout_s: float = 0.0) -> list[Evaluation]:
        """See `Evaluations`."""
        finished, self._finished = self._finished, []
        return finished

    def outstanding(self) -> Collection[int]:
        """See `Evaluations`."""
        return ()


class EvaluatorProcess(Evaluations):
    """A program that evaluates snapshots, on a private pair of pipes.

    One that was killed is started anew, a few times, and asked again for what is outstanding: the
    snapshots are still there. One that says why it cannot evaluate is not.

    Args:
        command: program and arguments; `--fd=N` is appended.
        environment: of the program.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]):
        """Starts the program."""
        self._command, self._environment = list(command), dict(environment)
        self._outstanding: dict[int, bool] = {}  # version -> whether greedily
        self._restarts_left = _MAX_RESTARTS
        self._start()

    def request(self, version: int, params: Any, greedily: bool) -> None:
        """See `Evaluations`."""
        self._outstanding[version] = greedily
        self._send(version, greedily)

    def finished(self, timeout_s: float = 0.0) -> list[Evaluation]:
        """See `Evaluations`."""
        found = []
        try:
            while self._connection.poll(0.0 if found else timeout_s):
                found.append(self._taken(wire.decode(self._connection.recv_bytes())))
        except (EOFError, OSError):
            self._restart()
        except wire.BadFrame as refused:
            raise EvaluatorEnded(f"the evaluator: {refused}") from refused
        return found

    def outstanding(self) -> Collection[int]:
        """See `Evaluations`."""
        return tuple(self._outstanding)

    def _start(self) -> None:
        """Starts the program and asks for what is outstanding."""
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

    def _restart(self) -> None:
        """Starts the program anew.

        Raises:
            EvaluatorEnded: too often.
        """
        words = self._end_words()
        self.stop()
        if not self._restarts_left:
            raise EvaluatorEnded(words)
        self._restarts_left -= 1
        self._start()

    def stop(self) -> None:
        """Ends the program; what it is at work on is not waited for."""
        self._connection.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _taken(self, message: dict[str, Any]) -> Evaluation:
        """The evaluation in a message."""
        if message["type"] == "failed":
            raise wire.BadFrame(str(message.get("cause"))[:2000])
        version, metrics = message.get("version"), message.get("metrics")
        if version not in self._outstanding or not _are_metrics(metrics):
            raise wire.BadFrame(f"sent no evaluation that was asked for: {message!r:.200}")
        del self._outstanding[version]
        return Evaluation(version, metrics)

    def _end_words(self) -> str:
        """How the process ended, in words."""
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

    def run(self, evaluate: Evaluate, store: SnapshotStore) -> None:
        """Evaluates what it is asked for until the learner closes the pipe."""
        while True:
            try:
                request = wire.decode(self._connection.recv_bytes())
            except (EOFError, OSError):
                return
            start = time.monotonic()
            metrics = evaluate(store.read_policy(request["version"]), request["greedily"])
            metrics["time/evaluation_s"] = time.monotonic() - start
            answer = {"type": "evaluated", "version": request["version"], "metrics": metrics}
            try:
                self._connection.send_bytes(wire.encode(answer))
            except OSError:
                return

    def fail(self, cause: str) -> None:
        """Tells the learner why this process ends."""
        self._connection.send_bytes(wire.encode({"type": "failed", "cause": cause}))


@dataclasses.dataclass(frozen=True)
class EvaluationLog:
    """Writes down evaluations as they come in.

    Attributes:
        evaluations: where they are asked for.
        writer: metrics.
        show: called with version and metrics, for people.
        max_waiting: versions that may be outstanding, whose snapshots are kept; more are left out.
        deadline_s: seconds without any evaluation after which the end of the run gives up waiting.
        found: version -> metrics of all that came in.
    """

    evaluations: Evaluations
    writer: MetricsWriter
    show: Callable[[int, Mapping[str, float]], None]
    max_waiting: int
    deadline_s: float
    found: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)

    def request(self, version: int, params: Any) -> bool:
        """Asks for an evaluation, without waiting; False if too many are outstanding."""
        if len(self.evaluations.outstanding()) >= self.max_waiting:
            return False
        self.evaluations.request(version, params, version == 0)
        return True

    def collect(self, timeout_s: float = 0.0) -> bool:
        """Writes down what has come in; whether anything has.

        Raises:
            EvaluatorEnded: there will be no more.
        """
        finished = self.evaluations.finished(timeout_s)
        for one in finished:
            self.found[one.version] = one.metrics
            self.writer.write(one.version, one.metrics)
            self.show(one.version, one.metrics)
        return bool(finished)

    def last(self, version: int, params: Any, check: Callable[[], None]) -> dict[str, float]:
        """Sampled and greedy metrics of the last version, once all others have come in, too.

        Args:
            version: of the parameters.
            params: the parameters.
            check: called now and then; raises to end a run that cannot go on.

        Raises:
            EvaluatorEnded: an evaluation took longer, or there will be none.
        """
        self.evaluations.request(version, params, True)
        since = time.monotonic()
        while True:
            if self.collect(_LOOK_S):
                since = time.monotonic()
            if not self.evaluations.outstanding():
                return self.found[version]
            check()
            if time.monotonic() - since > self.deadline_s:
                raise EvaluatorEnded(
                    f"no evaluation came in within eval.deadline_s={self.deadline_s:g}"
                )


def _are_metrics(data: Any) -> TypeGuard[dict[str, float]]:
    """Whether this is a mapping of names to numbers."""
    return isinstance(data, dict) and all(
        isinstance(name, str) and isinstance(value, float) and not math.isinf(value)
        for name, value in data.items()
    )
