"""Whether a lease or a batch may be formed: pure functions of what is on its way.

Updates are numbered from 0; update n turns version n into n + 1.
"""

import collections
from collections.abc import Mapping, Sequence

from asympo_jax.runtime.ledger import Ledger
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.types import Group


def is_lease_in_time(
    pacing: Pacing, ledger: Ledger, number: int, is_reissued: bool, version: int, update: int
) -> bool:
    """Whether a lease may start now and every live ticket still be trained within the lag.

    Args:
        pacing: order, lag and sizes.
        ledger: all live tickets.
        number: of the lease.
        is_reissued: whether its tickets are live already.
        version: the newest one published.
        update: the one whose batch is next.
    """
    size = pacing.prompts_per_lease
    if pacing.order == "ticket":
        return pacing.version_for(number * size) <= version
    # The updates up to version + lag can train this many, the batch at work included.
    room = (version + pacing.lag + 1 - update) * pacing.prompts_per_update
    return is_reissued or len(ledger.live) + size <= room


def select_batch(
    pacing: Pacing, ledger: Ledger, queue: Mapping[int, Group], update: int
) -> list[Group] | None:
    """The groups of an update from a queue by ticket, or None while they are not there."""
    if pacing.order == "ticket":
        start = update * pacing.prompts_per_update
        slot = range(start, start + pacing.prompts_per_update)
        if all(ticket in queue for ticket in slot):
            return [queue[ticket] for ticket in slot]
        return None
    # Those that are due first; the version of a group is that of its ticket's lease.
    due_first = sorted(queue, key=lambda ticket: (queue[ticket].version, ticket))
    chosen = due_first[: pacing.prompts_per_update]
    if len(chosen) < pacing.prompts_per_update:
        return None
    if not _is_rest_in_time(pacing, ledger, set(chosen), update):
        return None
    return [queue[ticket] for ticket in sorted(chosen)]


def groups_to_keep(pacing: Pacing, groups: Sequence[Group]) -> list[Group]:
    """Of finished groups those that a resumed run need not sample again: graded, by whole leases.

    One that could not be graded is tried again: what was wrong may have been mended.
    """
    size = pacing.prompts_per_lease
    failed = {group.ticket // size for group in groups if not group.is_graded}
    return [group for group in groups if group.ticket // size not in failed]


def _is_rest_in_time(pacing: Pacing, ledger: Ledger, chosen: set[int], update: int) -> bool:
    """Whether every other live ticket can still be trained by the update at which it is due."""
    others = (live for ticket, live in ledger.live.items() if ticket not in chosen)
    due = collections.Counter(
        live.version + pacing.lag - update for live in others if live.version is not None
    )
    total = 0
    for updates_left, count in sorted(due.items()):
        total += count
        if total > updates_left * pacing.prompts_per_update:
            return False
    return True
