"""What to watch: scale imbalance, balance of the loss, weights and ratios.

Everything here is a scalar without gradient, of the type of the log-probs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from asympo_jax.objectives.batch import PolicyBatch
from asympo_jax.objectives.masked import masked, masked_mean, response_mean
from asympo_jax.objectives.ratios import log_ratio


def diagnostics(batch: PolicyBatch, weight_BT: Float[Array, "B T"]) -> dict[str, Float[Array, ""]]:
    """The metrics of a whole batch under one objective.

    Returns:
        `nll/positive`, `nll/negative` (nats per token, mean over responses with A > 0, A < 0; NaN
        without any), `nll/ratio` (negative over positive: the scale imbalance);
        `balance/{positive,negative,net}`: mean over responses of mean over tokens of −w A logp,
        its two halves and their sum. Where tokens are aggregated by `response_mean`, net is the
        loss; it is 0 for `asympo` while no response is at the floor;
        `weight/{mean,max,ess}` over tokens, ess = (Σw)² / (N Σw²);
        `group/degenerate_share`; `response/length`;
        `ratio/{mean,max,ess,kl_k1,kl_k3,chi2,m2}` where behaviour log-probs are recorded.
    """
    batch = jax.tree.map(jax.lax.stop_gradient, batch)
    weight_BT = jax.lax.stop_gradient(weight_BT)
    mask_BT, advantage_B = batch.mask_BT, batch.advantage_B
    nll_BT = masked(-batch.logp_BT, mask_BT)
    nll_B = response_mean(nll_BT, mask_BT)
    has_tokens_B = mask_BT.any(axis=1)
    positive_B, negative_B = (advantage_B > 0) & has_tokens_B, (advantage_B < 0) & has_tokens_B
    nll_positive, nll_negative = (
        jnp.where(half_B.any(), masked_mean(nll_B, half_B), jnp.nan)
        for half_B in (positive_B, negative_B)
    )
    value_B = advantage_B * response_mean(weight_BT * nll_BT, mask_BT)
    num_responses = jnp.maximum(batch.totals.num_responses, 1.0)
    balance_positive = masked(value_B, positive_B).sum() / num_responses
    balance_negative = masked(value_B, negative_B).sum() / num_responses
    metrics = {
        "nll/positive": nll_positive,
        "nll/negative": nll_negative,
        "nll/ratio": nll_negative / jnp.maximum(nll_positive, 1e-6),
        "balance/positive": balance_positive,
        "balance/negative": balance_negative,
        "balance/net": balance_positive + balance_negative,
        "weight/mean": masked_mean(weight_BT, mask_BT),
        "weight/max": masked(weight_BT, mask_BT).max(),
        "weight/ess": _effective_share(weight_BT, mask_BT),
        "group/degenerate_share": batch.totals.num_degenerate / num_responses,
        "response/length": batch.totals.num_tokens / num_responses,
    }
    if batch.behaviour_logp_BT is not None:
        metrics |= _ratio_metrics(batch)
    return metrics


def _ratio_metrics(batch: PolicyBatch) -> dict[str, Float[Array, ""]]:
    """How far the current policy is from the one that drew the tokens."""
    mask_BT = batch.mask_BT
    log_ratio_BT = log_ratio(batch.logp_BT, batch.behaviour_logp_BT, mask_BT)
    ratio_BT = jnp.exp(log_ratio_BT)
    return {
        "ratio/mean": masked_mean(ratio_BT, mask_BT),
        "ratio/max": masked(ratio_BT, mask_BT).max(),
        "ratio/ess": _effective_share(ratio_BT, mask_BT),
        # Of KL(behaviour ‖ current), from behaviour samples: k1 = −log r, k3 = r − 1 − log r.
        "ratio/kl_k1": masked_mean(-log_ratio_BT, mask_BT),
        "ratio/kl_k3": masked_mean(jnp.expm1(log_ratio_BT) - log_ratio_BT, mask_BT),
        "ratio/chi2": masked_mean(jnp.square(ratio_BT - 1.0), mask_BT),
        "ratio/m2": masked_mean(jnp.square(log_ratio_BT), mask_BT),
    }


def _effective_share(x_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"]) -> Float[Array, ""]:
    """Effective sample size of non-negative weights as a share of their number, 0 … 1."""
    x_BT = masked(x_BT, mask_BT)
    square_sum = jnp.square(x_BT).sum() * jnp.maximum(mask_BT.sum(), 1).astype(x_BT.dtype)
    return jnp.square(x_BT.sum()) / jnp.maximum(square_sum, jnp.finfo(x_BT.dtype).tiny)
