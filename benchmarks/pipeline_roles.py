"""The roles of `pipeline.py`: a process that samples, or trains, whenever it is asked.

Each has what the other would have made: a sampler endless leases, a learner the same batch again.
"""

import argparse
import contextlib
import itertools
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from typing import Any

import jax

from asympo_jax import experiment
from asympo_jax.config import resolve
from asympo_jax.defaults import default_config
from asympo_jax.learning import init_state, make_optimizer
from asympo_jax.loops import make_learner
from asympo_jax.progress import Progress
from asympo_jax.runtime import placement, wire
from asympo_jax.runtime.compilation import Compilations, keep_compiled
from asympo_jax.runtime.evaluations import EvaluationLog, EvaluationsHere
from asympo_jax.runtime.leases import Closed, Lease, SamplingTotals
from asympo_jax.runtime.metrics import MetricsWriter
from asympo_jax.runtime.private_directories import make_private_directory
from asympo_jax.runtime.publisher import Publisher
from asympo_jax.runtime.sampler import SamplerLoop
from asympo_jax.runtime.snapshots import SnapshotStore

SKIPPED = 4  # updates or batches at the start of a measurement
BLOCK = 10  # updates that publish, or do not, in turn
_OF_ANOTHER = 2  # updates of a block in which the last one's snapshot may be at work still


def shape(arguments: argparse.Namespace) -> dict[str, Any]:
    """The config of all runs."""
    return {
        "model.width": arguments.width,
        "model.head_width": arguments.width // 4,
        "model.mlp_width": 3 * arguments.width,
        "prompts_per_update": arguments.prompts,
        "sampler.max_response_tokens": arguments.response,
        "warmup.num_steps": 0,
        # Nothing is learnt, so that responses stay as long as those of the roles alone.
        "optimizer.learning_rate": 1e-9,
        "eval.every_updates": 0,
        "eval.num_prompts": 32,
        "eval.process": False,
        "checkpoint.every_updates": 0,
        "log.rollouts_every_updates": 0,
        "log.tensorboard": False,
    }


def _resolved(arguments: argparse.Namespace) -> Any:
    """The experiment of a process that is measured."""
    config = default_config()
    config.update_from_flattened_dict({**shape(arguments), "num_updates": 10**6})
    return resolve(config)


class _Stopwatch:
    """Ends a loop after some seconds and turns, and knows when its turns began."""

    def __init__(self, seconds: float, least: int = SKIPPED + 2):
        self._times: list[float] = []
        self._cpu_times: list[float] = []
        self._seconds = seconds
        self._least = least

    def turn(self) -> None:
        """A turn begins.

        Raises:
            Closed: the time is up.
        """
        self._times.append(time.monotonic())
        self._cpu_times.append(time.process_time())
        enough = len(self._times) > self._least
        if enough and self._times[-1] - self._times[SKIPPED] > self._seconds:
            raise Closed(None)

    def medians(self) -> str:
        """Median seconds a turn of the clock and of CPU time, the first ones left out."""
        return " ".join(str(statistics.median(each)) for each in self._turns())

    def excess_of_odd_blocks(self) -> str:
        """What a turn in an odd block takes above one in the two blocks beside it, as a share.

        Of the clock and of CPU time, each the median over the odd blocks.
        """
        found = []
        for turns in self._turns():
            blocks = [
                statistics.mean(turns[start + _OF_ANOTHER : start + BLOCK])
                for start in range(BLOCK - SKIPPED, len(turns) - BLOCK, BLOCK)
            ]
            # The first block is left out, as it is short: the first one here is odd.
            odd = range(2, len(blocks) - 1, 2)
            found.append(
                statistics.median(2 * blocks[i] / (blocks[i - 1] + blocks[i + 1]) - 1 for i in odd)
            )
        return " ".join(map(str, found))

    def _turns(self) -> list[list[float]]:
        """Seconds of each turn, of the clock and of CPU time, the first ones left out."""
        return [
            [b - a for a, b in itertools.pairwise(times[SKIPPED:])]
            for times in (self._times, self._cpu_times)
        ]


