"""A simulated pipeline: what a run would take, from the times of its parts.

    python benchmarks/pipeline_sim.py runs/a runs/b
    python benchmarks/pipeline_sim.py runs/a runs/b --times_of=runs/a

Each DIR is the workdir of a run. Its leases, updates, snapshots and evaluations are measured (from
timeline.jsonl and metrics.jsonl), put into the simulation of a run with the same config, and what
comes out is held against what was measured. With --times_of all runs are predicted from the parts
of one, whose decoder and batch they must share.

Leases, lag, queue and batches are the product's own: the simulation drives its `Broker` with a
clock that jumps from event to event. What it models is who has which cores: samplers and the
evaluator share theirs evenly where there are fewer cores than work, the learner has its own. Times
of parts are drawn from the measured ones, with a seed.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pipeline_times import SETTLED, WINDOW, Outcome, Times, format_rows, mean_of, measured

from asympo_jax import workdirs
from asympo_jax.config import resolve
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Lease
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.types import Group


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a config says of a pipeline.

    Attributes:
        pacing: order, lag and sizes.
        capacity: of the queue, in groups.
        num_samplers: at work at the same time.
        sampler_cores: that they and the evaluator share; each can use one.
        evaluate_every: updates, 0 for never.
        in_step: whether an update waits for the snapshot of the one before.
    """

    pacing: Pacing
    capacity: int
    num_samplers: int
    sampler_cores: int
    evaluate_every: int = 0
    in_step: bool = False


class _Doors(Broker):
    """The broker, asked before anybody would wait at it."""

    def has_lease(self) -> bool:
        """Whether `lease` would answer now."""
        return self._may_lease()


class _Cores:
    """Work that shares cores evenly, none faster than on one of its own."""

    def __init__(self, num_cores: int):
        self._num_cores, self._left, self._now = num_cores, {}, 0.0

    def __contains__(self, who: object) -> bool:
        return who in self._left

    def start(self, who: object, work_s: float) -> None:
        """Begins work of so many seconds."""
        self._left[who] = work_s

    def next_end(self) -> tuple[float, Any]:
        """When the next work ends, and whose it is."""
        who = min(self._left, key=self._left.__getitem__, default=None)
        if who is None:
            return float("inf"), None
        return self._now + self._left[who] / self._speed(), who

    def advance(self, now: float) -> None:
        """Lets the time pass."""
        done = (now - self._now) * self._speed()
        self._left = {who: left - done for who, left in self._left.items()}
        self._now = now

    def end(self, who: object) -> None:
        """Ends a work."""
        del self._left[who]

    def _speed(self) -> float:
        return min(1.0, self._num_cores / max(1, len(self._left)))


