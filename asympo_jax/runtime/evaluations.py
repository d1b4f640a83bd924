"""Evaluations while training goes on: asked for by version, written down when they come in.

In a process of its own an evaluation reads the published snapshot of its version, which is kept
until then, and the learner never waits for it. Where there is no such process, the learner
evaluates at once.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from asympo_jax.runtime.metrics import MetricsWriter

# (Parameters, whether greedily, too) -> metrics.
Evaluate = Callable[[Any, bool], dict[str, float]]

_LOOK_S = 0.5  # between looks whether the run is to end while nothing but evaluations is left


class EvaluatorEnded(Exception):
    """The process that evaluates could not evaluate, or takes too long."""


class EvaluatorLost(EvaluatorEnded):
    """It ended or hung too often; the next request starts it anew.

    Attributes:
        versions: whose evaluations it was asked for and will not make.
    """

    def __init__(self, words: str, versions: Collection[int]):
        """Carries the versions."""
        super().__init__(words)
        self.versions = versions


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
            EvaluatorLost: those that are outstanding will not come in.
        """
        ...

    def outstanding(self) -> Collection[int]:
        """Versions asked for, whose evaluations are not finished: their snapshots are needed."""
        ...


class EvaluationsHere(Evaluations):
    """Evaluates in this process, by `evaluate`, while the learner waits.

    Args:
        evaluate: does it.
        read: version -> parameters of its snapshot, where those of the learner are not all here.
    """

    def __init__(self, evaluate: Evaluate, read: Callable[[int], Any] | None = None):
        self._evaluate, self._read = evaluate, read
        self._finished: list[Evaluation] = []

    def request(self, version: int, params: Any, greedily: bool) -> None:
        """See `Evaluations`."""
        params = params if self._read is None else self._read(version)
        self._finished.append(Evaluation(version, self._evaluate(params, greedily)))

    def finished(self, timeout_s: float = 0.0) -> list[Evaluation]:
        """See `Evaluations`."""
        finished, self._finished = self._finished, []
        return finished

    def outstanding(self) -> Collection[int]:
        """See `Evaluations`."""
        return ()


@dataclasses.dataclass(frozen=True)
class EvaluationLog:
    """Writes down evaluations as they come in.

    Attributes:
        evaluations: where they are asked for.
        writer: metrics.
        show: called with version and metrics, for people.
        say: tells people.
        max_waiting: versions that may be outstanding, whose snapshots are kept; more are left out.
        deadline_s: seconds without any evaluation after which the end of the run gives up waiting.
        found: version -> metrics of all that came in.
    """

    evaluations: Evaluations
    writer: MetricsWriter
    show: Callable[[int, Mapping[str, float]], None]
    say: Callable[[str], None]
    max_waiting: int
    deadline_s: float
    found: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)

    def request(self, version: int, params: Any) -> bool:
        """Asks for an evaluation, without waiting; False if too many are outstanding."""
        if len(self.evaluations.outstanding()) >= self.max_waiting:
            return False
        self.evaluations.request(version, params, version == 0)
        return True

    def collect(self) -> bool:
        """Writes down what has come in; whether anything has.

        What an evaluator that is lost does not find is left out: training can do without it.

        Raises:
            EvaluatorEnded: there will be no more.
        """
        try:
            return self._collect(0.0)
        except EvaluatorLost as lost:
            self.say(f"{lost}; evaluations left out: {', '.join(map(str, lost.versions))}")
            for version in lost.versions:
                self.writer.write(version, {"eval/left_out": 1.0})
            return False

    def _collect(self, timeout_s: float) -> bool:
        """Writes down what has come in; whether anything has."""
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
            if self._collect(_LOOK_S):
                since = time.monotonic()
            if not self.evaluations.outstanding():
                return self.found[version]
            check()
            if time.monotonic() - since > self.deadline_s:
                raise EvaluatorEnded(
                    f"no evaluation came in within eval.deadline_s={self.deadline_s:g}"
                )
