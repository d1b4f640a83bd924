"""Groups to batches, batches to updates; and the supervised warm-up before them."""

from asympo_jax.learning.batching import informative_groups, make_batch
from asympo_jax.learning.optimizer import OptimizerConfig, make_optimizer
from asympo_jax.learning.packing import PackedBatch, Packing, pack, shardings_of_packed, spread
from asympo_jax.learning.train_state import (
    StepConfig,
    TrainState,
    init_state,
    state_from_params,
)
from asympo_jax.learning.train_step import Packed, make_sign_gradients, make_train_step
from asympo_jax.learning.warmup import (
    WarmupConfig,
    demonstration_batches,
    make_warmup_optimizer,
    make_warmup_step,
)

__all__ = [
    "OptimizerConfig",
    "Packed",
    "PackedBatch",
    "Packing",
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
    "pack",
    "shardings_of_packed",
    "spread",
    "state_from_params",
]
