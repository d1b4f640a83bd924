"""The sampler's loop: lease, read the snapshot, generate, grade, submit.

It holds no state that matters: whatever it was working on can be leased again to another.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from asympo_jax.models import ModelConfig
from asympo_jax.runtime.leases import Closed, Lease
from asympo_jax.runtime.rewards import Grader
from asympo_jax.runtime.tickets import Pacing, ticket
from asympo_jax.sampling import DrawParams, EngineConfig, generate
from asympo_jax.tasks.base import Task
from asympo_jax.types import Group


class LeaseSource(Protocol):
    """Where leases come from and groups go: the broker, or a transport's picture of it."""

    def lease(self) -> Lease:
        """The next lease; blocks; raises `Closed` at the end of the run."""
        ...

    def submit(self, lease: Lease, groups: Sequence[Group], busy_s: float) -> None:
        """Hands in the groups of a lease."""
        ...


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Turns leases into groups.

    Attributes:
        task: prompts.
        grader: rewards.
        model: the decoder's shape.
        engine: shapes of the decode engine.
        draw: temperature and cuts.
        pacing: which tickets a lease has.
        seed: of the run.
        read_snapshot: version -> parameters.
    """

    task: Task
    grader: Grader
    model: ModelConfig
    engine: EngineConfig
    draw: DrawParams
    pacing: Pacing
    seed: int
    read_snapshot: Callable[[int], Any]

    def work(self, lease: Lease, params: Any) -> list[Group]:
        """The groups of a lease: a pure function of the lease and the parameters."""
        tickets = [
            ticket(self.seed, index, self.pacing.prompts_per_update, self.task.num_train)
            for index in self.pacing.tickets_of_lease(lease.number)
        ]
        prompts = [self.task.train_prompt(t.prompt_index) for t in tickets]
        prompt_ids = [self.task.tokenizer.encode_prompt(prompt.text) for prompt in prompts]
        keys = [t.key for t in tickets]
        out = generate(self.model, self.engine, params, prompt_ids, keys, self.draw)
        groups = []
        for p, (t, prompt) in enumerate(zip(tickets, prompts, strict=True)):
            rows = zip(out.token_PGT[p], out.length_PG[p], strict=True)
            texts = [self.task.tokenizer.decode(row[:length].tolist()) for row, length in rows]
            reward_G, failure_G = self.grader.grade(prompt, texts, out.length_PG[p])
            groups.append(
                Group(
                    ticket=t.index,
                    version=lease.version,
                    prompt_S=np.asarray(prompt_ids[p], np.int32),
                    response_GT=out.token_PGT[p],
                    length_G=out.length_PG[p],
                    stop_G=out.stop_PG[p],
                    reward_G=reward_G,
                    behaviour_logp_GT=None if out.logp_PGT is None else out.logp_PGT[p],
                    failure_G=failure_G,
                )
            )
        return groups


class SamplerLoop:
    """A sampler at work on a source of leases."""

    def __init__(self, sampler: Sampler, source: LeaseSource):
        """Nothing is leased yet."""
        self._sampler = sampler
        self._source = source
        self._version: int | None = None
        self._params: Any = None

    def run(self) -> None:
        """Works leases until the source is closed."""
        while True:
            try:
                self.work_one()
            except Closed:
                return

    def work_one(self) -> None:
        """Works one lease.

        Raises:
            Closed: the run has ended.
        """
        lease = self._source.lease()
        start = time.monotonic()
        if lease.version != self._version:
            self._params = jax.tree.map(jnp.asarray, self._sampler.read_snapshot(lease.version))
            self._version = lease.version
        groups = self._sampler.work(lease, self._params)
        self._source.submit(lease, groups, time.monotonic() - start)
