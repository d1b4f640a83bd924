"""What samplers, broker and learner say to each other, whatever carries it."""

import collections
import dataclasses
from collections.abc import Sequence

from asympo_jax.types import GradingFailure, Group


class Closed(Exception):
    """The run has ended. `cause` is None for an orderly end, else one sentence."""

    def __init__(self, cause: str | None):
        """Carries the cause."""
        super().__init__(cause or "the run is complete")
        self.cause = cause


class Refused(Exception):
    """Groups that do not belong to the lease they are handed in for."""


class Stalled(Exception):
    """Nothing came within the deadline."""


@dataclasses.dataclass(frozen=True)
class Lease:
    """Tickets for one sampler, worked together with one version.

    Attributes:
        number: which tickets, `Pacing.tickets_of_lease(number)`.
        attempt: counts the leases of these tickets, from 0.
        version: snapshot to sample with.
    """

    number: int
    attempt: int
    version: int


@dataclasses.dataclass(frozen=True)
class SamplingTotals:
    """Sums over everything that samplers handed in.

    Attributes:
        groups: number of groups.
        tokens: drawn tokens.
        busy_s: seconds of work, waiting excluded, over all samplers.
        timeouts: responses that were not graded within the deadline.
        deaths: responses on which the grading process died.
        errors: responses whose reward raised, or was no finite number, in a grading process.
    """

    groups: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    timeouts: int = 0
    deaths: int = 0
    errors: int = 0

    def plus(self, groups: Sequence[Group], busy_s: float) -> "SamplingTotals":
        """These totals and a lease more."""
        tokens = sum(int(group.length_G.sum()) for group in groups)
        failures: collections.Counter[int] = collections.Counter()
        for group in groups:
            if group.failure_G is not None:
                failures.update(group.failure_G.tolist())
        return SamplingTotals(
            self.groups + len(groups),
            self.tokens + tokens,
            self.busy_s + busy_s,
            self.timeouts + failures[GradingFailure.TIMEOUT],
            self.deaths + failures[GradingFailure.DEATH],
            self.errors + failures[GradingFailure.ERROR],
        )
