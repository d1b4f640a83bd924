"""Groups to batches, batches to updates; and the supervised warm-up before them."""

from asympo_jax.learning.batching import informative_groups, make_batch
from asympo_jax.learning.optimizer import OptimizerConfig, make_optimizer
from asympo_jax.learning.train_step import (
    StepConfig,
    TrainState,
    init_state,
    make_sign_gradients,
    make_train_step,
    state_from_params,
)
from asympo_jax.learning.warmup import (
    WarmupConfig,
    demonstration_batches,
    make_warmup_optimizer,
    make_warmup_step,
)

__all__ = [
    "OptimizerConfig",
    "StepConfig",
    "TrainState",
    "WarmupConfig",
    "demonstration_batches",
    "informative_groups",
    "init_state",
    "make_batch",
    "make_optimizer",
    "make_sign_gradients",
    "make_train_step",
    "make_warmup_optimizer",
    "make_warmup_step",
    "state_from_params",
]
