"""Token weights of objectives that compare the policy with the one that drew the tokens.

They need behaviour log-probs. r is a token's ratio `exp(logp − behaviour_logp)`. Where a weight is
clipped, the share of tokens that each bound reaches is reported as `clip/{high,low,cap}`: `high`
and `low` are tokens without gradient because the ratio is above or below its range, `cap` those
beyond the objective's cap, which are dropped or weighted by it.
"""

import functools
import math
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from asympo_jax.objectives.batch import PolicyBatch
from asympo_jax.objectives.masked import masked_share
from asympo_jax.objectives.ratios import (
    decoupled_ratios,
    flipped_ratio,
    product_of_ratios,
    sequence_ratio,
    token_log_ratio,
    token_ratio,
)

Flags = Mapping[str, Bool[Array, "B T"]]


def grpo(
    batch: PolicyBatch,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = math.inf,
) -> Float[Array, "B T"]:
    """`w = r · keep`: the gradient of PPO's clipped surrogate per token. arXiv:2402.03300.

    `dr_grpo` is this with sums over tokens by a constant (arXiv:2503.20783), `dapo` with ε_hi =
    0.28, c = 10 and the mean over tokens (arXiv:2503.14476). `dapo` differs from the paper: the
    dual clip is that of its public recipe, the mean is over the tokens of the whole batch, and
    dynamic sampling and the overlong penalty are options of the run.

    Args:
        batch: the responses, with behaviour log-probs.
        clip_low: ε_lo; a negative token is dropped where r < 1 − ε_lo.
        clip_high: ε_hi; a positive token is dropped where r > 1 + ε_hi.
        dual_clip: c; a negative token is dropped where r > c (arXiv:1912.09729).
    """
    ratio_BT = token_ratio(batch)
    return _kept(ratio_BT, _clipped(batch, ratio_BT, clip_low, clip_high, dual_clip))


def report_grpo(
    batch: PolicyBatch,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = math.inf,
) -> dict[str, Array]:
    """Shares of the tokens that `grpo` drops."""
    return _shares(batch, _clipped(batch, token_ratio(batch), clip_low, clip_high, dual_clip))


def gspo(
    batch: PolicyBatch, clip_low: float = 3e-4, clip_high: float = 4e-4
) -> Float[Array, "B T"]:
    """`w = s · keep`, s = exp of the response's mean log-ratio. arXiv:2507.18071.

    Args:
        batch: the responses, with behaviour log-probs.
        clip_low: a negative response is dropped where s < 1 − clip_low.
        clip_high: a positive response is dropped where s > 1 + clip_high.
    """
    ratio_BT = sequence_ratio(batch)
    return _kept(ratio_BT, _clipped(batch, ratio_BT, clip_low, clip_high))


def report_gspo(
    batch: PolicyBatch, clip_low: float = 3e-4, clip_high: float = 4e-4
) -> dict[str, Array]:
    """Shares of the tokens that `gspo` drops with their responses."""
    return _shares(batch, _clipped(batch, sequence_ratio(batch), clip_low, clip_high))


def cispo(batch: PolicyBatch, clip_high: float = 4.0) -> Float[Array, "B T"]:
    """`w = min(r, 1 + ε_hi)`: the ratio is bounded, no token is dropped. arXiv:2506.13585.

    Differs from the paper: its ε_hi is not public; 4 is this project's choice.

    Args:
        batch: the responses, with behaviour log-probs.
        clip_high: ε_hi.
    """
    return jnp.minimum(token_ratio(batch), 1.0 + clip_high)


def report_cispo(batch: PolicyBatch, clip_high: float = 4.0) -> dict[str, Array]:
    """Share of the tokens whose ratio is bounded."""
    return _shares(batch, {"cap": token_ratio(batch) > 1.0 + clip_high})


def tis(batch: PolicyBatch, cap: float = 2.0) -> Float[Array, "B T"]:
    """`w = min(r, C)`: truncated importance sampling (Ionides, 2008), token by token.

    Differs from the paper: its C grows with the number of samples; 2 is this project's choice.

    Args:
        batch: the responses, with behaviour log-probs.
        cap: C.
    """
    return jnp.minimum(token_ratio(batch), cap)


def report_tis(batch: PolicyBatch, cap: float = 2.0) -> dict[str, Array]:
    """Share of the tokens whose ratio is truncated."""
    return _shares(batch, {"cap": token_ratio(batch) > cap})


def topr(batch: PolicyBatch) -> Float[Array, "B 1"]:
    """`w = 1 if A ≥ 0 else min(W, 1)`, W the product of the response's ratios. arXiv:2503.14286.

    Differs from the paper: the group's advantage instead of a reward of ±1 without a baseline, so
    that groups without any difference teach nothing; and a response is the mean over its tokens,
    not their sum.
    """
    return jnp.where(batch.advantage_B >= 0, 1.0, jnp.minimum(product_of_ratios(batch), 1.0))[
        :, None
    ]


def report_topr(batch: PolicyBatch) -> dict[str, Array]:
    """Share of the tokens in negative responses whose ratio is above 1."""
    capped_B = (batch.advantage_B < 0) & (product_of_ratios(batch) > 1.0)
    return _shares(batch, {"cap": jnp.broadcast_to(capped_B[:, None], batch.mask_BT.shape)})


def aspo(
    batch: PolicyBatch, clip_low: float = 0.2, clip_high: float = 0.2, cap: float = 3.0
) -> Float[Array, "B T"]:
    """Asymmetric importance sampling: the ratio of positive tokens is flipped. arXiv:2510.06062.

    A > 0: `w = min(1/r, c)` where r ≤ 1 + ε_hi, else 0.
    A < 0: `w = min(r, c)` where r ≥ 1 − ε_lo, else 0.
    The dual clip is soft: beyond it the weight is c, and the gradient stays.

    Args:
        batch: the responses, with behaviour log-probs.
        clip_low: ε_lo.
        clip_high: ε_hi.
        cap: c.
    """
    dropped = _clipped(batch, token_ratio(batch), clip_low, clip_high)
    return _kept(jnp.minimum(flipped_ratio(batch), cap), dropped)


