"""The learner's loop: take a batch, update, hand over to be published, account for the one before.

While the device works on an update, this thread packs the batch of the next one and queues its
step; whatever needs numbers from the device comes one update later.
"""

import contextlib
import dataclasses
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from asympo_jax.learning import TrainState, informative_groups, make_batch
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.checkpoint import CheckpointRefused
from asympo_jax.runtime.evaluations import EvaluationLog, EvaluatorEnded
from asympo_jax.runtime.leases import Closed, Stalled
from asympo_jax.runtime.metrics import MetricsWriter
from asympo_jax.runtime.pipeline import PipelineMeter
from asympo_jax.runtime.publisher import Published, Publisher, Update, spans
from asympo_jax.runtime.reward_alarm import RewardAlarm
from asympo_jax.runtime.snapshots import SnapshotRefused, SnapshotStore
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.tasks import RewardError
from asympo_jax.tokenizers import Tokenizer
from asympo_jax.types import Batch, Group, StopReason

# What ends a run between two updates, and never between a step and its completion: the state that
# the step before returned is whole.
_BETWEEN_UPDATES = (Closed, Stalled, RewardError, EvaluatorEnded)


@dataclasses.dataclass(frozen=True)
class Cadence:
    """What happens every so many updates; 0 is never.

    Attributes:
        evaluate: evaluation.
        rollouts: readable samples, and of the first update, which the initial parameters drew.
        rollouts_groups: groups written each time.
        gradients: norms and angle of the two halves of the gradient.
    """

    evaluate: int
    rollouts: int
    rollouts_groups: int
    gradients: int

    def is_evaluated(self, version: int) -> bool:
        """Whether a version is, besides the first and the last."""
        return _due(version, self.evaluate)

    def shows_rollouts(self, version: int) -> bool:
        """Whether samples of an update are written."""
        return self.rollouts > 0 and (version == 1 or _due(version, self.rollouts))


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
        alarm: looks at what could not be graded.
        publisher: what updates are handed over to.
        meter: of the pipeline.
        in_step: whether each update is published before the next batch is asked for.
        stall_s: seconds to wait for a group.
        cadence: what happens how often.
        writer: metrics.
        sample: called before each batch is taken; the synchronous loop samples here.
        evaluations: where they are asked for and written down.
        is_save_due: called with each version once, whether a checkpoint is due after it.
        save: called with the state then.
        show: called with each update's metrics and groups, for people.
        announce: called with the groups of a batch before the device is given anything of it, and
            whether the halves of the gradient are asked for.
        compiled: called with a version once its update was given to the device; metrics of what
            was compiled so far.
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
    alarm: RewardAlarm
    publisher: Publisher
    meter: PipelineMeter
    in_step: bool
    stall_s: float
    cadence: Cadence
    writer: MetricsWriter
    sample: Callable[[], None]
    evaluations: EvaluationLog
    is_save_due: Callable[[int], bool]
    save: Callable[[TrainState], None]
    show: Callable[[int, dict[str, float], Sequence[Group]], None]
    announce: Callable[[Sequence[Group], bool], None]
    compiled: Callable[[int], Mapping[str, float]]

    def run(self, state: TrainState) -> TrainState:
        """Updates until `num_updates`; returns the last state, which is not evaluated yet.

        Where the broker is closed without a cause the run was asked to stop: the last state is that
        of an earlier update, and its snapshot is published. A failure between two updates loses
        none of them: the state is saved before it is raised.

        Raises:
            Closed: a sampler failed; it carries the cause.
            Stalled: no group came in within `stall_s`.
            EvaluatorEnded: there will be no more evaluations.
            NonFinite: too many updates in a row were not finite.
            RewardError: too few groups could be graded.
        """
        try:
            for version in range(int(state.update) + 1, self.pacing.num_updates + 1):
                state, update = self._update(state, version)
                # The line of an update is written while the next one runs.
                self._account(self.publisher.hand_over(update))
                is_saved = self.is_save_due(version)
                if is_saved or self._must_wait(version):
                    self._follow_up(state, version, is_saved)
            return state
        except _BETWEEN_UPDATES:
            self._settle()
            closed = self.broker.closed
            if closed is not None and closed.cause is None:
                return state
            # What broke while it was published has been raised: it is finite and has its snapshot.
            if int(state.update):
                # Where that fails, too, the run has another cause to end.
                with contextlib.suppress(CheckpointRefused, SnapshotRefused):
                    self.save(state)
            raise
        except Exception:
            self._settle()
            raise

    def _settle(self) -> None:
        """Writes down what is published; raises what broke there, as that is the cause."""
        with contextlib.suppress(EvaluatorEnded):  # evaluations are made up for by the next attempt
            self._account(self.publisher.wait())

    def _update(self, state: TrainState, version: int) -> tuple[TrainState, Update]:
        """Takes a batch and gives its update to the device, for which it does not wait."""
        update, asked = version - 1, time.monotonic()
        self.sample()
        candidates = self.broker.next_batch(self.stall_s)
        taken = time.monotonic()
        self.alarm.check(candidates, update)
        chosen = informative_groups(candidates, self.prompts_per_update)
        batch = make_batch(chosen, self.group_size, self.num_positions)
        groups = [group for group in chosen if group.is_graded]
        due = _due(version, self.cadence.gradients)
        self.announce(chosen, due)
        more_metrics = self.sign_gradients(state, batch) if due else {}
        state, metrics = self.step(state, batch)
        params = self.store.copied(state.params)
        self.broker.complete(version, {group.ticket for group in groups})
        return state, Update(
            version=version,
            params=params,
            metrics=metrics | more_metrics,
            groups=groups,
            num_candidates=len(candidates),
            counts={
                **group_metrics(groups, update),
                **self.broker.metrics(),
                **self.compiled(version),
            },
            asked=asked,
            taken=taken,
            batch=chosen,
        )

    def _must_wait(self, version: int) -> bool:
        """Whether an update must be published before the next one begins."""
        is_due = self.cadence.is_evaluated(version)
        return self.in_step or is_due or version == self.pacing.num_updates

    def _follow_up(self, state: TrainState, version: int, is_saved: bool) -> None:
        """What needs the newest update: its evaluation and its checkpoint."""
        published = self.publisher.wait()
        more, is_last = {}, version == self.pacing.num_updates
        try:
            if self.cadence.is_evaluated(version) and not is_last:
                more = {"eval/left_out": not self.evaluations.request(version, state.policy)}
        finally:
            self._account(published, more)
        if is_saved and not is_last:
            self.save(state)

    def _account(
        self, published: Sequence[Published], more: Mapping[str, float] = types.MappingProxyType({})
    ) -> None:
        """Writes down updates that are published, and forgets snapshots that nothing needs."""
        for one in published:
            update, version = one.update, one.update.version
            needed = {*self.evaluations.evaluations.outstanding()}
            oldest = version - self.pacing.max_lag
            if self.pacing.order == "ticket":  # else samplers may be at work with any that is newer
                oldest, needed = version, needed | self.pacing.versions_to_resume(version)
            self.store.prune(oldest, needed)
            self.meter.add(one)
            metrics = one.metrics | dict(update.counts) | self.meter.metrics() | dict(more)
            metrics |= self.writer.metrics()
            lags = {"lag/histogram": lags_of(update.groups, version - 1)}
            self.writer.write(version, metrics, lags)
            self.writer.write_times(version, spans(one), self.broker.handed_in())
            self.show(version, metrics, update.groups)
            if self.cadence.shows_rollouts(version):
                shown = update.groups[: self.cadence.rollouts_groups]
                self.writer.write_rollouts(version, shown, self.tokenizer)
        self.evaluations.collect()  # last: it may raise, and no line of an update is lost


def lags_of(groups: Sequence[Group], update: int) -> list[int]:
    """How many updates each group that an update trains on is late."""
    return [update - group.version for group in groups]


def group_metrics(groups: Sequence[Group], update: int) -> dict[str, float]:
    """Lag and stop reasons of the groups that an update trained on; NaN where there are none."""
    if not groups:
        return dict.fromkeys(("lag/mean", "lag/max", "response/truncated_share"), float("nan"))
    lags = lags_of(groups, update)
    stops = np.concatenate([group.stop_G for group in groups])
    return {
        "lag/mean": float(np.mean(lags)),
        "lag/max": float(max(lags)),
        "response/truncated_share": float((stops == StopReason.LENGTH).mean()),
    }


def _due(version: int, every: int) -> bool:
    """Whether something that happens every so many updates is due after this one."""
    return every > 0 and version % every == 0