class _EndlessLeases:
    """A source of leases that are always there, each with another snapshot than the last."""

    def __init__(self, stopwatch: _Stopwatch):
        self._stopwatch = stopwatch
        self._number = 0

    def lease(self) -> Lease:
        """The next lease."""
        self._stopwatch.turn()
        self._number += 1
        return Lease(self._number, 0, self._number % 2)

    def submit(self, lease: Lease, groups: Any, busy_s: float, *, read_s: float = 0.0) -> None:
        """Makes the frame that a run would send."""
        wire.encode({"type": "submit", "groups": [wire.group_fields(group) for group in groups]})


class _EndlessGroups:
    """A broker whose batches are always there, until the time is up."""

    closed = Closed(None)  # where it is asked, in good order

    def __init__(self, stopwatch: _Stopwatch, groups: Any):
        self._stopwatch = stopwatch
        self._groups = groups

    def next_batch(self, timeout_s: float) -> Any:
        """The same batch again."""
        self._stopwatch.turn()
        return self._groups

    def complete(self, version: int, trained: Any) -> None:
        """Nothing to account for."""

    def publish(self, version: int) -> None:
        """Nobody waits for it."""

    def close(self, cause: str | None = None) -> None:
        """Nobody waits."""

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}

    def sampling_totals(self) -> SamplingTotals:
        """None."""
        return SamplingTotals()


class _InTurn(SnapshotStore):
    """A store that copies and keeps the snapshots of odd blocks of updates, and no others."""

    _copies = 0

    def copied(self, params: Any) -> Any:
        """The copy, or None."""
        self._copies += 1
        return super().copied(params) if (self._copies - 1) // BLOCK % 2 else None

    def write(self, version: int, params: Any) -> int:
        """Keeps what was copied."""
        return 0 if params is None else super().write(version, params)


def serve_sampler(arguments: argparse.Namespace) -> None:
    """Samples whenever a line comes in."""
    config, parts, params = _start(arguments, 1)
    with tempfile.TemporaryDirectory() as directory:
        store = SnapshotStore(directory, "run")
        for version in (0, 1):
            store.write(version, params)
        for _ in sys.stdin:
            stopwatch = _Stopwatch(arguments.seconds)
            sampler = experiment.make_sampler(config, parts, store)
            SamplerLoop(sampler, _EndlessLeases(stopwatch)).run(sys.exit)
            print(stopwatch.medians(), flush=True)


def serve_learner(arguments: argparse.Namespace) -> None:
    """Trains whenever a line comes in."""
    config, parts, params = _start(arguments, 0)
    needs, key = config.objective.needs, jax.random.key(0)
    snapshots, lock = make_private_directory(None, "benchmark")
    with lock, tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory)
        sampler = experiment.make_sampler(config, parts, SnapshotStore(snapshots, "run"))
        groups = sampler.work(Lease(0, 0, 0), params)
        for side in sys.stdin:
            in_turn = side.strip() == "in turn"
            least = 8 * BLOCK if in_turn else SKIPPED + 2
            stopwatch = _Stopwatch(arguments.seconds, least)
            store = (_InTurn if in_turn else SnapshotStore)(snapshots, "run")
            broker: Any = _EndlessGroups(stopwatch, groups)
            publisher, writer = Publisher(store, broker, 600.0), MetricsWriter(path, 0, False)
            nobody = lambda *_: None  # noqa: E731
            log = EvaluationLog(EvaluationsHere(lambda *_: {}), writer, nobody, nobody, 1, 1.0)
            learner = make_learner(
                config, parts, store, broker, publisher, writer, Progress(10**6), log,
                Compilations(), lambda _: None,
            )  # fmt: skip
            with contextlib.suppress(Closed):
                learner.run(init_state(parts.model, make_optimizer(config.optimizer), key, needs))
            publisher.close(10.0)
            writer.close()
            told = stopwatch.excess_of_odd_blocks() if in_turn else stopwatch.medians()
            print(told, flush=True)
        shutil.rmtree(snapshots, ignore_errors=True)


def _start(arguments: argparse.Namespace, half: int) -> tuple[Any, Any, Any]:
    """Pins this process as a run would; config, parts and parameters."""
    placement.pin(placement.split_cores(placement.available_cores())[half])
    keep_compiled(None)
    config = _resolved(arguments)
    parts = experiment.build_parts(config)
    state = init_state(parts.model, make_optimizer(config.optimizer), jax.random.key(0))
    return config, parts, state.params


SERVE = {"sampler": serve_sampler, "learner": serve_learner}
