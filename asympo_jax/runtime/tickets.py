"""Which ticket is which, and which version may sample it: pure functions of the config."""

import dataclasses
import functools
from typing import Literal

import numpy as np

from asympo_jax.types import Ticket

Order = Literal["ticket", "completion"]

# Streams of random numbers: one run's seed gives independent keys to each use.
_PROMPT_STREAM, _DRAW_STREAM = 1, 2


@dataclasses.dataclass(frozen=True)
class Pacing:
    """How far sampling may run ahead of training.

    Attributes:
        order: `ticket` trains slot n on update n, sampled with version max(0, n − lag) if
            samplers are refreshed at each; `completion` trains groups as they finish, sampled with
            the newest version.
        lag: number of updates that sampling may be ahead of training.
        num_updates: updates of the whole run.
        prompts_per_update: groups sampled for an update.
        prompts_per_lease: tickets that a sampler works at once; divides `prompts_per_update`.
        refresh_every_updates: samplers take up only versions that this divides; above 1 in ticket
            order alone.
    """

    order: Order
    lag: int
    num_updates: int
    prompts_per_update: int
    prompts_per_lease: int
    refresh_every_updates: int = 1

    @property
    def max_lag(self) -> int:
        """Largest number of updates between sampling and training of a group."""
        return self.lag + self.refresh_every_updates - 1

    @property
    def num_tickets(self) -> int:
        """Tickets of the whole run."""
        return self.num_updates * self.prompts_per_update

    def tickets_of_lease(self, lease: int) -> range:
        """Indices of the tickets that are always worked together."""
        start = lease * self.prompts_per_lease
        return range(start, start + self.prompts_per_lease)

    def versions_to_resume(self, update: int) -> set[int]:
        """The versions that a run needs to be resumed after an update, and that are there then.

        That one, and in ticket order those that the tickets from there on are sampled with.
        """
        if self.order == "completion":
            return {update}
        slots = range(update, update + self.max_lag + 1)
        versions = {self.version_for(slot * self.prompts_per_update) for slot in slots}
        return {update, *(version for version in versions if version < update)}

    def version_for(self, ticket: int) -> int:
        """The version that samples a ticket, in ticket order."""
        newest = max(0, ticket // self.prompts_per_update - self.lag)
        return newest - newest % self.refresh_every_updates


def ticket(seed: int, index: int, prompts_per_update: int, num_prompts: int) -> Ticket:
    """Ticket `index` of a run: a pure function of the seed and the index.

    Prompts come in a new random order each epoch, each exactly once an epoch.
    """
    epoch, position = divmod(index, num_prompts)
    key = np.random.SeedSequence([seed, _DRAW_STREAM, index]).generate_state(2)
    return Ticket(
        index=index,
        slot=index // prompts_per_update,
        prompt_index=int(_epoch_order(seed, epoch, num_prompts)[position]),
        key=(int(key[0]), int(key[1])),
    )


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_prompts: int) -> np.ndarray:
    """The order of the prompts in an epoch."""
    stream = np.random.SeedSequence([seed, _PROMPT_STREAM, epoch])
    return np.random.Generator(np.random.Philox(stream)).permutation(num_prompts)
