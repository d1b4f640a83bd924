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

_PACKAGE = pathlib.Path(__file__).parents[1]


def try_out(
    name: str,
    objective: Objective,
    num_responses: int,
    num_tokens: int,
    group_size: int,
    recorded: Collection[Need] = (),
) -> None:
    """Traces the loss of an objective on a batch without numbers.

    Args:
        name: its import path.
        objective: with its options.
        num_responses: B of the batch.
        num_tokens: T of the batch.
        group_size: G.
        recorded: log-probs that there are besides those that it needs.

    Raises:
        ValueError: naming the objective, where it is written, and what it raises or returns that
            cannot be trained with.
    """
    float_B = jax.ShapeDtypeStruct((num_responses,), jnp.float32)
    # Where T is B or 1, [B] or [B, 1] would pass for what it is not.
    shape_BT = (num_responses, num_tokens + (num_tokens in (1, num_responses)))
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
    """The last line of the user's that was at work; else the file of the weight, if it is known."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(frame.filename)]
    if own:
        return f"{pathlib.Path(own[-1].filename).name}, line {own[-1].lineno}: "
    function = objective.weight
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not _is_own(code.co_filename):
        return ""
    return f"{pathlib.Path(code.co_filename).name}: "


def _is_own(filename: str) -> bool:
    """Whether a file is the user's: not this package's, and not of one that is installed."""
    path = pathlib.Path(filename)
    is_installed = "site-packages" in path.parts or "dist-packages" in path.parts
    return path.is_file() and not is_installed and not path.is_relative_to(_PACKAGE)
