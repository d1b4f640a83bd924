"""The one loss, and the objectives as entries of a table.

    loss = − Agg_it[ sg(w_it) · A_i · logp_it ]

An objective is a token weight `w`, an aggregation, an advantage and the arrays that it needs.
"""

import dataclasses
import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from asympo_jax.objectives import weights
from asympo_jax.objectives.advantages import Center, Scale
from asympo_jax.objectives.batch import PolicyBatch, batch_totals
from asympo_jax.objectives.diagnostics import diagnostics
from asympo_jax.objectives.masked import masked, reduction_dtype

Aggregation = Literal["response_mean", "token_mean"]
Need = Literal["behaviour", "proximal", "reference"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A policy-gradient objective.

    Attributes:
        name: what a config calls it.
        weight: `PolicyBatch -> [B, T] or [B, 1]`, pure; its gradient is stopped by the loss.
        aggregation: `response_mean` = mean over responses of the mean over their tokens;
            `token_mean` = mean over all tokens of the whole batch.
        center: default centring of the advantage.
        scale: default scaling of the advantage.
        needs: log-probs besides the current policy's that `weight` reads.
        report: extra scalar metrics, `PolicyBatch -> dict`, with the same options as `weight`.
    """

    name: str
    weight: Callable[[PolicyBatch], Array]
    aggregation: Aggregation = "response_mean"
    center: Center = "mean"
    scale: Scale = "std"
    needs: tuple[Need, ...] = ()
    report: Callable[[PolicyBatch], dict[str, Array]] = weights.report_nothing


_OBJECTIVES: Mapping[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("reinforce", weights.reinforce),
        Objective("gpg", weights.gpg, aggregation="token_mean", scale="none"),
        Objective("spo", weights.spo),
        Objective("asympo", weights.asympo, report=weights.report_floor),
        Objective("grpo", weights.grpo, needs=("behaviour",), report=weights.report_clip),
    )
}


# Options of the objectives above: (is allowed, what is allowed).
_OPTIONS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "floor": (lambda x: 0 < x < math.inf, "must be positive"),
    "alpha": (lambda x: 0 <= x <= 1, "must be from 0 to 1"),
    "clip_low": (lambda x: 0 <= x <= 1, "must be from 0 to 1"),
    "clip_high": (lambda x: x >= 0, "must not be negative"),
    "dual_clip": (lambda x: x >= 1, "must be at least 1"),
}


def names() -> tuple[str, ...]:
    """Names of all objectives of the package."""
    return tuple(_OBJECTIVES)


def make(name: str, **options: Any) -> Objective:
    """The objective called `name` with its options filled in.

    Args:
        name: one of `names()`, or the import path `my_module:my_objective` of an `Objective`.
        **options: keyword arguments of its weight function.

    Returns:
        The objective; its `weight` takes a `PolicyBatch` alone.

    Raises:
        ValueError: an unknown name or option.
    """
    objective = _import_objective(name) if ":" in name else _OBJECTIVES.get(name)
    if objective is None:
        raise ValueError(
            f"objective.name={name!r}: must be one of {list(names())} or an import path like "
            "'my_module:my_objective'"
        )
    allowed = list(inspect.signature(objective.weight).parameters)[1:]
    for option, value in options.items():
        if name in _OBJECTIVES and option in _OPTIONS and not _OPTIONS[option][0](value):
            raise ValueError(f"objective.{option}={value!r}: {_OPTIONS[option][1]}")
        if option not in allowed:
            raise ValueError(
                f"objective.{option} is not an option of objective.name={name!r}, which has "
                f"{allowed or 'none'}"
            )
    if not options:
        return objective
    return dataclasses.replace(
        objective,
        weight=functools.partial(objective.weight, **options),
        report=functools.partial(objective.report, **options),
    )


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
    """`− Agg[ sg(w) · A · logp ]` and its diagnostics, over complete groups.

    Args:
        objective: weight and aggregation.
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
        ValueError: an array that the objective needs is missing, one has a wrong shape, or B is no
            multiple of G.
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
    batch = PolicyBatch(
        logp_BT=logp_BT.astype(dtype),
        mask_BT=mask_BT,
        advantage_B=advantage_B,
        totals=batch_totals(mask_BT, advantage_B, group_size),
        **{name: None if x is None else x.astype(dtype) for name, x in others.items()},
    )
    weight_BT = token_weight(objective, batch)
    metrics = diagnostics(batch, weight_BT) | objective.report(batch)
    return aggregate_loss(objective, batch, weight_BT), metrics


def token_weight(objective: Objective, batch: PolicyBatch) -> Float[Array, "B T"]:
    """The objective's weight of every token, gradient stopped, 0 outside the mask.

    Raises:
        ValueError: an array that the objective needs is missing.
    """
    for need in objective.needs:
        if getattr(batch, f"{need}_logp_BT") is None:
            raise ValueError(
                f"objective {objective.name!r} needs {need} log-probs: {need}_logp_BT is None"
            )
    stopped = jax.tree.map(jax.lax.stop_gradient, batch)
    return masked(jnp.broadcast_to(objective.weight(stopped), batch.mask_BT.shape), batch.mask_BT)


def aggregate_loss(
    objective: Objective, batch: PolicyBatch, weight_BT: Float[Array, "B T"]
) -> Float[Array, ""]:
    """The share of these responses in the loss of the batch that `batch.totals` counts.

    Shares of micro-batches add up to the loss of the whole batch, and so do their gradients.
    """
    # The gradient of `where` is 0 outside the mask; of a product with the mask it would be NaN.
    logp_BT = masked(batch.logp_BT, batch.mask_BT)
    term_BT = -jax.lax.stop_gradient(weight_BT) * batch.advantage_B[:, None] * logp_BT
    if objective.aggregation == "token_mean":
        return term_BT.sum() / jnp.maximum(batch.totals.num_tokens, 1.0)
    length_B = jnp.maximum(batch.mask_BT.sum(axis=1), 1).astype(term_BT.dtype)
    return (term_BT.sum(axis=1) / length_B).sum() / jnp.maximum(batch.totals.num_responses, 1.0)


def _import_objective(path: str) -> Objective:
    """The `Objective` at an import path."""
    module_name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"objective.name={path!r}: cannot be imported ({error})") from error
    if not isinstance(found, Objective):
        raise ValueError(f"objective.name={path!r}: must be an asympo_jax.objectives.Objective")
    return found
