"""The TPU compiler's own numbers for a slice of TPUs that need not be there.

The compiler comes with the wheel libtpu and runs on the CPU. It is given the learner's step, over
the chips of the slice, and a decode segment of a sampler on those of one copy of its parameters,
one unless `sampler.tensor` says more. Layers are unrolled, so the time to compile grows with their
number. They are also all alike: two programs of few layers say what each layer adds, and a line
through them what all of them take. They are compiled at the same time, with the least effort for
speed, which takes a fraction of the usual time: they keep in HBM what faster programs may not.
"""

import concurrent.futures
import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, SingleDeviceSharding

from asympo_jax.models.sharding import AXES
from asympo_jax.plan import programs
from asympo_jax.plan.estimate import Line
from asympo_jax.plan.subject import Subject
from asympo_jax.plan.topology import Slice, devices_of

# Layers of the programs that are compiled instead of the whole one. Both even, as the number of a
# model mostly is: some temporaries are there with an even number of layers alone, or an odd one.
FEW, MORE = 2, 4
_LEARNER_KNOBS = (
    "learner.remat=full, a smaller learner.micro_batch or learner.logp_chunk, lora.rank, or more "
    "chips for learner.fsdp"
)
_SAMPLER_KNOBS = "a smaller sampler.lanes, or sampler.params_dtype bfloat16 or int8"
# What is needed and what there is, in the compiler's words; it names the temporaries alone.
_OUT_OF_MEMORY = re.compile(
    r"([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)",
)


class TooLarge(Exception):
    """The compiler refuses a program. `needed` and `available` are bytes of a chip."""

    def __init__(self, needed: int, available: int):
        """Carries the sizes."""
        super().__init__(f"{needed} bytes of {available}")
        self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a chip that a program takes.

    Attributes:
        arguments: that it is given.
        outputs: that it returns.
        aliased: of the outputs, in the place of arguments.
        temporaries: while it runs.
        program: its code.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    program: int

    @property
    def together(self) -> int:
        """All of it."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


def compiled_lines(subject: Subject, wanted: Slice, is_whole: bool) -> Iterator[Line]:
    """What the compiler says of the learner's step and of a decode segment.

    Args:
        subject: what is planned.
        wanted: the slice.
        is_whole: whether all layers are compiled, as a run compiles them; else few, from which the
            rest follows, with less effort.
    """
    devices = devices_of(wanted, "UNKNOWN" if is_whole else "O0")
    mesh = subject.config.learner.mesh
    section = f"learner's step, compiled for each of {mesh.num_devices} chips of {wanted.name}"
    yield from _lines(section, wanted, subject, is_whole, step_on(devices), _LEARNER_KNOBS)
    tensor = subject.config.sampler.tensor
    chips = f"each of {tensor} chips" if tensor > 1 else "a chip"
    section = f"sampler's decode segment, compiled for {chips} of {wanted.name}"
    yield from _lines(section, wanted, subject, is_whole, segment_on(devices), _SAMPLER_KNOBS)


def step_on(devices: Any) -> Callable[[Subject], Any]:
    """A function of a subject to its learner's step on the chips of a slice, traced."""

    def traced(subject: Subject) -> Any:
        shape, mesh = subject.config.learner.mesh, None
        if shape.num_devices > 1:
            grid = np.array(devices).reshape(shape.data, shape.fsdp, shape.tensor)
            mesh = Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
        return programs.traced_step(subject, mesh, SingleDeviceSharding(devices[0]))

    return traced


def segment_on(devices: Any) -> Callable[[Subject], Any]:
    """A function of a subject to its decode segment on the chips of a copy, traced."""
    return lambda subject: programs.traced_decode(subject, devices)


def memory_of(subject: Subject, traced: Callable[[Subject], Any]) -> Memory:
    """What the compiler says of the whole program.

    Raises:
        TooLarge: it refuses it.
    """
    try:
        found = traced(subject).lower().compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        sizes = _OUT_OF_MEMORY.search(str(error))
        if sizes is None:
            raise
        raise TooLarge(_size(*sizes.group(1, 2)), _size(*sizes.group(3, 4))) from error
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        program=found.generated_code_size_in_bytes,
    )


def extrapolated(subject: Subject, traced: Callable[[Subject], Any]) -> Memory:
    """What the whole program takes, by what programs of few layers take.

    Raises:
        TooLarge: the compiler refuses even one of those.
    """
    num_layers = subject.model.num_layers
    if num_layers <= MORE:
        return memory_of(subject, traced)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        subjects = [with_layers(subject, count) for count in (FEW, MORE)]
        few, more = map(dataclasses.astuple, pool.map(memory_of, subjects, [traced] * 2))
    steps = (num_layers - MORE) / (MORE - FEW)
    return Memory(*(round(y + steps * (y - x)) for x, y in zip(few, more, strict=True)))


def with_layers(subject: Subject, num_layers: int) -> Subject:
    """The same experiment with a decoder of another number of layers."""
    model = dataclasses.replace(subject.model, num_layers=num_layers)
    return dataclasses.replace(subject, model=model)


def _lines(
    section: str,
    wanted: Slice,
    subject: Subject,
    is_whole: bool,
    traced: Callable[[Subject], Any],
    knobs: str,
) -> Iterator[Line]:
    """A program's memory, or how much too large it is."""
    start = time.monotonic()
    try:
        memory = (memory_of if is_whole else extrapolated)(subject, traced)
    except TooLarge as refused:
        yield Line(section, "HBM needed, at least", refused.needed, "bytes")
        yield Line(section, "HBM of a chip", refused.available, "bytes")
        yield Line(section, "does not fit", f"less is used with {knobs}")
        return
    names = ("arguments", "outputs", "of them in the place of arguments", "temporaries", "program")
    for name, size in zip(names, dataclasses.astuple(memory), strict=True):
        yield Line(section, name, size, "bytes")
    yield Line(section, "HBM together", memory.together, "bytes")
    yield Line(section, "HBM of a chip", wanted.hbm_bytes, "bytes")
    if memory.together > wanted.hbm_bytes:
        yield Line(section, "does not fit", f"less is used with {knobs}")
    if not is_whole and subject.model.num_layers > MORE:
        yield Line(section, "by programs of", f"{FEW} and {MORE} layers")
    if not is_whole:
        yield Line(section, "compiled with", "the least effort for speed, which may take more HBM")
    yield Line(section, "time to lower and compile", round(time.monotonic() - start, 1), "s")


def _size(number: str, unit: str) -> int:
    """Bytes of what the compiler writes as in 15.75G."""
    return round(float(number) * 2 ** {"K": 10, "M": 20, "G": 30}[unit])
