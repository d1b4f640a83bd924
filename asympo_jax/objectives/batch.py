"""What an objective may look at: one batch of complete groups, and counts over all of it."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchTotals:
    """Counts over the *whole* batch, however it is split into micro-batches or over devices.

    Attributes:
        num_responses: responses with at least one token.
        num_tokens: tokens in the mask.
        num_degenerate: those of them in groups whose advantages are all 0.
    """

    num_responses: Float[Array, ""]
    num_tokens: Float[Array, ""]
    num_degenerate: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyBatch:
    """What a weight may look at. B = P·G responses of complete groups, in order of groups.

    Attributes:
        logp_BT: log-probabilities under the current policy, at the sampling temperature.
        mask_BT: true for tokens that the policy drew.
        advantage_B: advantage of each response, as the objective changes it; `totals` are of those
            before.
        totals: counts over the whole batch.
        behaviour_logp_BT: log-probabilities that the sampler recorded, or None.
        proximal_logp_BT: log-probabilities under a recent policy, or None.
        reference_logp_BT: log-probabilities under a reference policy, or None.
    """

    logp_BT: Float[Array, "B T"]
    mask_BT: Bool[Array, "B T"]
    advantage_B: Float[Array, " B"]
    totals: BatchTotals
    behaviour_logp_BT: Float[Array, "B T"] | None = None
    proximal_logp_BT: Float[Array, "B T"] | None = None
    reference_logp_BT: Float[Array, "B T"] | None = None


def batch_totals(
    mask_BT: Bool[Array, "B T"], advantage_B: Float[Array, " B"], group_size: int
) -> BatchTotals:
    """The counts of a whole batch of complete groups."""
    flat_P = (advantage_B.reshape(-1, group_size) == 0).all(axis=1)
    has_tokens_B = mask_BT.any(axis=1)
    degenerate_B = has_tokens_B & jnp.repeat(flat_P, group_size)
    return BatchTotals(
        num_responses=has_tokens_B.sum().astype(advantage_B.dtype),
        num_tokens=mask_BT.sum().astype(advantage_B.dtype),
        num_degenerate=degenerate_B.sum().astype(advantage_B.dtype),
    )
