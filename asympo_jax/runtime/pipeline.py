"""Who waits for whom, and how near an update comes to its ideal time.

The ideal time of an update is the larger of what its samplers need for its groups and what the
learner needs to train on them, both as they were while the other was at work. Metrics are over the
last updates, since samplers hand in whole leases at once; the first update, in which programs are
compiled, is left out as soon as there is another.
"""

import collections
import dataclasses
import time
from collections.abc import Callable

from asympo_jax.runtime.leases import SamplingTotals
from asympo_jax.runtime.publisher import Published

_WINDOW = 20


@dataclasses.dataclass(frozen=True)
class _Mark:
    """Running sums at the end of an update, seconds and tokens."""

    now: float
    wait_s: float = 0.0
    train_s: float = 0.0
    publish_s: float = 0.0
    candidates: int = 0
    tokens: int = 0
    sampled: SamplingTotals = SamplingTotals()


@dataclasses.dataclass(frozen=True)
class PipelineShares:
    """Means over some updates.

    Attributes:
        update_s: seconds an update.
        wait_s: of these, the learner had no batch and its device nothing to do.
        train_s: of these, the learner had a batch and was at work on it.
        publish_s: seconds to write a snapshot, beside the next update.
        sample_s: seconds of all samplers together at work on the groups of an update.
        sampler_idle: share of the time in which a sampler had no lease.
    """

    update_s: float
    wait_s: float
    train_s: float
    publish_s: float
    sample_s: float
    sampler_idle: float

    @property
    def ideal_fraction(self) -> float:
        """Time of an update that never waits over its time."""
        return min(1.0, max(self.train_s, self.sample_s) / self.update_s)

    def bottleneck(self) -> str:
        """One sentence on what a run waited for."""
        larger = "samplers" if self.sample_s > self.train_s else "learner"
        verb = "were" if larger == "samplers" else "was"
        return (
            f"the {larger} {verb} the bottleneck: in the mean an update took "
            f"{self.update_s:.3g} s, sampling its groups {self.sample_s:.3g} s, training on them "
            f"{self.train_s:.3g} s, which is {self.ideal_fraction:.2f} of the ideal pipeline; the "
            f"learner waited {self.wait_s / self.update_s:.0%}, samplers {self.sampler_idle:.0%}"
        )


class PipelineMeter:
    """Shares of time, over the last updates and over all.

    Args:
        num_samplers: samplers that work at the same time.
        num_filling: updates at the beginning whose samples were all drawn before there was a
            second version, so that they say nothing on who waits for whom.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        num_samplers: int,
        num_filling: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock."""
        self._num_filling = num_filling
        self._num_samplers = num_samplers
        self._marks = collections.deque([_Mark(clock())], maxlen=_WINDOW + 1)
        self._first: _Mark | None = None  # the end of the first update
        self._num_updates = 0

    def add(self, published: Published) -> None:
        """Accounts for an update."""
        last, groups = self._marks[-1], published.update.groups
        mark = _Mark(
            now=published.finished,
            wait_s=last.wait_s + published.wait_s,
            train_s=last.train_s + published.train_s,
            publish_s=last.publish_s + published.publish_s,
            candidates=last.candidates + published.update.num_candidates,
            tokens=last.tokens + sum(int(group.length_G.sum()) for group in groups),
            sampled=published.sampled,
        )
        self._num_updates += 1
        if self._first is None:
            self._first = mark
        elif self._marks[-1] is self._first:
            self._marks.popleft()
        self._marks.append(mark)

    def metrics(self) -> dict[str, float]:
        """Times, throughputs, idle shares and the share of the ideal, over the window."""
        first, last, num_updates = self._marks[0], self._marks[-1], len(self._marks) - 1
        shares = self._shares(first, last, num_updates)
        wall_s = shares.update_s * num_updates
        num_sampled = last.sampled.tokens - first.sampled.tokens
        return {
            "time/update_s": shares.update_s,
            "time/wait_s": shares.wait_s,
            "time/train_s": shares.train_s,
            "time/publish_s": shares.publish_s,
            "snapshot/read_s": _mean_read_s(first.sampled, last.sampled),
            "time/sample_s": shares.sample_s,
            "throughput/trained_tokens_per_s": (last.tokens - first.tokens) / wall_s,
            "throughput/sampled_tokens_per_s": num_sampled / wall_s,
            "idle/learner": shares.wait_s / shares.update_s,
            "idle/sampler": shares.sampler_idle,
            "pipeline/ideal_fraction": shares.ideal_fraction,
            "grading/timeouts": float(last.sampled.timeouts),
            "grading/deaths": float(last.sampled.deaths),
            "grading/errors": float(last.sampled.errors),
        }

    def whole(self) -> PipelineShares | None:
        """Means over all updates but the first; None where too few came after the filling."""
        first, last = self._first, self._marks[-1]
        if first is None or last is first or self._num_updates <= self._num_filling:
            return None
        return self._shares(first, last, self._num_updates - 1)

    def _shares(self, first: _Mark, last: _Mark, num_updates: int) -> PipelineShares:
        """Means from one mark to another."""
        wall_s = max(last.now - first.now, 1e-9)
        busy_s = (last.sampled.busy_s - first.sampled.busy_s) / self._num_samplers
        num_sampled = last.sampled.groups - first.sampled.groups
        group_s = busy_s / num_sampled if num_sampled else 0.0
        return PipelineShares(
            update_s=wall_s / num_updates,
            wait_s=(last.wait_s - first.wait_s) / num_updates,
            train_s=(last.train_s - first.train_s) / num_updates,
            publish_s=(last.publish_s - first.publish_s) / num_updates,
            sample_s=group_s * (last.candidates - first.candidates) / num_updates,
            sampler_idle=min(1.0, max(0.0, 1.0 - busy_s / wall_s)),
        )


def _mean_read_s(first: SamplingTotals, last: SamplingTotals) -> float:
    """Seconds to read a snapshot, the mean of those that were read from one to the other."""
    return (last.read_s - first.read_s) / max(1, last.reads - first.reads)
