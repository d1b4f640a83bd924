"""The copies of the parameters that a sampler's devices have, each whole or spread over several."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from asympo_jax.models import ModelConfig
from asympo_jax.models.sharding import AXES, sharding_of


def make_place(num_devices: int, tensor: int = 1) -> Callable[[str, np.ndarray], Array]:
    """(Name, array) -> the array on the first devices of this process, in as many copies as fit.

    Args:
        num_devices: that are used.
        tensor: that share a copy, each with its part of the heads, the MLP and the vocabulary.

    Raises:
        ValueError: there are not so many devices.
    """
    devices = jax.local_devices()
    if num_devices > len(devices):
        raise ValueError(
            f"sampler.devices={num_devices}: this process has {len(devices)} {devices[0].platform} "
            "devices, must be at most that"
        )
    if num_devices == 1:
        return lambda name, x: jnp.asarray(x)
    mesh = Mesh(np.array(devices[:num_devices]).reshape(-1, 1, tensor), AXES)
    return lambda name, x: jax.device_put(x, sharding_of(mesh, name))


def on_devices(params: Any, num_devices: int, tensor: int = 1) -> Any:
    """The parameters where `make_place` puts them."""
    place = make_place(num_devices, tensor)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: place("/".join(str(entry.key) for entry in path), x), params
    )


def copies_of(model: ModelConfig, params: Any) -> list[tuple[ModelConfig, Any]]:
    """Each copy of the parameters, and the decoder's shape with the mesh that has it.

    No array is copied. A copy on one device has no mesh.
    """
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return [(model, params)]
    mesh: Any = sharding.mesh
    assert mesh.axis_names == AXES and mesh.shape["fsdp"] == 1, mesh
    return [_copy(model, params, Mesh(devices[None], AXES)) for devices in mesh.devices]


def _copy(model: ModelConfig, params: Any, mesh: Mesh) -> tuple[ModelConfig, Any]:
    """The copy of the parameters that a part of their devices has."""

    def of(x: Array) -> Array:
        shards = {shard.device: shard.data for shard in x.addressable_shards}
        own = [shards[device] for device in mesh.devices.flat]
        if len(own) == 1:
            return own[0]
        place = NamedSharding(mesh, x.sharding.spec)  # pyright: ignore[reportAttributeAccessIssue]
        return jax.make_array_from_single_device_arrays(x.shape, place, own)

    with_mesh = dataclasses.replace(model, mesh=mesh) if mesh.size > 1 else model
    return with_mesh, jax.tree.map(of, params)
