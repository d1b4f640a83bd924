"""Token weights: what tells one objective from another.

Each function takes a `PolicyBatch` and its options and returns a weight for every token, [B, T], or
for every response, [B, 1]. The loss stops the gradient of the weight, so these need not. Entries
outside the mask may hold anything.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from asympo_jax.objectives.batch import PolicyBatch
from asympo_jax.objectives.masked import masked_share, response_mean

# exp(20) is 5e8: beyond it a ratio carries no information, and float32 overflows at 88.
_MAX_LOG_RATIO = 20.0


def log_ratio(batch: PolicyBatch) -> Float[Array, "B T"]:
    """`log r = logp − behaviour_logp`, clamped to ±20; 0 outside the mask."""
    assert batch.behaviour_logp_BT is not None
    difference_BT = jnp.where(batch.mask_BT, batch.logp_BT - batch.behaviour_logp_BT, 0.0)
    return jnp.clip(difference_BT, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def reinforce(batch: PolicyBatch) -> Float[Array, "B 1"]:
    """`w = 1`: the naive policy gradient. Its value mean(A ℓ̄) is not 0 although ΣA = 0."""
    return jnp.ones_like(batch.advantage_B)[:, None]


def gpg(batch: PolicyBatch) -> Float[Array, "B 1"]:
    """`w = B / (B − M)`, M the responses in groups without signal. arXiv:2504.02546."""
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


def report_nothing(batch: PolicyBatch, **options: float) -> dict[str, Array]:
    """No metrics of its own."""
    del batch, options
    return {}


def report_floor(batch: PolicyBatch, floor: float = 1e-3) -> dict[str, Array]:
    """`weight/floor_share`: share of responses whose NLL is at or below the floor of `asympo`.

    Those have less than their zero-sum share of the loss.
    """
    nll_B = response_mean(-batch.logp_BT, batch.mask_BT)
    return {"weight/floor_share": masked_share(nll_B <= floor, batch.mask_BT.any(axis=1))}


def grpo(
    batch: PolicyBatch,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = float("inf"),
) -> Float[Array, "B T"]:
    """`w = r · keep`: the gradient of PPO's clipped surrogate per token. arXiv:2402.03300.

    Args:
        batch: the responses, with behaviour log-probs.
        clip_low: ε_lo; a negative token is dropped where r < 1 − ε_lo.
        clip_high: ε_hi; a positive token is dropped where r > 1 + ε_hi.
        dual_clip: c; a negative token is dropped where r > c (arXiv:1912.09729).
    """
    dropped = _clipped(batch, clip_low, clip_high, dual_clip)
    dropped_BT = functools.reduce(jnp.logical_or, dropped.values())
    return jnp.where(dropped_BT, 0.0, jnp.exp(log_ratio(batch)))


def report_clip(
    batch: PolicyBatch,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = float("inf"),
) -> dict[str, Array]:
    """`clip/{high,low,cap}`: share of tokens that `grpo` drops for each reason."""
    dropped = _clipped(batch, clip_low, clip_high, dual_clip)
    return {
        f"clip/{name}": masked_share(dropped_BT, batch.mask_BT)
        for name, dropped_BT in dropped.items()
    }


def _clipped(
    batch: PolicyBatch, clip_low: float, clip_high: float, dual_clip: float
) -> dict[str, Bool[Array, "B T"]]:
    """Tokens that a clipped surrogate gives no gradient, by the bound that they are beyond."""
    ratio_BT = jnp.exp(log_ratio(batch))
    advantage_B1 = batch.advantage_B[:, None]
    return {
        "high": (advantage_B1 > 0) & (ratio_BT > 1 + clip_high),
        "low": (advantage_B1 < 0) & (ratio_BT < 1 - clip_low),
        "cap": (advantage_B1 < 0) & (ratio_BT > dual_clip),
    }
