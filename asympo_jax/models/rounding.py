"""The copy of the parameters that samplers get: rounded to bfloat16, or its matrices to int8.

Objectives of the current policy alone need no log-probs that match the sampler's, so a sampler may
compute with less: an int8 matrix has a quarter of the bytes that a decode step reads of it.
"""

import math
from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from asympo_jax.models.lora import TARGETS
from asympo_jax.models.transformer import Params

ParamsDtype = Literal["float32", "bfloat16", "int8"]
PARAMS_DTYPES = get_args(ParamsDtype)
_LARGEST = 127


def rounded(params: Params, dtype: ParamsDtype) -> Params:
    """The parameters in another type; those that already are stay as they are.

    Args:
        params: of a decoder, or adapters; scalars, the scales of adapters, stay float32.
        dtype: of all arrays; `int8` is of the matrices of projections alone, each of which gets a
            `kernel_scale` beside it, one float32 for each output: the largest of its inputs is 127.
            All else stays as it is.
    """
    flat: dict[tuple[str, ...], Any] = dict(flatten_dict(params))
    if dtype != "int8":
        wanted = jnp.dtype(dtype)
        changed = {
            path: x if x.dtype == wanted or not x.ndim else x.astype(wanted)
            for path, x in flat.items()
        }
        return unflatten_dict(changed)
    for path in [path for path in flat if path[-1] == "kernel" and flat[path].dtype != jnp.int8]:
        num_in = TARGETS[path[-2]][1]
        flat[path], flat[(*path[:-1], "kernel_scale")] = _int8(flat[path], num_in)
    return unflatten_dict(flat)


def _int8(kernel: Array, num_in_axes: int) -> tuple[Array, Array]:
    """The kernel in steps of a scale for each output, and the scales."""
    in_shape, out_shape = kernel.shape[:num_in_axes], kernel.shape[num_in_axes:]
    kernel_IO = jnp.asarray(kernel, jnp.float32).reshape(math.prod(in_shape), -1)
    scale_O = jnp.abs(kernel_IO).max(axis=0) / _LARGEST
    steps_IO = jnp.round(kernel_IO / jnp.where(scale_O > 0, scale_O, 1.0)[None])
    return steps_IO.astype(jnp.int8).reshape(kernel.shape), scale_O.reshape(out_shape)
