"""The learner's loop: take a batch, update, publish, account."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from asympo_jax.learning import TrainState, informative_groups, make_batch
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.evaluations import EvaluationLog
from asympo_jax.runtime.metrics import MetricsWriter, write_rollouts
from asympo_jax.runtime.pipeline import PipelineMeter
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.tasks import RewardError
from asympo_jax.tokenizers import Tokenizer
from asympo_jax.types import Batch, GradingFailure, Group, StopReason


class NonFinite(Exception):
    """A loss, a gradient or parameters that are not finite; nothing of them was published."""


@dataclasses.dataclass(frozen=True)
class Cadence:
    """What happens every so many updates; 0 is never.

    Attributes:
        evaluate: evaluation.
        checkpoint: checkpoints.
        rollouts: readable samples.
        rollouts_groups: groups written each time.
        gradients: norms and angle of the two halves of the gradient.
    """

    evaluate: int
    checkpoint: int
    rollouts: int
    rollouts_groups: int
    gradients: int

    def is_evaluated(self, version: int) -> bool:
        """Whether a version is, besides the first and the last."""
        return _due(version, self.evaluate)


@dataclasses.dataclass(frozen=True)
class Learner:
    """The loop and what it needs; everything that may fail is handed in.

    Attributes:
        step: (state, batch) -> (state, metrics), the state given is donated.
        sign_gradients: (state, batch) -> metrics of the two halves of the gradient.
        broker: where batches come from.
        store: where snapshots go.
        pacing: order, lag and sizes.
        prompts_per_update: groups trained on, at most those sampled (P).
        group_size: G.
        num_positions: T of a batch.
        tokenizer: to write readable samples.
        num_samplers: for the share of time that they are idle.
        stall_s: seconds to wait for a group.
        cadence: what happens how often.
        workdir: the run's directory.
        writer: metrics.
        sample: called before each batch is taken; the synchronous loop samples here.
        evaluations: where they are asked for and written down.
        save: called with the state when a checkpoint is due.
        show: called with each update's metrics, for people.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]
    sign_gradients: Callable[[TrainState, Batch], dict[str, Any]]
    broker: Broker
    store: SnapshotStore
    pacing: Pacing
    prompts_per_update: int
    group_size: int
    num_positions: int
    tokenizer: Tokenizer
    num_samplers: int
    stall_s: float
    cadence: Cadence
    workdir: pathlib.Path
    writer: MetricsWriter
    sample: Callable[[], None]
    evaluations: EvaluationLog
    save: Callable[[TrainState], None]
    show: Callable[[int, dict[str, float]], None]

    def run(self, state: TrainState) -> TrainState:
        """Updates until `num_updates`; returns the last state, which is not evaluated yet.

        Raises:
            Closed: a sampler failed; it carries the cause.
            Stalled: no group came in within `stall_s`.
            EvaluatorEnded: there will be no more evaluations.
            NonFinite: a loss, a gradient or parameters are not finite.
            RewardError: no group of an update could be graded.
        """
        meter = PipelineMeter(self.num_samplers)
        for update in range(int(state.update), self.pacing.num_updates):
            start = time.monotonic()
            self.sample()
            candidates = self.broker.next_batch(self.stall_s)
            taken = time.monotonic()
            version = update + 1
            chosen = informative_groups(candidates, self.prompts_per_update)
            batch = make_batch(chosen, self.group_size, self.num_positions)
            groups = _graded(chosen, update)
            due = _due(version, self.cadence.gradients)
            more_metrics = self.sign_gradients(state, batch) if due else {}
            state, step_metrics = self.step(state, batch)
            _require_finite(update, step_metrics)
            # Publish before anything else is done with this update: samplers may be waiting.
            self.store.write(version, state.params)
            self.broker.complete(version, {group.ticket for group in groups})
            needed = self.evaluations.evaluations.outstanding()
            self.store.prune(version - self.pacing.max_lag, needed)
            trained = time.monotonic()
            step_metrics |= more_metrics
            metrics = {name: float(value) for name, value in step_metrics.items()}
            metrics |= group_metrics(groups, update) | self.broker.metrics()
            meter.add(taken - start, trained - taken, groups, self.broker.sampling_totals())
            metrics |= meter.metrics()
            is_last = version == self.pacing.num_updates
            if self.cadence.is_evaluated(version) and not is_last:
                metrics["eval/left_out"] = not self.evaluations.request(version, state.policy)
            self.writer.write(version, metrics, {"lag/histogram": lags_of(groups, update)})
            self.evaluations.collect()
            self.show(version, metrics)
            if _due(version, self.cadence.rollouts):
                path = self.workdir / "rollouts" / f"update_{version:08d}.jsonl"
                shown = groups[: self.cadence.rollouts_groups]
                write_rollouts(path, shown, update, self.tokenizer)
            if _due(version, self.cadence.checkpoint) and not is_last:
                self.save(state)
        return state


def lags_of(groups: Sequence[Group], update: int) -> list[int]:
    """How many updates each group that an update trains on is late."""
    return [update - group.version for group in groups]


def group_metrics(groups: Sequence[Group], update: int) -> dict[str, float]:
    """Lag and stop reasons of the groups that an update trained on."""
    lags = lags_of(groups, update)
    stops = np.concatenate([group.stop_G for group in groups])
    return {
        "lag/mean": float(np.mean(lags)),
        "lag/max": float(max(lags)),
        "response/truncated_share": float((stops == StopReason.LENGTH).mean()),
    }


def _graded(chosen: Sequence[Group], update: int) -> list[Group]:
    """The groups that an update trains on: those of a batch that could be graded."""
    graded = [group for group in chosen if group.is_graded]
    if not graded:
        kinds = np.concatenate([group.failure_G for group in chosen if group.failure_G is not None])
        counts = ", ".join(f"{(kinds == kind).sum()} {kind.name}" for kind in GradingFailure)
        raise RewardError(
            f"update {update}: none of its {len(chosen)} groups could be graded; its responses by "
            f"what became of them: {counts.lower()}"
        )
    return graded


def _due(version: int, every: int) -> bool:
    """Whether something that happens every so many updates is due after this one."""
    return every > 0 and version % every == 0


def _require_finite(update: int, metrics: dict[str, Any]) -> None:
    """Refuses an update that would publish NaN or infinity; waits for the device."""
    names = ("loss", "grad/norm", "params/norm")
    values = jax.device_get([metrics[name] for name in names])
    if not all(math.isfinite(value) for value in values):
        found = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        raise NonFinite(f"update {update}: {found} must be finite; nothing of it was published")