class Simulation:
    """A run of a setup, one event after the other."""

    def __init__(self, setup: Setup, times: Times, seed: int = 0):
        """Nothing has happened yet."""
        self.setup, self._times, self._random = setup, times, np.random.default_rng(seed)
        self.now = 0.0
        self.broker = _Doors(setup.pacing, setup.capacity, clock=lambda: self.now)
        self.broker.open(0)
        self._cores = _Cores(setup.sampler_cores)
        self._leases: dict[int, tuple[Lease, float]] = {}  # by sampler, with their starts
        self._version = 0  # updates given to the device
        self._asked: float | None = 0.0  # since when the learner waits for a batch
        self._free = 0.0  # when the device has done all that it was given
        self._handed: int | None = None  # the update that waits for the publisher
        self._published: tuple[float, int] | None = None  # when the publisher is done, of what
        self._evaluations: list[int] = []  # that wait
        self.lags: list[int] = []
        self.finished, self.waited, self.trained, self.busy = [0.0], [0.0], [0.0], [0.0]
        self._busy_s = 0.0

    def run(self) -> Outcome:
        """To the end; means over all updates but the first few and the last few."""
        num_updates = self.setup.pacing.num_updates
        while len(self.finished) <= num_updates or self._published:
            while self._settle():
                pass
            ends, who = self._cores.next_end()
            published = self._published[0] if self._published else float("inf")
            self.now = min(ends, published)
            assert self.now < float("inf"), "nobody has anything to do"
            self._cores.advance(self.now)
            if published <= ends:
                self._announce()
            else:
                self._worked(who)
        # At the end samplers have nothing left to do.
        return self.outcome(SETTLED, num_updates - self.setup.pacing.max_lag - 1)

    def _settle(self) -> bool:
        """Whoever can go on does, without time passing; whether anybody could."""
        for sampler in range(self.setup.num_samplers):
            if sampler not in self._leases and self.broker.has_lease():
                self._leases[sampler] = self.broker.lease(), self.now
                self._cores.start(sampler, self._draw(self._times.lease))
                return True
        if self._evaluations and "evaluator" not in self._cores:
            self._evaluations.pop(0)
            self._cores.start("evaluator", self._draw(self._times.evaluate))
            return True
        if self._handed is not None and self._published is None:
            self._hand_over(self._handed)
            return True
        if self._asked is not None and self.broker.has_batch():
            self._train()
            return True
        return False

    def _train(self) -> None:
        """Gives the device the next update."""
        assert self._asked is not None
        batch = self.broker.next_batch(0.0)
        self.lags += [self._version - group.version for group in batch]
        self._version += 1
        self.broker.complete(self._version, {group.ticket for group in batch})
        begins, train_s = max(self.now, self._free), self._draw(self._times.train)
        self.waited.append(self.waited[-1] + max(0.0, self.now - max(self._asked, self._free)))
        self.trained.append(self.trained[-1] + train_s)
        self._free, self._asked, self._handed = begins + train_s, None, self._version

    def _hand_over(self, version: int) -> None:
        """The publisher takes an update, and the learner asks for the next batch, or waits."""
        self._handed = None
        self._published = self._free + self._draw(self._times.publish), version
        if not self._must_wait(version):
            self._ask()

    def _announce(self) -> None:
        """The snapshot of an update is there."""
        assert self._published is not None
        _, version = self._published
        self._published = None
        self.broker.publish(version)
        self.finished.append(self.now)
        self.busy.append(self._busy_s)
        if self._must_wait(version):
            if self._is_evaluated(version):
                self._evaluations.append(version)
            self._ask()

    def _worked(self, who: Any) -> None:
        """A sampler hands in, or an evaluation is complete."""
        self._cores.end(who)
        if who == "evaluator":
            return
        lease, start = self._leases.pop(who)
        self._busy_s += self.now - start
        tickets = self.setup.pacing.tickets_of_lease(lease.number)
        groups = [_group(ticket, lease.version) for ticket in tickets]
        self.broker.submit(lease, groups, self.now - start)

    def _ask(self) -> None:
        if self._version < self.setup.pacing.num_updates:
            self._asked = self.now

    def _must_wait(self, version: int) -> bool:
        """As of the learner."""
        return self.setup.in_step or self._is_evaluated(version)

    def _is_evaluated(self, version: int) -> bool:
        return self.setup.evaluate_every > 0 and version % self.setup.evaluate_every == 0

    def _draw(self, times: Sequence[float]) -> float:
        return float(self._random.choice(times))

    def outcome(self, first: int, last: int) -> Outcome:
        """Means from the end of one update to that of another."""

        def mean(sums: Sequence[float]) -> float:
            return (sums[last] - sums[first]) / (last - first)

        update_s, busy_s = mean(self.finished), mean(self.busy) / self.setup.num_samplers
        return Outcome(
            update_s=update_s,
            learner_idle=mean(self.waited) / update_s,
            sampler_idle=max(0.0, 1.0 - busy_s / update_s),
            ideal_fraction=min(1.0, max(mean(self.trained), busy_s) / update_s),
        )


def _group(ticket: int, version: int) -> Group:
    """A group without contents."""
    none = np.zeros(0, np.int32)
    return Group(ticket, version, none, none, none, none, none)


def setup_of(directory: pathlib.Path, sampler_cores: int = 1) -> Setup:
    """The setup of a run."""
    config = resolve(workdirs.read_config(directory))
    is_one = config.runtime_name == "sync"
    return Setup(
        pacing=config.pacing,
        capacity=config.queue_capacity,
        num_samplers=1 if is_one else config.sampler.count,
        sampler_cores=sampler_cores,
        evaluate_every=config.eval.every_updates,
        in_step=is_one,
    )


def compare(
    directories: Sequence[pathlib.Path],
    times_of: Callable[[pathlib.Path], pathlib.Path],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Each run, measured and simulated from the parts of the run that `times_of` names."""
    rows = []
    for directory in directories:
        setup, (own, found, windows) = setup_of(directory), measured(directory)
        source = times_of(directory)
        times = own if source == directory else measured(source)[0]
        run = Simulation(setup, times, seed)
        run.run()
        # The same updates, as a run has a beginning and an end.
        simulated = mean_of([run.outcome(last - WINDOW, last) for last in windows])
        rows.append(
            {
                "run": directory.name,
                "times_of": source.name,
                "lease_s": statistics.mean(own.lease),
                "train_s": statistics.mean(own.train),
                "publish_s": statistics.mean(own.publish),
                "measured": dataclasses.asdict(found),
                "simulated": dataclasses.asdict(simulated),
                "error": simulated.update_s / found.update_s - 1,
            }
        )
    return rows


def main() -> None:
    """Measures, simulates, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", metavar="DIR", nargs="+", type=pathlib.Path)
    parser.add_argument("--times_of", metavar="DIR", type=pathlib.Path, help="one for all runs")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = compare(given.directories, lambda own: given.times_of or own, given.seed)
    print(format_rows(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
