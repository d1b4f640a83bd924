"""A pool of processes that grade, each under a deadline that nothing in it can outlast.

Decisions. A grader is code that may hang, ignore signals, start processes or die, and what it reads
was written by a model. So it runs in a process of its own, answers in lines of JSON, and is killed
at the deadline with all that it started (`reward_guard`); a fresh process takes its place. What
could not be graded is counted by kind, never silently a 0. One thread drives all processes.
"""

import dataclasses
import json
import selectors
import weakref
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from asympo_jax.runtime.reward_process import Graded, RewardProcess
from asympo_jax.tasks import RewardError
from asympo_jax.types import GradingFailure, Prompt

Call = Literal["reward", "correct"]

_MANY_FAILURES = 16


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
        self._workers = [RewardProcess(_line(setup), deadline_s) for _ in range(num_processes)]
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


def _active(workers: list[RewardProcess]) -> list[RewardProcess]:
    """The workers, once one of them can go on or its time is up."""
    with selectors.DefaultSelector() as selector:
        selector.select(max(0.0, min(worker.watch(selector) for worker in workers)))
    return workers


def _line(message: Mapping[str, Any]) -> bytes:
    """A message as a line; half a character of a text is escaped."""
    return json.dumps(message).encode() + b"\n"


def _stop(workers: Sequence[RewardProcess]) -> None:
    """Ends all processes."""
    for worker in workers:
        worker.stop()
