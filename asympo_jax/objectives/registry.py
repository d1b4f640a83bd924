"""The objectives as entries of a table: a token weight, an aggregation, an advantage, its needs."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from jaxtyping import Array

from asympo_jax import import_path, nearest
from asympo_jax.objectives import ratio_weights as ratio
from asympo_jax.objectives import weights
from asympo_jax.objectives.advantages import Center, Scale, shifted, unchanged
from asympo_jax.objectives.batch import PolicyBatch

Aggregation = Literal["response_mean", "token_mean", "constant"]
Need = Literal["behaviour", "proximal", "reference"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A policy-gradient objective.

    Attributes:
        name: what a config calls it.
        weight: `PolicyBatch -> [B, T] or [B, 1]`, pure; its gradient is stopped by the loss.
        aggregation: `response_mean` = mean over responses of the mean over their tokens;
            `token_mean` = mean over all tokens of the whole batch;
            `constant` = mean over responses of their sum over tokens, divided by `constant`.
        center: default centring of the advantage.
        scale: default scaling of the advantage.
        needs: log-probs besides the current policy's that `weight` reads.
        scope: what the weight of a token depends on: its own `response` (and `batch.totals`), or
            the whole `batch`, which costs a forward pass more.
        advantage: `[B] -> [B]`, what becomes of the group's advantages before all else.
        report: extra scalar metrics, `PolicyBatch -> dict`.
        constant: divisor of the aggregation of that name.
        kl_coefficient: β of the term `β · k3(current, reference)` in the loss.
    """

    name: str
    weight: Callable[[PolicyBatch], Array]
    aggregation: Aggregation = "response_mean"
    center: Center = "mean"
    scale: Scale = "std"
    needs: tuple[Need, ...] = ()
    scope: Literal["response", "batch"] = "response"
    advantage: Callable[[Array], Array] = unchanged
    report: Callable[[PolicyBatch], dict[str, Array]] = weights.report_nothing
    constant: float = 1.0
    kl_coefficient: float = 0.0


def _with_options(objective: Objective, options: Mapping[str, Any]) -> Objective:
    """Fills options into those functions of an objective that have them."""
    filled = {}
    for field in ("weight", "advantage", "report"):
        function = getattr(objective, field)
        taken = {name: options[name] for name in _option_names(function) if name in options}
        if taken:
            filled[field] = functools.partial(function, **taken)
    return dataclasses.replace(objective, **filled)


def _option_names(function: Callable[..., Any]) -> list[str]:
    """The parameters of a weight, an advantage or a report after the first."""
    return list(inspect.signature(function).parameters)[1:]


_BEHAVIOUR: tuple[Need, ...] = ("behaviour",)
_GRPO = Objective("grpo", ratio.grpo, needs=_BEHAVIOUR, report=ratio.report_grpo)

_TABLE = (
    Objective("reinforce", weights.reinforce),
    Objective("gpg", weights.gpg, "token_mean", scale="none"),
    Objective("spo", weights.spo),
    Objective("asympo", weights.asympo, report=weights.report_floor),
    Objective("asymre", weights.reinforce, "token_mean", scale="none", advantage=shifted),
    Objective("w_reinforce", weights.w_reinforce, "token_mean"),
    _GRPO,
    dataclasses.replace(_GRPO, name="dr_grpo", aggregation="constant", scale="none"),
    _with_options(
        dataclasses.replace(_GRPO, name="dapo", aggregation="token_mean"),
        {"clip_high": 0.28, "dual_clip": 10.0},
    ),
    Objective("gspo", ratio.gspo, needs=_BEHAVIOUR, report=ratio.report_gspo),
    Objective("cispo", ratio.cispo, "token_mean", needs=_BEHAVIOUR, report=ratio.report_cispo),
    Objective("tis", ratio.tis, needs=_BEHAVIOUR, report=ratio.report_tis),
    Objective("topr", ratio.topr, needs=_BEHAVIOUR, report=ratio.report_topr),
    Objective("aspo", ratio.aspo, "token_mean", needs=_BEHAVIOUR, report=ratio.report_aspo),
    Objective(
        "m2po",
        ratio.m2po,
        "token_mean",
        needs=_BEHAVIOUR,
        scope="batch",
        report=ratio.report_m2po,
    ),
    Objective(
        "decoupled_ppo",
        ratio.decoupled_ppo,
        "token_mean",
        needs=("behaviour", "proximal"),
        report=ratio.report_decoupled_ppo,
    ),
)
_OBJECTIVES: Mapping[str, Objective] = {objective.name: objective for objective in _TABLE}


