"""Complete groups to one batch of a fixed shape."""

from collections.abc import Sequence

import numpy as np

from asympo_jax.objectives import degenerate_groups
from asympo_jax.types import Batch, Group


def informative_groups(groups: Sequence[Group], count: int) -> list[Group]:
    """Dynamic sampling: of the candidates for a batch, those that have something to teach.

    DAPO (arXiv:2503.14476) samples until the batch is full of groups whose rewards differ. Differs
    from the paper: the candidates are a fixed number, so that a run stays reproducible and bounded;
    the first `count` groups with different rewards are taken, and if there are fewer, the first
    others with them.

    Groups that could not be graded come last of all.

    Returns:
        `count` groups in the order of `groups`.
    """
    if count == len(groups):
        return list(groups)
    # On the host: a device may still be at work on the update before.
    flat_P = degenerate_groups(np.stack([group.reward_G for group in groups]))
    failed_P = np.array([not group.is_graded for group in groups])
    chosen = sorted(np.argsort(flat_P + 2 * failed_P, kind="stable")[:count])
    return [groups[i] for i in chosen]


def make_batch(groups: Sequence[Group], group_size: int, num_positions: int) -> Batch:
    """The groups, in their order, as a `Batch` of [P·G, num_positions].

    Args:
        groups: P complete groups; either all or none have behaviour log-probs.
        group_size: G.
        num_positions: T, room for the longest prompt plus the longest response.
    """
    num_rows = len(groups) * group_size
    tokens_BT = np.zeros((num_rows, num_positions), np.int32)
    drawn_BT = np.zeros((num_rows, num_positions), bool)
    logp_BT = np.zeros((num_rows, num_positions), np.float32)
    reward_PG = np.zeros((len(groups), group_size), np.float32)
    has_logp = groups[0].behaviour_logp_GT is not None
    row = 0
    for p, group in enumerate(groups):
        assert len(group.length_G) == group_size, (len(group.length_G), group_size)
        assert (group.behaviour_logp_GT is not None) == has_logp, group.ticket
        if group.is_graded:
            reward_PG[p] = group.reward_G
        start = len(group.prompt_S)
        for member, length in enumerate(group.length_G):
            end = start + int(length)
            assert end <= num_positions, (start, int(length), num_positions)
            tokens_BT[row, :start] = group.prompt_S
            tokens_BT[row, start:end] = group.response_GT[member, :length]
            drawn_BT[row, start:end] = group.is_graded
            if group.behaviour_logp_GT is not None:
                logp_BT[row, start:end] = group.behaviour_logp_GT[member, :length]
            row += 1
    return Batch(
        tokens_BT=tokens_BT,
        drawn_BT=drawn_BT,
        reward_PG=reward_PG,
        behaviour_logp_BT=logp_BT if has_logp else None,
    )
