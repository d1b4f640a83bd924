"""The sampler's loop: lease, read the snapshot, generate, grade, submit.

It holds no state that matters: whatever it was working on can be leased again to another. In a
process of its own it decodes the next lease while a thread turns the responses of the last one into
text, grades them and hands them in.
"""

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from asympo_jax.models import ModelConfig
from asympo_jax.runtime.leases import Closed, Lease
from asympo_jax.runtime.rewards import Grader
from asympo_jax.runtime.tickets import Pacing, ticket
from asympo_jax.sampling import DrawParams, EngineConfig, Responses, generate
from asympo_jax.tasks.base import Task
from asympo_jax.types import Group, Prompt


class LeaseSource(Protocol):
    """Where leases come from and groups go: the broker, or a transport's picture of it."""

    def lease(self) -> Lease:
        """The next lease; blocks; raises `Closed` at the end of the run."""
        ...

    def submit(
        self, lease: Lease, groups: Sequence[Group], busy_s: float, *, read_s: float = 0.0
    ) -> None:
        """Hands in the groups of a lease; see `Broker.submit`."""
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
        read_snapshot: version -> parameters, where `generate` takes them.
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
        return self.grade(self.decode(lease, params))

    def decode(self, lease: Lease, params: Any) -> "Decoded":
        """The responses to the prompts of a lease."""
        tickets = [
            ticket(self.seed, index, self.pacing.prompts_per_update, self.task.num_train)
            for index in self.pacing.tickets_of_lease(lease.number)
        ]
        prompts = [self.task.train_prompt(t.prompt_index) for t in tickets]
        prompt_ids = [self.task.tokenizer.encode_prompt(prompt.text) for prompt in prompts]
        keys = [t.key for t in tickets]
        out = generate(self.model, self.engine, params, prompt_ids, keys, self.draw)
        return Decoded(lease, [t.index for t in tickets], prompts, prompt_ids, out)

    def grade(self, decoded: "Decoded") -> list[Group]:
        """The groups of a lease, whose responses are turned into text and graded."""
        out, groups = decoded.responses, []
        for p, (index, prompt) in enumerate(zip(decoded.tickets, decoded.prompts, strict=True)):
            rows = zip(out.token_PGT[p], out.length_PG[p], strict=True)
            texts = [self.task.tokenizer.decode(row[:length].tolist()) for row, length in rows]
            reward_G, failure_G = self.grader.grade(prompt, texts, out.length_PG[p])
            groups.append(
                Group(
                    ticket=index,
                    version=decoded.lease.version,
                    prompt_S=np.asarray(decoded.prompt_ids[p], np.int32),
                    response_GT=out.token_PGT[p],
                    length_G=out.length_PG[p],
                    stop_G=out.stop_PG[p],
                    reward_G=reward_G,
                    behaviour_logp_GT=None if out.logp_PGT is None else out.logp_PGT[p],
                    failure_G=failure_G,
                )
            )
        return groups


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A lease between the device and the grader.

    Attributes:
        lease: as it was given out.
        tickets: their indices (P).
        prompts: of the tickets.
        prompt_ids: the prompts as token ids.
        responses: G to each prompt.
    """

    lease: Lease
    tickets: Sequence[int]
    prompts: Sequence[Prompt]
    prompt_ids: Sequence[Sequence[int]]
    responses: Responses


@dataclasses.dataclass(frozen=True)
class _Work:
    """A lease that a sampler is at work on.

    Attributes:
        decoded: its responses.
        start: when it came, seconds of the clock.
        read_s: seconds in which its snapshot was read; 0 if the sampler had that.
    """

    decoded: Decoded
    start: float
    read_s: float


class SamplerLoop:
    """A sampler at work on a source of leases.

    Args:
        sampler: turns leases into groups.
        source: of leases.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        sampler: Sampler,
        source: LeaseSource,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Nothing is leased yet."""
        self._sampler = sampler
        self._source = source
        self._clock = clock
        self._version: int | None = None
        self._params: Any = None
        self._graded = 0.0  # when the last lease was

    def run(self, fail: Callable[[str], None]) -> None:
        """Works leases until the source is closed, grading one while the next one is decoded.

        Args:
            fail: told why grading broke, at once, since by then this loop may wait for a lease.
        """
        grading: concurrent.futures.Future[None] | None = None
        with concurrent.futures.ThreadPoolExecutor(1, "grading") as grader:
            try:
                while True:
                    lease = self._source.lease()
                    work = self._decode(lease)
                    if grading is not None:
                        grading.result()  # so that two leases are the most that a sampler has
                    grading = grader.submit(self._finish, work, fail)
            except Closed:
                if grading is not None:
                    with contextlib.suppress(Closed):
                        grading.result()

    def work_one(self) -> None:
        """Works one lease, grading included.

        Raises:
            Closed: the run has ended.
        """
        self._submit(self._decode(self._source.lease()))

    def _decode(self, lease: Lease) -> _Work:
        """Decodes a lease with the parameters of its version."""
        start = read = self._clock()
        if lease.version != self._version:
            self._params, self._version = None, None  # never two versions on the device
            self._params = self._sampler.read_snapshot(lease.version)
            self._version, read = lease.version, self._clock()
        decoded = self._sampler.decode(lease, self._params)
        return _Work(decoded, start, read - start)

    def _finish(self, work: _Work, fail: Callable[[str], None]) -> None:
        """Grades and hands in; says what broke."""
        try:
            self._submit(work)
        except Closed:
            raise
        except Exception as error:
            fail(f"{type(error).__name__}: {error}")
            raise

    def _submit(self, work: _Work) -> None:
        """Grades and hands in, with the seconds in which nothing else was at work."""
        groups = self._sampler.grade(work.decoded)
        before, self._graded = self._graded, self._clock()
        busy_s = self._graded - max(work.start, before)
        self._source.submit(work.decoded.lease, groups, busy_s, read_s=work.read_s)
