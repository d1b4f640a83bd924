"""The one loss: `− Agg_it[ sg(w_it) · A_i · logp_it ]`, and β · k3 to a reference if asked."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from asympo_jax.objectives.batch import PolicyBatch, batch_totals
from asympo_jax.objectives.diagnostics import diagnostics
from asympo_jax.objectives.masked import masked, masked_mean, reduction_dtype, response_mean
from asympo_jax.objectives.ratios import log_ratio
from asympo_jax.objectives.registry import Objective


def policy_loss(
    objective: Objective,
    logp_BT: Float[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    advantage_B: Float[Array, " B"],
    *,
    group_size: int,
    behaviour_logp_BT: Float[Array, "B T"] | None = None,
    proximal_logp_BT: Float[Array, "B T"] | None = None,
    reference_logp_BT: Float[Array, "B T"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`− Agg[ sg(w) · A · logp ]`, plus β · Agg[k3] if asked, and diagnostics; whole groups.

    Args:
        objective: weight, aggregation and what becomes of the advantage.
        logp_BT: log-probs of the current policy, differentiable, at the sampling temperature.
        mask_BT: true for tokens that the policy drew; the rest may hold anything, NaN included.
        advantage_B: advantage of each of the B = P·G responses, in order of groups.
        group_size: G.
        behaviour_logp_BT: log-probs that the sampler recorded when it drew the tokens.
        proximal_logp_BT: log-probs under a recent policy.
        reference_logp_BT: log-probs under a reference policy.

    Returns:
        The loss (float32; float64 if `logp_BT` is) and the metrics of `diagnostics` and of
        `objective.report`. An empty mask gives 0.

    Raises:
        ValueError: an array that the objective needs is missing, one has a wrong shape, B is no
            multiple of G, or what the objective returns has a wrong shape or type.
    """
    num_responses = logp_BT.shape[0]
    if group_size < 1 or num_responses % group_size:
        raise ValueError(
            f"group_size={group_size}: must divide the number of responses, {num_responses}"
        )
    if advantage_B.shape != (num_responses,):
        raise ValueError(f"advantage_B: shape {advantage_B.shape}, must be ({num_responses},)")
    others = {
        "behaviour_logp_BT": behaviour_logp_BT,
        "proximal_logp_BT": proximal_logp_BT,
        "reference_logp_BT": reference_logp_BT,
    }
    for name, x in {"mask_BT": mask_BT, **others}.items():
        if x is not None and x.shape != logp_BT.shape:
            raise ValueError(f"{name}: shape {x.shape}, must be that of logp_BT, {logp_BT.shape}")
    dtype = reduction_dtype(logp_BT)
    advantage_B = advantage_B.astype(dtype)
    changed_B = objective.advantage(advantage_B)
    _require(objective, "advantage", changed_B, {"[B]": advantage_B.shape})
    batch = PolicyBatch(
        logp_BT=logp_BT.astype(dtype),
        mask_BT=mask_BT,
        advantage_B=changed_B,
        totals=batch_totals(mask_BT, advantage_B, group_size),
        **{name: None if x is None else x.astype(dtype) for name, x in others.items()},
    )
    weight_BT = token_weight(objective, batch)
    return aggregate_loss(objective, batch, weight_BT), metrics_of(objective, batch, weight_BT)


def metrics_of(
    objective: Objective, batch: PolicyBatch, weight_BT: Float[Array, "B T"]
) -> dict[str, Float[Array, ""]]:
    """Diagnostics of a whole batch and what the objective reports; no gradient."""
    batch = jax.tree.map(jax.lax.stop_gradient, batch)
    metrics = diagnostics(batch, weight_BT) | objective.report(batch)
    if batch.reference_logp_BT is not None:
        metrics["reference/kl_k3"] = masked_mean(_k3(batch), batch.mask_BT)
    return metrics


def token_weight(objective: Objective, batch: PolicyBatch) -> Float[Array, "B T"]:
    """The objective's weight of every token, gradient stopped, 0 outside the mask.

    Raises:
        ValueError: an array that the objective needs is missing, or its weight is none of real
            numbers, [B, T] or [B, 1].
    """
    for need in objective.needs:
        if getattr(batch, f"{need}_logp_BT") is None:
            raise ValueError(
                f"objective {objective.name!r} needs {need} log-probs: {need}_logp_BT is None"
            )
    stopped = jax.tree.map(jax.lax.stop_gradient, batch)
    weight = objective.weight(stopped)
    shape_BT = batch.mask_BT.shape
    _require(objective, "weight", weight, {"[B, T]": shape_BT, "[B, 1]": (shape_BT[0], 1)})
    return masked(jnp.broadcast_to(weight, shape_BT), batch.mask_BT)


def _require(
    objective: Objective, what: str, found: Any, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuses what an objective returns if it is not real numbers of one of these shapes."""
    found = jnp.asarray(found)
    if found.shape not in shapes.values():
        allowed = " or ".join(f"{axes} = {shape}" for axes, shape in shapes.items())
        raise ValueError(
            f"the {what} of objective {objective.name!r} has shape {found.shape}, must be {allowed}"
        )
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(
            f"the {what} of objective {objective.name!r} has dtype {found.dtype}, must be a "
            "floating-point one"
        )


def aggregate_loss(
    objective: Objective, batch: PolicyBatch, weight_BT: Float[Array, "B T"]
) -> Float[Array, ""]:
    """The share of these responses in the loss of the batch that `batch.totals` counts.

    Shares of micro-batches add up to the loss of the whole batch, and so do their gradients.
    """
    # The gradient of `where` is 0 outside the mask; of a product with the mask it would be NaN.
    logp_BT = masked(batch.logp_BT, batch.mask_BT)
    term_BT = -jax.lax.stop_gradient(weight_BT) * batch.advantage_B[:, None] * logp_BT
    if objective.kl_coefficient:
        term_BT += objective.kl_coefficient * _k3(batch)
    return _aggregated(objective, term_BT, batch)


def _aggregated(
    objective: Objective, term_BT: Float[Array, "B T"], batch: PolicyBatch
) -> Float[Array, ""]:
    """`Agg[term]` with the counts of the whole batch; the term is 0 outside the mask."""
    num_responses = jnp.maximum(batch.totals.num_responses, 1.0)
    match objective.aggregation:
        case "token_mean":
            return term_BT.sum() / jnp.maximum(batch.totals.num_tokens, 1.0)
        case "constant":
            return term_BT.sum() / (num_responses * objective.constant)
        case "response_mean":
            return response_mean(term_BT, batch.mask_BT).sum() / num_responses


def _k3(batch: PolicyBatch) -> Float[Array, "B T"]:
    """`exp(f − logp) − (f − logp) − 1` with reference log-probs f: an estimate of the KL, ≥ 0."""
    log_ratio_BT = -log_ratio(batch.logp_BT, batch.reference_logp_BT, batch.mask_BT)
    return jnp.expm1(log_ratio_BT) - log_ratio_BT
