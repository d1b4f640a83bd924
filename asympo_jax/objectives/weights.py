"""Token weights of objectives that look at the current policy alone.

A weight is what tells one objective from another. Each function takes a `PolicyBatch` and its
options and returns a weight for every token, [B, T], or for every response, [B, 1]. The loss stops
the gradient of the weight, so these need not. Entries outside the mask may hold anything.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from asympo_jax.objectives.batch import PolicyBatch
from asympo_jax.objectives.masked import masked_share, response_mean


def reinforce(batch: PolicyBatch) -> Float[Array, "B 1"]:
    """`w = 1`: the naive policy gradient. Its value mean(A ℓ̄) is not 0 although ΣA = 0."""
    return jnp.ones_like(batch.advantage_B)[:, None]


def gpg(batch: PolicyBatch) -> Float[Array, "B 1"]:
    """`w = B / (B − M)`, M the responses in groups whose advantages are all 0. arXiv:2504.02546.

    Differs from the paper: batches with few other groups are trained on, not sampled again.
    """
    total = batch.totals.num_responses
    with_signal = jnp.maximum(total - batch.totals.num_degenerate, 1.0)
    return jnp.broadcast_to(total / with_signal, batch.advantage_B.shape)[:, None]


def spo(batch: PolicyBatch, alpha: float = 0.25) -> Float[Array, "B 1"]:
    """`w = 1 if A ≥ 0 else α`: Scaled Policy Optimization, the fixed-scale baseline of ASymPO.

    arXiv:2606.03070. Differs from the paper: its α is not public; 0.25 is this project's choice.

    Args:
        batch: the responses.
        alpha: scale of negative responses, 0 … 1. 1 is `reinforce`, 0 keeps positives only.
    """
    return jnp.where(batch.advantage_B >= 0, 1.0, alpha)[:, None]


def asympo(batch: PolicyBatch, floor: float = 1e-3) -> Float[Array, "B 1"]:
    """`w_i = 1 / max(ℓ̄_i, floor)`, ℓ̄_i the response's current mean token NLL. arXiv:2606.03070.

    With it the value of the loss is mean(A), 0 for zero-sum advantages, and its gradient is that of
    mean(A log ℓ̄). The weight's gradient is stopped; without that the gradient would be 0.

    Args:
        batch: the responses.
        floor: smallest NLL (nats per token) that is divided by; bounds the weight by 1/floor.
    """
    nll_B = response_mean(-batch.logp_BT, batch.mask_BT)
    return (1.0 / jnp.maximum(nll_B, floor))[:, None]


def w_reinforce(batch: PolicyBatch, positive_scale: float = 0.1) -> Float[Array, "B 1"]:
    """`w = λ if A ≥ 0 else 1`: mistakes teach most. arXiv:2506.01347.

    Differs from the paper: the group's advantage instead of a reward of ±1 without a baseline.

    Args:
        batch: the responses.
        positive_scale: λ.
    """
    return jnp.where(batch.advantage_B >= 0, positive_scale, 1.0)[:, None]


def report_nothing(batch: PolicyBatch) -> dict[str, Array]:
    """No metrics of its own."""
    del batch
    return {}


def report_floor(batch: PolicyBatch, floor: float = 1e-3) -> dict[str, Array]:
    """`weight/floor_share`: share of responses whose NLL is at or below the floor of `asympo`.

    Those have less than their zero-sum share of the loss.
    """
    nll_B = response_mean(-batch.logp_BT, batch.mask_BT)
    return {"weight/floor_share": masked_share(nll_B <= floor, batch.mask_BT.any(axis=1))}
