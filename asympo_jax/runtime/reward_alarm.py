"""Ends a run from which nothing is learnt, because too many of its groups could not be graded."""

import collections
from collections.abc import Sequence

import numpy as np

from asympo_jax.tasks import RewardError
from asympo_jax.tokenizers import Tokenizer
from asympo_jax.types import GradingFailure, Group

_RECENT_GROUPS = 128
_ENOUGH_GROUPS = 32
_EXAMPLE_CHARACTERS = 200


class RewardAlarm:
    """Looks at the groups of each update; the last 128 count.

    Args:
        max_failed_share: of them, those that may have a response that could not be graded.
        tokenizer: to show one.
    """

    def __init__(self, max_failed_share: float, tokenizer: Tokenizer):
        """No group was seen yet."""
        self._max_failed_share = max_failed_share
        self._tokenizer = tokenizer
        self._recent: collections.deque[np.ndarray] = collections.deque(maxlen=_RECENT_GROUPS)

    def check(self, groups: Sequence[Group], update: int) -> None:
        """Takes note of the groups that were sampled for an update.

        Raises:
            RewardError: too few of the recent ones could be graded; few groups say little, unless
                none of this update could be.
        """
        failed = [group for group in groups if not group.is_graded]
        self._recent += [_failures(group) for group in groups]
        num_failed, total = sum(bool(kind_G.any()) for kind_G in self._recent), len(self._recent)
        if not failed or num_failed <= self._max_failed_share * total:
            return
        share = f"more than reward.max_failed_share={self._max_failed_share:g}"
        example = self._example(failed[-1])
        if len(failed) == len(groups):
            raise RewardError(
                f"update {update}: none of its {len(groups)} groups could be graded; of the "
                f"last {total} groups {num_failed} could not be, {share}; "
                f"{_counts([_failures(group) for group in groups])}; {example}"
            )
        if total >= _ENOUGH_GROUPS:
            raise RewardError(
                f"update {update}: {num_failed} of the last {total} groups have a response that "
                f"could not be graded, {share}; {_counts(self._recent)}; {example}"
            )

    def _example(self, group: Group) -> str:
        """A response that could not be graded, in words."""
        member = int(np.flatnonzero(_failures(group))[0])
        kind = GradingFailure(_failures(group)[member]).name.lower()
        ids = group.response_GT[member, : group.length_G[member]].tolist()
        prompt = self._tokenizer.decode(group.prompt_S.tolist())[-_EXAMPLE_CHARACTERS:]
        response = self._tokenizer.decode(ids)[:_EXAMPLE_CHARACTERS]
        return f"such as a {kind} at {response!r} to {prompt!r}"


def _failures(group: Group) -> np.ndarray:
    """int8 failures of a group's responses; 0 is none."""
    none = np.zeros(group.length_G.shape, np.int8)
    return none if group.failure_G is None else group.failure_G


def _counts(kinds: Sequence[np.ndarray] | collections.deque[np.ndarray]) -> str:
    """Responses by what became of them, in words."""
    found = np.concatenate(list(kinds))
    counts = ", ".join(f"{(found == kind).sum()} {kind.name.lower()}" for kind in GradingFailure)
    return f"its responses by what became of them: {counts}"
