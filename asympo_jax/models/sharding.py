"""Where parameters and rows lie on a mesh of devices: one table of logical axes.

Each axis of a parameter has a name, and each name a part of the mesh that it is split over. XLA
does the rest: what it needs whole for a product it gathers, and gradients come out split alike.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from asympo_jax.models.config import ModelConfig

# Of the mesh: copies of the parameters, parts of the parameters, parts of each product.
AXES = ("data", "fsdp", "tensor")
_KINDS = (AxisType.Auto,) * len(AXES)
# What the rows of a batch are split over, so that `fsdp` parts the work as well as the memory.
ROWS = ("data", "fsdp")
VOCABULARY = "tensor"

# Logical axis -> axis of the mesh, and the field of `ModelConfig` that is its size.
_RULES = {
    "vocabulary": (VOCABULARY, "vocab_size"),
    "width": ("fsdp", "width"),
    "heads": ("tensor", "num_heads"),
    "kv_heads": ("tensor", "num_kv_heads"),
    "mlp": ("tensor", "mlp_width"),
}
# Logical axes of the inputs and the outputs of a matrix; None is not split.
_MATRICES: dict[str, tuple[tuple[str | None, ...], tuple[str | None, ...]]] = {
    "embedding": (("vocabulary",), ("width",)),
    "head": (("vocabulary",), ("width",)),
    "query": (("width",), ("heads", None)),
    "key": (("width",), ("kv_heads", None)),
    "value": (("width",), ("kv_heads", None)),
    "out": (("heads", None), ("width",)),
    "gate": (("width",), ("mlp",)),
    "up": (("width",), ("mlp",)),
    "down": (("mlp",), ("width",)),
}


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices there are along each axis of a mesh.

    Attributes:
        data: that hold the same parameters, each for its own rows.
        fsdp: that hold a part of the parameters, and have their own rows, too.
        tensor: that work on parts of the heads, the MLP and the vocabulary of the same rows.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def num_devices(self) -> int:
        """All of the mesh."""
        return self.data * self.fsdp * self.tensor

    @property
    def num_row_shards(self) -> int:
        """Parts that the rows of a batch are split into."""
        return self.data * self.fsdp

    def check(self, model: ModelConfig, role: str = "learner") -> None:
        """Refuses a mesh that does not divide what it splits.

        Args:
            model: the decoder.
            role: whose devices they are.

        Raises:
            ValueError: naming the field, its value and what it must divide.
        """
        for axis, field in _RULES.values():
            size, parts = getattr(model, field), getattr(self, axis)
            if size % parts:
                raise ValueError(
                    f"{role}.{axis}={parts}: must divide the decoder's {field}, which is {size}"
                )

    def check_processes(self, count: int) -> None:
        """Refuses a mesh of which so many processes cannot have equal shares.

        Raises:
            ValueError: naming the fields, their product and what must divide it.
        """
        if self.num_devices % count:
            raise ValueError(
                f"learner.data * learner.fsdp * learner.tensor = {self.num_devices}: must be a "
                f"multiple of the {count} processes, each of which has as many devices of it"
            )

    def make(self) -> Mesh | None:
        """The mesh of the first devices of each process; None for one device, which needs none."""
        if self.num_devices == 1:
            return None
        processes = range(jax.process_count())
        share = self.num_devices // len(processes)
        devices = [d for i in processes for d in jax.local_devices(process_index=i)[:share]]
        return jax.make_mesh(self._sizes, AXES, _KINDS, devices=devices)

    def without_devices(self) -> AbstractMesh:
        """The mesh alone, for what can be said of it before any device is touched."""
        return AbstractMesh(self._sizes, AXES, _KINDS)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """In the order of `AXES`."""
        return self.data, self.fsdp, self.tensor


def sharding_of(mesh: Mesh | AbstractMesh, path: str) -> NamedSharding:
    """Where a parameter lies, or what an optimiser keeps for it.

    Args:
        mesh: the devices.
        path: names from the root to it, such as "layer_0/attention/query/kernel"; those before the
            last two do not matter.
    """
    axes = _logical_axes(path.split("/"))
    return NamedSharding(mesh, PartitionSpec(*(_RULES[axis][0] if axis else None for axis in axes)))


def shardings_of(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """`sharding_of` every array of a tree: parameters, adapters, what an optimiser keeps."""

    def of(path: Any, leaf: Any) -> NamedSharding:
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        found = sharding_of(mesh, "/".join(names))
        assert len(found.spec) in (0, len(leaf.shape)), (names, leaf.shape)
        return found

    return jax.tree_util.tree_map_with_path(of, tree)


def placed(mesh: Mesh | None, tree: Any) -> Any:
    """The arrays where the table says, one after the other; as they are without a mesh.

    On a mesh of several processes each of them must have the whole tree, or have it placed.
    """
    if mesh is None:
        return tree
    place = _put_here if mesh.is_multi_process else jax.device_put
    return jax.tree.map(place, tree, shardings_of(mesh, tree))


def put(sharding: jax.sharding.Sharding, x: Any) -> jax.Array:
    """What is on the host, on the devices; each process has all of it and puts its own part."""
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)


def gathered(tree: Any) -> Any:
    """The arrays with all of their parts in this process; those that have them stay as they are.

    Of arrays on a mesh of several processes a whole copy goes to one device of each, in its turn;
    all processes must call it for the same arrays in the same order.
    """
    return jax.tree.map(_gathered, tree)


def _put_here(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array on a mesh of several processes."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    return put(sharding, x)


def _gathered(x: Any) -> Any:
    """A whole array."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return x
    assert isinstance(x.sharding, NamedSharding), x.sharding
    return _everywhere(x.sharding.mesh)(x).addressable_data(0)