# Options of the objectives above: (is allowed, what is allowed).
_OPTIONS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "floor": (lambda x: 0 < x < math.inf, "must be positive and finite"),
    "alpha": (lambda x: 0 <= x <= 1, "must be from 0 to 1"),
    "delta": (lambda x: -math.inf < x < math.inf, "must be finite"),
    "positive_scale": (lambda x: 0 <= x < math.inf, "must be finite and not negative"),
    "clip_low": (lambda x: 0 <= x <= 1, "must be from 0 to 1"),
    "clip_high": (lambda x: x >= 0, "must not be negative"),
    "dual_clip": (lambda x: x >= 1, "must be at least 1"),
    "cap": (lambda x: x > 0, "must be positive"),
    "limit": (lambda x: x > 0, "must be positive"),
}


def names() -> tuple[str, ...]:
    """Names of all objectives of the package."""
    return tuple(_OBJECTIVES)


def make(
    name: str,
    *,
    aggregation: Aggregation | None = None,
    constant: float | None = None,
    kl_coefficient: float | None = None,
    **options: Any,
) -> Objective:
    """The objective called `name` with its options filled in.

    Args:
        name: one of `names()`, or the import path `my_module:my_objective` of an `Objective`.
        aggregation: instead of the objective's own.
        constant: divisor of the aggregation `constant`.
        kl_coefficient: β ≥ 0 of the term `β · k3(current, reference)`, instead of the objective's
            own, which is 0 for those of the package; above 0 it needs reference log-probs, too.
        **options: keyword arguments of its weight and advantage functions.

    Returns:
        The objective; its `weight` takes a `PolicyBatch` alone.

    Raises:
        ValueError: an unknown name or option, or a value out of its range.
    """
    if ":" in name:
        kind = "an asympo_jax.objectives.Objective"
        objective = import_path.load(
            "objective.name", name, kind, lambda found: isinstance(found, Objective)
        )
    elif name in _OBJECTIVES:
        objective = _OBJECTIVES[name]
    else:
        raise ValueError(
            f"objective.name={name!r}{nearest.hint(name, names())}: must be one of {list(names())} "
            "or an import path like 'my_module:my_objective'"
        )
    allowed = list(
        dict.fromkeys([*_option_names(objective.weight), *_option_names(objective.advantage)])
    )
    for option, value in options.items():
        if option not in allowed:
            raise ValueError(
                f"objective.{option} is not an option of objective.name={name!r}, which has "
                f"{allowed or 'none'}"
            )
        if name in _OBJECTIVES and option in _OPTIONS and not _OPTIONS[option][0](value):
            raise ValueError(f"objective.{option}={value!r}: {_OPTIONS[option][1]}")
    return _with_loss(_with_options(objective, options), aggregation, constant, kl_coefficient)


def _with_loss(
    objective: Objective,
    aggregation: Aggregation | None,
    constant: float | None,
    kl_coefficient: float | None,
) -> Objective:
    """The objective in a loss of another form, checked."""
    aggregation = objective.aggregation if aggregation is None else aggregation
    if constant is not None and aggregation != "constant":
        raise ValueError(
            f"objective.constant={constant}: goes with objective.aggregation='constant', not "
            f"{aggregation!r}"
        )
    constant = objective.constant if constant is None else constant
    kl_coefficient = objective.kl_coefficient if kl_coefficient is None else kl_coefficient
    if aggregation not in get_args(Aggregation):
        raise ValueError(
            f"objective.aggregation={aggregation!r}: must be one of {list(get_args(Aggregation))}"
        )
    if not 0 < constant < math.inf:
        raise ValueError(f"objective.constant={constant}: must be positive and finite")
    if not 0 <= kl_coefficient < math.inf:
        raise ValueError(
            f"objective.kl_coefficient={kl_coefficient}: must be finite and not negative"
        )
    needs = dict.fromkeys([*objective.needs, *(["reference"] if kl_coefficient else [])])
    return dataclasses.replace(
        objective,
        aggregation=aggregation,
        constant=constant,
        kl_coefficient=kl_coefficient,
        needs=tuple(needs),
    )
