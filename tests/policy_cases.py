"""Batches of responses for the tests of objectives, and losses compiled once for all of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from asympo_jax import objectives

LOGPS = ("logp_BT", "behaviour_logp_BT", "proximal_logp_BT", "reference_logp_BT")


@dataclasses.dataclass(frozen=True)
class Case:
    """What `policy_loss` takes, as NumPy arrays."""

    logp_BT: np.ndarray
    mask_BT: np.ndarray
    advantage_B: np.ndarray
    behaviour_logp_BT: np.ndarray
    proximal_logp_BT: np.ndarray
    reference_logp_BT: np.ndarray
    group_size: int

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What has a row for each response."""
        return {name: getattr(self, name) for name in ("mask_BT", "advantage_B", *LOGPS)}

    def changed(self, change: Callable[[np.ndarray], np.ndarray], *names: str) -> "Case":
        """The case with the named arrays changed; all that have rows, if none is named."""
        arrays = self.arrays
        return dataclasses.replace(self, **{name: change(arrays[name]) for name in names or arrays})

    def rows(self, order: Any) -> "Case":
        """The responses in another order, or some of them."""
        return self.changed(lambda x: x[order])

    def padded_with(self, *values: float) -> "Case":
        """A value for each of `LOGPS`, or one for all, wherever no token was drawn."""
        case = self
        for name, value in zip(LOGPS, values * (len(LOGPS) // len(values)), strict=True):
            case = case.changed(
                lambda x, value=value: np.where(self.mask_BT, x, value).astype(x.dtype), name
            )
        return case


def make_case(
    seed: int = 0, dtype: type = np.float32, num_groups: int = 4, group_size: int = 3
) -> Case:
    """Groups of ragged prompts and responses, ratios far from 1, all rewards of group 1 equal."""
    rng = np.random.default_rng(seed)
    num_positions = 8
    num_rows = num_groups * group_size
    start_B = np.repeat(rng.integers(1, 3, num_groups), group_size)
    length_B = rng.choice([2, 4, 5], num_rows)
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

    def moved(scale: float) -> np.ndarray:
        return (logp_BT + scale * rng.normal(size=logp_BT.shape)).astype(dtype)

    return Case(
        logp_BT=logp_BT.astype(dtype),
        mask_BT=mask_BT,
        advantage_B=advantage_PG.reshape(-1).astype(dtype),
        behaviour_logp_BT=moved(1.5),
        proximal_logp_BT=moved(0.5),
        reference_logp_BT=moved(0.7),
        group_size=group_size,
    )


def case_of_ratios(
    ratio_BT: Any, advantage_B: Any, behind_BT: Any = 1.0, dtype: type = np.float32
) -> Case:
    """One group with given ratios.

    Args:
        ratio_BT: of the current policy to the proximal one; NaN where no token was drawn.
        advantage_B: advantages.
        behind_BT: ratios of the proximal policy to the one that sampled; broadcast.
        dtype: of the log-probs.
    """
    ratio_BT = np.asarray(ratio_BT, dtype)
    behaviour_logp_BT = np.full_like(ratio_BT, -6.0)
    proximal_logp_BT = behaviour_logp_BT + np.log(np.asarray(behind_BT, dtype))
    return Case(
        logp_BT=proximal_logp_BT + np.log(ratio_BT),
        mask_BT=~np.isnan(ratio_BT),
        advantage_B=np.asarray(advantage_B, dtype),
        behaviour_logp_BT=behaviour_logp_BT,
        proximal_logp_BT=proximal_logp_BT,
        reference_logp_BT=behaviour_logp_BT,
        group_size=len(ratio_BT),
    )


def loss_of(objective: objectives.Objective, group_size: int, *arrays: Any) -> tuple[Any, Any]:
    """`policy_loss` of the arrays of a case, in their order; always with all log-probs."""
    mask_BT, advantage_B, logp_BT, *others = arrays
    return objectives.policy_loss(
        objective,
        logp_BT,
        mask_BT,
        advantage_B,
        group_size=group_size,
        **dict(zip(LOGPS[1:], others, strict=True)),
    )


LOGP_ARGUMENT = 4  # of `loss_of`


def gradient_of(objective: objectives.Objective, group_size: int, *arrays: Any) -> jax.Array:
    """Gradient of `loss_of` with respect to the log-probs."""
    return jax.grad(loss_of, argnums=LOGP_ARGUMENT, has_aux=True)(objective, group_size, *arrays)[0]


Variants = Iterable[tuple[str, dict[str, Any]]]


def compiled_together(function: Any, variants: Variants, group_size: int) -> Any:
    """Jitted: what a function like `loss_of` gives for each objective, in a fraction of the time.

    Args:
        function: (objective, group size, *arrays) -> tree of arrays.
        variants: names of objectives and their options.
        group_size: G.

    Returns:
        Arrays of a case -> for each variant, by `f"{name} {options}"`, what the function gives.
    """
    made = {f"{name} {options}": objectives.make(name, **options) for name, options in variants}

    def for_all(*arrays: Any) -> dict[str, Any]:
        return {key: function(objective, group_size, *arrays) for key, objective in made.items()}

    return jax.jit(for_all)


def value_metrics_gradient(name: str, case: Case, **options: Any) -> tuple[Any, Any, Any]:
    """Loss, metrics and gradient with respect to the log-probs, as NumPy arrays."""
    compiled = _compiled(name, tuple(options.items()), case.group_size)
    (loss, metrics), gradient_BT = compiled(*case.arrays.values())
    return np.asarray(loss), jax.tree.map(np.asarray, metrics), np.asarray(gradient_BT)


@functools.cache
def _compiled(name: str, options: tuple[tuple[str, Any], ...], group_size: int) -> Any:
    """The jitted value and gradient of one objective."""
    objective = objectives.make(name, **dict(options))
    return jax.jit(
        functools.partial(
            jax.value_and_grad(loss_of, argnums=LOGP_ARGUMENT, has_aux=True), objective, group_size
        ),
    )