@functools.cache
def _everywhere(mesh: Mesh | AbstractMesh) -> Callable[[Array], Array]:
    """A program that gives all devices of a mesh all of an array."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def kept_placed(mesh: Mesh | None, tree: Any) -> Any:
    """Within a jitted function: these arrays, and gradients by them, lie where the table says."""
    if mesh is None:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings_of(mesh, tree))


def row_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Where an array lies whose rows are along an axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, ROWS))


def kept_by_rows(mesh: Mesh | None, x: Array) -> Array:
    """Within a jitted function: every device has its own rows of `x`, with all that is in them."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, row_sharding(mesh))


def kept_by_vocabulary(mesh: Mesh | None, table_VD: Array) -> Array:
    """Within a jitted function: rows of the table stay apart, and their width is put together.

    Else XLA would put together what all devices look up in it, of all rows of the batch.
    """
    if mesh is None:
        return table_VD
    place = NamedSharding(mesh, PartitionSpec(VOCABULARY))
    return jax.lax.with_sharding_constraint(table_VD, place)


def kept_by_heads(mesh: Mesh | None, tree: Any) -> Any:
    """Within a jitted function: every device has the keys and values of its own heads.

    Args:
        mesh: the devices; None for one.
        tree: of arrays whose second axis is that of key/value heads.
    """
    if mesh is None:
        return tree
    place = heads_sharding(mesh)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, place), tree)


def heads_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Where an array lies whose second axis is that of key/value heads."""
    return NamedSharding(mesh, PartitionSpec(None, _RULES["kv_heads"][0]))


def _logical_axes(path: list[str]) -> tuple[str | None, ...]:
    """Logical axes of a parameter; none of a vector or a scalar that all devices have whole."""
    matrix = next((name for name in path[-2:] if name in _MATRICES), None)
    if matrix is None:
        return ()
    inputs, outputs = _MATRICES[matrix]
    match path[-1]:
        case "bias" | "kernel_scale":
            return outputs
        case "lora_a":
            return (*inputs, None)
        case "lora_b":
            return (None, *outputs)
        case "lora_scale":
            return ()
    return (*inputs, *outputs)
