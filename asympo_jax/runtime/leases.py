"""What samplers, broker and learner say to each other, whatever carries it."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal

from asympo_jax.types import GradingFailure, Group

# The name of a sampler at the broker: its index, and how often that was started before.
Holder = tuple[int, int]


class Closed(Exception):
    """The run has ended. `cause` is None for an orderly end, else one sentence."""

    def __init__(self, cause: str | None):
        """Carries the cause."""
        super().__init__(cause or "the run is complete")
        self.cause = cause


# Why something is not let in. frame: no message; shape: an array of a wrong type or shape; length:
# no tokens, or too many; vocabulary: ids that no token has; value: a number that means nothing;
# tickets, version: not those of the lease; run: another's; duplicate: the lease is no longer out;
# holder: it is another sampler's.
Refusal = Literal[
    "frame",
    "shape",
    "length",
    "vocabulary",
    "value",
    "tickets",
    "version",
    "run",
    "duplicate",
    "holder",
]


class Refused(Exception):
    """What was handed in and is not let in. `reason` is the kind by which it is counted."""

    def __init__(self, words: str, reason: Refusal):
        """Carries the reason."""
        super().__init__(words)
        self.reason: Refusal = reason


class Gone(Exception):
    """The sampler that asks has left."""


class Stalled(Exception):
    """Nothing came within the deadline."""


@dataclasses.dataclass(frozen=True)
class Lease:
    """Tickets for one sampler, worked together with one version.

    Attributes:
        number: which tickets, `Pacing.tickets_of_lease(number)`.
        attempt: counts the leases of these tickets, from 0.
        version: snapshot to sample with.
        run_id: of the attempt at a run that gave it out.
    """

    number: int
    attempt: int
    version: int
    run_id: str = ""


@dataclasses.dataclass(frozen=True)
class Out:
    """A lease that is out.

    Attributes:
        lease: as it was given out.
        holder: the sampler that has it; None for one in the learner's process.
        deadline: monotonic seconds until which it is to be handed in.
    """

    lease: Lease
    holder: Holder | None
    deadline: float


@dataclasses.dataclass(frozen=True)
class HandedIn:
    """A lease whose groups came in.

    Attributes:
        lease: as it was given out.
        holder: as in `Out`.
        finished: when they came in, monotonic seconds.
        busy_s: seconds of work on them, which end then; those of one sampler do not overlap.
    """

    lease: Lease
    holder: Holder | None
    finished: float
    busy_s: float


@dataclasses.dataclass(frozen=True)
class SamplingTotals:
    """Sums over everything that samplers handed in.

    Attributes:
        groups: number of groups.
        tokens: drawn tokens.
        busy_s: seconds of work, waiting excluded, over all samplers.
        reads: snapshots that samplers read.
        read_s: seconds in which they did, over all samplers.
        timeouts: responses that were not graded within the deadline.
        deaths: responses on which the grading process died.
        errors: responses whose reward raised, or was no finite number, in a grading process.
    """

    groups: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    reads: int = 0
    read_s: float = 0.0
    timeouts: int = 0
    deaths: int = 0
    errors: int = 0

    def plus(self, groups: Sequence[Group], busy_s: float, read_s: float = 0.0) -> "SamplingTotals":
        """These totals and a lease more, for which a snapshot was read if that took time."""
        tokens = sum(int(group.length_G.sum()) for group in groups)
        failures: collections.Counter[int] = collections.Counter()
        for group in groups:
            if group.failure_G is not None:
                failures.update(group.failure_G.tolist())
        return SamplingTotals(
            self.groups + len(groups),
            self.tokens + tokens,
            self.busy_s + busy_s,
            self.reads + (read_s > 0),
            self.read_s + read_s,
            self.timeouts + failures[GradingFailure.TIMEOUT],
            self.deaths + failures[GradingFailure.DEATH],
            self.errors + failures[GradingFailure.ERROR],
        )
