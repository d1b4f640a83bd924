"""Batches of responses for the tests of objectives, and losses compiled once for all of them."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from asympo_jax import objectives


@dataclasses.dataclass(frozen=True)
class Case:
    """What `policy_loss` takes, as NumPy arrays."""

    logp_BT: np.ndarray
    mask_BT: np.ndarray
    advantage_B: np.ndarray
    behaviour_logp_BT: np.ndarray
    group_size: int

    def rows(self, order) -> "Case":
        """The responses in another order, or some of them."""
        return dataclasses.replace(
            self,
            logp_BT=self.logp_BT[order],
            mask_BT=self.mask_BT[order],
            advantage_B=self.advantage_B[order],
            behaviour_logp_BT=self.behaviour_logp_BT[order],
        )

    def padded_with(self, value: float) -> "Case":
        """`value` wherever no token was drawn."""
        return dataclasses.replace(
            self,
            logp_BT=np.where(self.mask_BT, self.logp_BT, value).astype(self.logp_BT.dtype),
            behaviour_logp_BT=np.where(self.mask_BT, self.behaviour_logp_BT, value).astype(
                self.logp_BT.dtype
            ),
        )


def make_case(seed: int = 0, dtype: type = np.float32) -> Case:
    """Four groups of three: ragged prompts and responses, ratios far from 1, group 1 all equal."""
    rng = np.random.default_rng(seed)
    num_groups, group_size, num_positions = 4, 3, 8
    num_rows = num_groups * group_size
    start_B = np.repeat(rng.integers(1, 3, num_groups), group_size)
    length_B = rng.integers(1, num_positions - 2, num_rows)
    length_B[0] = 1
    position_T = np.arange(num_positions)[None]
    mask_BT = (position_T >= start_B[:, None]) & (position_T < (start_B + length_B)[:, None])
    # Confident, unsure and mixed responses: their mean NLLs differ by an order of magnitude.
    scale_B1 = np.exp(rng.normal(size=(num_rows, 1)))
    logp_BT = -scale_B1 * rng.uniform(0.1, 1.5, (num_rows, num_positions))
    rewards_PG = rng.normal(size=(num_groups, group_size))
    rewards_PG[1] = 0.7
    advantage_PG = rewards_PG - rewards_PG.mean(axis=1, keepdims=True)
    advantage_PG[1] = 0.0
    return Case(
        logp_BT=logp_BT.astype(dtype),
        mask_BT=mask_BT,
        advantage_B=advantage_PG.reshape(-1).astype(dtype),
        behaviour_logp_BT=(logp_BT + rng.normal(size=logp_BT.shape)).astype(dtype),
        group_size=group_size,
    )


def value_metrics_gradient(name: str, case: Case, **options: Any) -> tuple[Any, Any, Any]:
    """Loss, metrics and gradient with respect to the log-probs, as NumPy arrays."""
    compiled = _compiled(name, tuple(options.items()), case.group_size)
    (loss, metrics), gradient_BT = compiled(
        case.logp_BT, case.mask_BT, case.advantage_B, case.behaviour_logp_BT
    )
    return np.asarray(loss), jax.tree.map(np.asarray, metrics), np.asarray(gradient_BT)


@functools.cache
def _compiled(name: str, options: tuple[tuple[str, Any], ...], group_size: int) -> Any:
    """The jitted value and gradient of one objective; always with behaviour log-probs."""
    objective = objectives.make(name, **dict(options))

    def loss(logp_BT, mask_BT, advantage_B, behaviour_logp_BT):
        return objectives.policy_loss(
            objective,
            logp_BT,
            mask_BT,
            advantage_B,
            group_size=group_size,
            behaviour_logp_BT=behaviour_logp_BT,
        )

    return jax.jit(jax.value_and_grad(loss, has_aux=True))
