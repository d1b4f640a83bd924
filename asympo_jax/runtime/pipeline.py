"""Who waits for whom, and how near an update comes to its ideal time.

Over a window of the last updates, since samplers hand in whole leases at once.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence

from asympo_jax.runtime.leases import SamplingTotals
from asympo_jax.types import Group

_WINDOW = 20


@dataclasses.dataclass(frozen=True)
class _Mark:
    """Running sums at the end of an update, seconds and tokens."""

    now: float
    wait_s: float
    train_s: float
    groups: int
    tokens: int
    sampled: SamplingTotals


class PipelineMeter:
    """Shares of time over the last updates.

    Args:
        num_samplers: samplers that work at the same time.
        clock: monotonic seconds.
    """

    def __init__(self, num_samplers: int, clock: Callable[[], float] = time.monotonic):
        """Starts the clock."""
        self._num_samplers = num_samplers
        self._clock = clock
        start = _Mark(clock(), 0.0, 0.0, 0, 0, SamplingTotals())
        self._marks: collections.deque[_Mark] = collections.deque([start], maxlen=_WINDOW + 1)

    def add(
        self, wait_s: float, train_s: float, groups: Sequence[Group], sampled: SamplingTotals
    ) -> None:
        """Accounts for an update: seconds waited for its batch, seconds trained and published."""
        last = self._marks[-1]
        mark = _Mark(
            now=self._clock(),
            wait_s=last.wait_s + wait_s,
            train_s=last.train_s + train_s,
            groups=last.groups + len(groups),
            tokens=last.tokens + sum(int(group.length_G.sum()) for group in groups),
            sampled=sampled,
        )
        self._marks.append(mark)

    def metrics(self) -> dict[str, float]:
        """Times, throughputs, idle shares and the share of the ideal, over the window.

        The ideal time of an update is the larger of the time to sample its groups and the time to
        train on them: what a pipeline that never waits would need.
        """
        first, last = self._marks[0], self._marks[-1]
        num_updates = len(self._marks) - 1
        wall_s = max(last.now - first.now, 1e-9)
        wait_s, train_s = last.wait_s - first.wait_s, last.train_s - first.train_s
        busy_s = (last.sampled.busy_s - first.sampled.busy_s) / self._num_samplers
        num_sampled = last.sampled.groups - first.sampled.groups
        group_s = busy_s / num_sampled if num_sampled else 0.0
        ideal_s = max(train_s, group_s * (last.groups - first.groups))
        return {
            "time/update_s": wall_s / num_updates,
            "time/wait_s": wait_s / num_updates,
            "time/train_s": train_s / num_updates,
            "throughput/trained_tokens_per_s": (last.tokens - first.tokens) / wall_s,
            "throughput/sampled_tokens_per_s": (last.sampled.tokens - first.sampled.tokens)
            / wall_s,
            "idle/learner": wait_s / wall_s,
            "idle/sampler": min(1.0, max(0.0, 1.0 - busy_s / wall_s)),
            "pipeline/ideal_fraction": min(1.0, ideal_s / wall_s),
            "grading/timeouts": float(last.sampled.timeouts),
            "grading/deaths": float(last.sampled.deaths),
            "grading/errors": float(last.sampled.errors),
        }
