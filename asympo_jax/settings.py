"""A resolved experiment: what a config comes to when every field was checked."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from asympo_jax.learning import OptimizerConfig, StepConfig, WarmupConfig
from asympo_jax.models import LoraConfig
from asympo_jax.objectives import Objective
from asympo_jax.outputs import CheckpointConfig, LogConfig
from asympo_jax.runtime import ray_cluster
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.sections import (
    EvalConfig,
    LearnerConfig,
    RewardConfig,
    SamplerConfig,
)

_MAX_STALL_S = 1e6


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """A whole experiment, checked. Sections are as in `default_config`.

    Attributes:
        seed: seed of prompts and draws.
        init_seed: seed of the initial parameters, and so of the warm-up; None for `seed`.
        prompts_per_update: groups that an update trains on (P).
        group_size: responses a prompt (G).
        pacing: order, lag and sizes of the run.
        queue_capacity: bound of the queue: groups finished, and room reserved for those at work;
            None for as many batches as the lag, and one at least.
        objective: with its options.
        step: what the learner's step computes.
        task_name: name of a task of the package, or import path of another.
        task_options: of the task's constructor.
        reward: what the task's reward becomes.
        model: fields of `ModelConfig`; the task's tokenizer gives `vocab_size`.
        preset: the published shape that the decoder has, a directory's must be that; of `model`
            only `dtype` counts then. Empty for none.
        hf_dir: Hugging Face directory that gives the shape and the initial parameters instead; of
            `model` only `dtype` counts then. None for random ones.
        lora: adapters that are trained instead of the whole decoder.
        optimizer: of the learner.
        learner: its platform and memory.
        sampler: processes and draws.
        warmup: supervised steps before.
        warmup_dir: where warm-ups are kept; None for beside the workdir.
        eval: evaluation.
        checkpoint: checkpoints.
        log: what is written.
        runtime_name: `local`, samplers in processes of this machine, `ray`, as actors of a Ray
            cluster, or `sync`, one process that samples and trains in turn.
        stall_s: seconds that the learner waits for a group, or for an update to be published or
            saved, before it gives up.
        lease_s: seconds that a sampler may have a lease, the compilation of its programs included,
            before it is killed and the lease given out again, and from its start to its first
            request for one; half of `stall_s` unless it is set.
        max_restarts: times that each sampler is started again in an attempt at the run, counted
            anew once it has handed in 20 leases without a restart.
        snapshot_dir: where snapshots are put; None for the RAM disk. With several processes of the
            learner it must be a directory that all hosts share, where each writes its part; on the
            RAM disk the first process writes all, which is gathered for it.
        compilation_cache: where compiled programs are kept; None for `$ASYMPO_CACHE/xla`, else
            `~/.cache/asympo_jax/xla`; empty for nowhere.
        source: the resolved ConfigDict as plain data, what `config.json` holds.
    """

    seed: int
    init_seed: int
    prompts_per_update: int
    group_size: int
    pacing: Pacing
    queue_capacity: int
    objective: Objective
    step: StepConfig
    task_name: str
    task_options: Mapping[str, Any]
    reward: RewardConfig
    model: Mapping[str, Any]
    preset: str
    hf_dir: str | None
    lora: LoraConfig
    optimizer: OptimizerConfig
    learner: LearnerConfig
    sampler: SamplerConfig
    warmup: WarmupConfig
    warmup_dir: str | None
    eval: EvalConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    runtime_name: str
    stall_s: float
    lease_s: float
    max_restarts: int
    snapshot_dir: str | None
    compilation_cache: str | None
    source: Mapping[str, Any]

    def __post_init__(self):
        """Refuses waits that no clock can count, or that leave no time for a second attempt."""
        if not 0 < self.stall_s <= _MAX_STALL_S:
            raise ValueError(
                f"runtime.stall_s={self.stall_s}: must be positive and at most {_MAX_STALL_S:.0f}"
            )
        if not 0 < self.lease_s < self.stall_s:
            raise ValueError(
                f"runtime.lease_s={self.lease_s}: must be positive and below "
                f"runtime.stall_s={self.stall_s}, which ends the run"
            )
        if self.max_restarts < 0:
            raise ValueError(f"runtime.max_restarts={self.max_restarts}: must be at least 0")

    def check_installed(self) -> None:
        """Refuses what only a run needs and this machine does not have.

        Raises:
            ValueError: naming the field, its value and what is missing.
        """
        self.log.check_installed()
        if self.runtime_name == "ray":
            ray_cluster.check_environment()

    @property
    def sha256(self) -> str:
        """Of all fields, to compare what processes were started with."""
        text = json.dumps(self.source, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
