"""Slices of TPUs that need not be there: their names, their chips, and devices for compilers."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
import ml_collections


@dataclasses.dataclass(frozen=True)
class Kind:
    """A generation of TPUs.

    Attributes:
        accelerator: how its accelerator types begin.
        num_axes: of a slice.
        cores: of a chip, which accelerator types of some generations count.
        host: the chips of a host, along each axis.
        largest: the most chips of a slice.
        hbm_gib: of a chip, that the compiler lets a program have.
    """

    accelerator: str
    num_axes: int
    cores: int
    host: tuple[int, ...]
    largest: int
    hbm_gib: float


KINDS = {
    "v5e": Kind("v5litepod", 2, 1, (2, 2), 256, 15.75),
    "v5p": Kind("v5p", 3, 2, (2, 2, 1), 8960, 95.73),
    "v6e": Kind("v6e", 2, 1, (2, 2), 256, 31.24),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of TPUs.

    Attributes:
        kind: a name in `KINDS`.
        sizes: chips along each axis.
    """

    kind: str
    sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        """As in v5e:4x4."""
        return f"{self.kind}:{'x'.join(map(str, self.sizes))}"

    @property
    def num_chips(self) -> int:
        """Of the slice."""
        return math.prod(self.sizes)

    @property
    def num_hosts(self) -> int:
        """Machines that have its chips; up to eight of a slice with two axes may be on one."""
        kind = KINDS[self.kind]
        chips = math.prod(kind.host)
        return 1 if kind.num_axes == 2 and self.num_chips <= 8 else -(-self.num_chips // chips)

    @property
    def hbm_bytes(self) -> int:
        """Of a chip, for a program."""
        return round(KINDS[self.kind].hbm_gib * 2**30)

    @property
    def accelerator_type(self) -> str:
        """What cloud tools call it, as in v5litepod-16."""
        kind = KINDS[self.kind]
        return f"{kind.accelerator}-{self.num_chips * kind.cores}"


def slice_named(name: str) -> Slice:
    """The slice of a name such as v5e:4x4.

    Raises:
        ValueError: there is none.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    kind = KINDS.get(match[1]) if match else None
    if match is not None and kind is not None:
        sizes = tuple(map(int, match[2].split("x")))
        # Whole hosts, or a single chip.
        fits = len(sizes) == kind.num_axes and (
            set(sizes) == {1}
            or all(size % along == 0 for size, along in zip(sizes, kind.host, strict=True))
        )
        if fits and 0 < math.prod(sizes) <= kind.largest:
            return Slice(match[1], sizes)
    raise ValueError(
        f"--topology={name}: must be v5e:AxB, v6e:AxB or v5p:AxBxC, of whole hosts of "
        "2x2 chips or one chip, such as v5e:4x4, v6e:2x4, v5p:2x2x1 or v5e:1x1"
    )


def check_compiler() -> None:
    """Refuses to go on without the TPU compiler.

    Raises:
        ValueError: it is not installed; says how to install it.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "--topology: the TPU compiler is not installed, "
            "`pip install 'asympo_jax[tpu]'` or `pip install libtpu` brings it"
        )


def spread_over(config: ml_collections.ConfigDict, wanted: Slice) -> list[str]:
    """Gives the learner all chips of a slice by `learner.fsdp` if it has one device.

    Its micro-batch grows to what the chips share evenly.

    Returns:
        A sentence on what was changed, if anything was.

    Raises:
        ValueError: the learner has several devices, but not as many as chips.
    """
    learner, num_chips = config.learner, wanted.num_chips
    num_devices = learner.data * learner.fsdp * learner.tensor
    if num_devices == num_chips:
        return []
    if num_devices != 1:
        raise ValueError(
            f"learner.data={learner.data}, learner.fsdp={learner.fsdp}, learner.tensor="
            f"{learner.tensor} with --topology={wanted.name}: their product must be 1, or "
            f"{num_chips}, the chips there"
        )
    learner.fsdp, changed = num_chips, f"--config.learner.fsdp={num_chips}"
    if learner.micro_batch % num_chips:
        learner.micro_batch += -learner.micro_batch % num_chips
        changed += f" --config.learner.micro_batch={learner.micro_batch}"
    return [f"the learner is planned with {changed}, which a run needs to be told, too"]


def devices_of(wanted: Slice, effort: str = "O0") -> list[Any]:
    """The devices of a slice, for compilers alone.

    The process has no other TPUs from here on, no slice of another kind, and compiles with this
    effort.

    Args:
        wanted: the slice.
        effort: of the compiler for speed, from O0 to O3; UNKNOWN is its usual one.

    Raises:
        ValueError: the compiler knows no such slice.
    """
    os.environ["TPU_ACCELERATOR_TYPE"] = wanted.accelerator_type
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no TPU is taken from anybody
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is nobody to ask what machine this is
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_optimization_level", effort)
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=wanted.name)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--topology={wanted.name}: the TPU compiler does not know it ({error})"
        ) from error
    assert len(found.devices) == wanted.num_chips, found.devices
    return found.devices