def report_aspo(
    batch: PolicyBatch, clip_low: float = 0.2, clip_high: float = 0.2, cap: float = 3.0
) -> dict[str, Array]:
    """Shares of the tokens that `aspo` drops, and of those that it weights by its cap."""
    dropped = _clipped(batch, token_ratio(batch), clip_low, clip_high)
    any_BT = dropped["high"] | dropped["low"]
    return _shares(batch, {**dropped, "cap": (flipped_ratio(batch) > cap) & ~any_BT})


def m2po(batch: PolicyBatch, limit: float = 0.04) -> Float[Array, "B T"]:
    """`w = r · keep`: the largest (log r)² are masked until their mean is at most a limit.

    arXiv:2510.01161. Only tokens of the trust region are masked and counted in the mean: those that
    a clip could reach, A > 0 with r > 1 and A < 0 with r < 1. This is the paper's form (algorithm
    1), over the whole batch; its published code clips ratios instead. Of tokens with exactly the
    same (log r)² all are kept or none.

    Args:
        batch: the responses of the whole batch, with behaviour log-probs.
        limit: largest mean of (log r)² over the tokens of the trust region that are kept.
    """
    return jnp.where(_beyond_second_moment(batch, limit), 0.0, token_ratio(batch))


def report_m2po(batch: PolicyBatch, limit: float = 0.04) -> dict[str, Array]:
    """Share of the tokens that `m2po` masks."""
    return _shares(batch, {"cap": _beyond_second_moment(batch, limit)})


def decoupled_ppo(
    batch: PolicyBatch, clip_low: float = 0.2, clip_high: float = 0.2, cap: float = 5.0
) -> Float[Array, "B T"]:
    """`w = exp(x − b) · r_x · keep`: clips around recent parameters, not those that sampled.

    x are the log-probs under the proximal parameters, b those of the sampler, and
    r_x = exp(logp − x). arXiv:2505.24298.

    Differs from the paper: its proximal policy is that of the start of a step of several
    mini-batches; here it is renewed every `learner.proximal_every_updates` updates, more often
    where the lag is shorter than that. The cap is that of its public code, not of the paper.

    Args:
        batch: the responses, with behaviour and proximal log-probs.
        clip_low: a negative token is dropped where r_x < 1 − clip_low.
        clip_high: a positive token is dropped where r_x > 1 + clip_high.
        cap: a token is dropped where exp(x − b) > cap.
    """
    behind_BT, ratio_BT = decoupled_ratios(batch)
    dropped = _clipped(batch, ratio_BT, clip_low, clip_high) | {"cap": behind_BT > cap}
    return _kept(behind_BT * ratio_BT, dropped)


def report_decoupled_ppo(
    batch: PolicyBatch, clip_low: float = 0.2, clip_high: float = 0.2, cap: float = 5.0
) -> dict[str, Array]:
    """Shares of the tokens that `decoupled_ppo` drops."""
    behind_BT, ratio_BT = decoupled_ratios(batch)
    return _shares(batch, _clipped(batch, ratio_BT, clip_low, clip_high) | {"cap": behind_BT > cap})


def _beyond_second_moment(batch: PolicyBatch, limit: float) -> Bool[Array, "B T"]:
    """Trust-region tokens to mask, so that the mean of (log r)² over the others is ≤ `limit`."""
    log_ratio_BT = token_log_ratio(batch)
    square_BT = jnp.square(log_ratio_BT)
    in_region_BT = jnp.sign(batch.advantage_B)[:, None] * log_ratio_BT > 0
    # The rest goes last: infinite, so that no running mean that includes it is within the limit.
    ascending_N = jnp.sort(jnp.where(in_region_BT, square_BT, jnp.inf).reshape(-1))
    count_N = jnp.arange(1, ascending_N.size + 1, dtype=square_BT.dtype)
    num_kept = (jnp.cumsum(ascending_N) / count_N <= limit).sum()
    first_masked = jnp.append(ascending_N, jnp.inf)[num_kept]
    return in_region_BT & (square_BT >= first_masked)


def _clipped(
    batch: PolicyBatch,
    ratio_BT: Float[Array, "B T"],
    clip_low: float,
    clip_high: float,
    dual_clip: float = math.inf,
) -> dict[str, Bool[Array, "B T"]]:
    """Tokens that a clipped surrogate gives no gradient, by the bound that they are beyond."""
    advantage_B1 = batch.advantage_B[:, None]
    flags = {
        "high": (advantage_B1 > 0) & (ratio_BT > 1 + clip_high),
        "low": (advantage_B1 < 0) & (ratio_BT < 1 - clip_low),
    }
    if dual_clip != math.inf:
        flags["cap"] = (advantage_B1 < 0) & (ratio_BT > dual_clip)
    return flags


def _kept(weight_BT: Float[Array, "B T"], dropped: Flags) -> Float[Array, "B T"]:
    """The weight, 0 where any flag is true."""
    return jnp.where(functools.reduce(jnp.logical_or, dropped.values()), 0.0, weight_BT)


def _shares(batch: PolicyBatch, flags: Flags) -> dict[str, Array]:
    """Shares of the tokens as `clip/…`."""
    none_BT = jnp.zeros_like(batch.mask_BT)
    return {
        f"clip/{name}": masked_share(flags.get(name, none_BT), batch.mask_BT)
        for name in ("high", "low", "cap")
    }
