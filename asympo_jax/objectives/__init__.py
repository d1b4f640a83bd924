"""Rewards to advantages to token weights to one loss. Pure functions of arrays."""

from asympo_jax.objectives.advantages import degenerate_groups, group_advantages
from asympo_jax.objectives.batch import BatchTotals, PolicyBatch, batch_totals
from asympo_jax.objectives.diagnostics import diagnostics
from asympo_jax.objectives.loss import aggregate_loss, metrics_of, policy_loss, token_weight
from asympo_jax.objectives.ratios import log_ratio
from asympo_jax.objectives.registry import Aggregation, Need, Objective, make, names

__all__ = [
    "Aggregation",
    "BatchTotals",
    "Need",
    "Objective",
    "PolicyBatch",
    "aggregate_loss",
    "batch_totals",
    "degenerate_groups",
    "diagnostics",
    "group_advantages",
    "log_ratio",
    "make",
    "metrics_of",
    "names",
    "policy_loss",
    "token_weight",
]
