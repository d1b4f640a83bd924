"""Tries a user's objective before anything is started: shapes alone, no device is touched."""

import functools
import inspect
import pathlib
import traceback
from collections.abc import Collection

import jax
import jax.numpy as jnp

from asympo_jax.objectives.loss import policy_loss
from asympo_jax.objectives.registry import Need, Objective


def try_out(
    name: str,
    objective: Objective,
    num_responses: int,
    group_size: int,
    recorded: Collection[Need] = (),
) -> None:
    """Traces the loss of an objective on a batch without numbers.

    Args:
        name: its import path.
        objective: with its options.
        num_responses: B of the batch.
        group_size: G.
        recorded: log-probs that there are besides those that it needs.

    Raises:
        ValueError: naming the objective, where it is written, and what it raises or returns that
            cannot be trained with.
    """
    float_B = jax.ShapeDtypeStruct((num_responses,), jnp.float32)
    # One more than B, so that neither [B] nor [T, B] passes for what it is not.
    shape_BT = (num_responses, num_responses + 1)
    float_BT = jax.ShapeDtypeStruct(shape_BT, jnp.float32)
    loss = functools.partial(policy_loss, objective, group_size=group_size)
    others = {f"{need}_logp_BT": float_BT for need in {*objective.needs, *recorded}}
    try:
        _, metrics = jax.eval_shape(
            loss, float_BT, jax.ShapeDtypeStruct(shape_BT, bool), float_B, **others
        )
    except Exception as error:  # a user's objective may raise anything
        words = str(error).strip().partition("\n")[0]
        if not isinstance(error, ValueError):
            words = f"{type(error).__name__}: {words}"
        raise ValueError(
            f"objective.name={name!r}: cannot be trained with ({_place(objective, error)}{words})"
        ) from error
    for metric, value in metrics.items():
        if value.shape:
            raise ValueError(
                f"objective.name={name!r}: reports {metric!r} of shape {value.shape}, must be a "
                "scalar"
            )


def _place(objective: Objective, error: Exception) -> str:
    """File of the weight and the line there that raised, if one did; empty if unknown."""
    function = objective.weight
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == code.co_filename]
    line = f", line {lines[-1]}" if lines else ""
    return f"{pathlib.Path(code.co_filename).name}{line}: "
