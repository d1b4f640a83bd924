"""Ratios of probabilities: current to behaviour policy, of tokens and of whole responses."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from asympo_jax.objectives.batch import PolicyBatch
from asympo_jax.objectives.masked import masked, response_mean

# exp(20) is 5e8: beyond it a ratio carries no information, and float32 overflows at 88.
_MAX_LOG_RATIO = 20.0


def log_ratio(
    numerator_BT: Float[Array, "B T"],
    denominator_BT: Float[Array, "B T"] | None,
    mask_BT: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """Difference of two log-probs, clamped to ±20; 0 outside the mask."""
    assert denominator_BT is not None
    return _clamped(masked(numerator_BT - denominator_BT, mask_BT))


def token_log_ratio(batch: PolicyBatch) -> Float[Array, "B T"]:
    """Log of the ratio r."""
    return log_ratio(batch.logp_BT, batch.behaviour_logp_BT, batch.mask_BT)


def _exact_log_ratio(batch: PolicyBatch) -> Float[Array, "B T"]:
    """Log of the ratio r as it is, to be clamped once it is summed over a response."""
    assert batch.behaviour_logp_BT is not None
    return masked(batch.logp_BT - batch.behaviour_logp_BT, batch.mask_BT)


def _clamped(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
    """A log-ratio whose exponential is finite."""
    return jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def token_ratio(batch: PolicyBatch) -> Float[Array, "B T"]:
    """The ratio r."""
    return jnp.exp(token_log_ratio(batch))


def flipped_ratio(batch: PolicyBatch) -> Float[Array, "B T"]:
    """1/r where the advantage is positive, r elsewhere."""
    log_ratio_BT = token_log_ratio(batch)
    return jnp.exp(jnp.where(batch.advantage_B[:, None] > 0, -log_ratio_BT, log_ratio_BT))


def sequence_ratio(batch: PolicyBatch) -> Float[Array, "B T"]:
    """The ratio s, the same for all tokens of a response."""
    mean_B = response_mean(_exact_log_ratio(batch), batch.mask_BT)
    return jnp.broadcast_to(jnp.exp(_clamped(mean_B))[:, None], batch.mask_BT.shape)


def product_of_ratios(batch: PolicyBatch) -> Float[Array, " B"]:
    """The ratio W of whole responses."""
    return jnp.exp(_clamped(_exact_log_ratio(batch).sum(axis=1)))


def decoupled_ratios(batch: PolicyBatch) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """exp(x − b) and r_x."""
    x_BT = batch.proximal_logp_BT
    assert x_BT is not None
    behind_BT = log_ratio(x_BT, batch.behaviour_logp_BT, batch.mask_BT)
    return jnp.exp(behind_BT), jnp.exp(log_ratio(batch.logp_BT, x_BT, batch.mask_BT))
