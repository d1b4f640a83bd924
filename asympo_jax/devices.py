"""Which accelerators each role has, checked before any of them is touched.

The fields named `visible_devices` are lists of devices of this machine. What no two processes can
share is refused here: a TPU chip has one process, and a learner on GPUs takes most of their memory.
"""

import re
from typing import Protocol

from asympo_jax.runtime import placement
from asympo_jax.sections import EvalConfig, LearnerConfig, SamplerConfig

_ACCELERATORS = ("cuda", "tpu")
# Of CUDA, the names of a GPU or of a part of one are allowed, too.
_ALLOWED = {"cuda": r"0|[1-9][0-9]*|(GPU|MIG)-[\w/-]+", "tpu": r"0|[1-9][0-9]*"}
_TPU_COUNTS = (1, 2, 4, 8)  # chips of one host that a process may have


class _Placed(Protocol):
    """A section that says where its role runs."""

    @property
    def platform(self) -> str: ...

    @property
    def visible_devices(self) -> str: ...


def of_samplers(sampler: SamplerConfig) -> list[tuple[str, ...]]:
    """The devices of each sampler, dealt out in order; none where they are not named.

    Where there are fewer devices than samplers, as many samplers have each.
    """
    named = _split(sampler.visible_devices)
    share = max(1, len(named) // sampler.count)
    samplers_each = max(1, share * sampler.count // max(1, len(named)))
    starts = (index // samplers_each * share for index in range(sampler.count))
    return [named[start : start + share] for start in starts]


def of_one(section: _Placed) -> tuple[str, ...]:
    """The devices of the learner or of the evaluator; none where they are not named."""
    return _split(section.visible_devices)


def start_learner(learner: LearnerConfig, num_processes: int = 1) -> None:
    """Gives this process the learner's devices and starts jax on them.

    Args:
        learner: its section.
        num_processes: of `jax.distributed`, each of which needs an equal share of the devices.

    Raises:
        NoDevice: they are not there, or not as many.
    """
    num_devices = learner.mesh.num_devices
    named = of_one(learner)
    if named and num_processes > 1 and learner.platform == "tpu":
        raise placement.NoDevice(
            f"learner.visible_devices={learner.visible_devices!r}: goes with one process, and here "
            f"are {num_processes}; must be empty"
        )
    placement.start_backend("learner.platform", learner.platform, num_devices, named, num_processes)


def check(
    learner: LearnerConfig, sampler: SamplerConfig, evaluation: EvalConfig, are_here: bool = True
) -> None:
    """Refuses devices that cannot be had as they are named.

    Args:
        learner: its section.
        sampler: of processes of their own.
        evaluation: its section; its devices count where it is a process of its own.
        are_here: whether samplers take devices of this machine; else others give them theirs.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    check_learner(learner)
    roles: dict[str, _Placed] = {"learner": learner}
    if are_here:
        _check_names("sampler", sampler)
        _check_samplers(sampler)
        roles["sampler"] = sampler
    if sampler.tensor > 1 and not evaluation.process:
        raise ValueError(
            f"eval.process=False with sampler.tensor={sampler.tensor}: the learner evaluates on "
            "one device, must be True"
        )
    if evaluation.process:
        _check_names("eval", evaluation)
        _check_evaluator(evaluation, sampler.tensor)
        roles["eval"] = evaluation
    for name, devices in (("sampler", of_samplers(sampler)), ("eval", [of_one(evaluation)])):
        if name in roles and roles[name].platform == "tpu":
            for chips in devices:
                _check_chips(name, roles[name].visible_devices, chips)
    _check_overlaps(roles)


def check_learner(learner: LearnerConfig) -> None:
    """Refuses devices that the learner alone cannot have.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    _check_names("learner", learner)
    named = of_one(learner)
    if not named:
        return
    # Of several processes each has as many.
    if learner.mesh.num_devices % len(named):
        raise ValueError(
            f"learner.visible_devices={learner.visible_devices!r}: the number of devices must "
            f"divide learner.data * learner.fsdp * learner.tensor = {learner.mesh.num_devices}"
        )
    if learner.platform == "tpu":
        _check_chips("learner", learner.visible_devices, named)


def _split(text: str) -> tuple[str, ...]:
    """The names in a list."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _check_names(role: str, section: _Placed) -> None:
    """Refuses devices without a platform that has them, and what is no list of them."""
    if not section.visible_devices:
        return
    field = f"{role}.visible_devices={section.visible_devices!r}"
    if section.platform not in _ACCELERATORS:
        raise ValueError(
            f"{field}: goes with {role}.platform 'cuda' or 'tpu', not {section.platform!r}"
        )
    named = _split(section.visible_devices)
    if not all(re.fullmatch(_ALLOWED[section.platform], name) for name in named):
        raise ValueError(f"{field}: must be numbers of devices with commas between, such as '2,3'")
    if len(set(named)) < len(named):
        raise ValueError(f"{field}: must name each device once")


def _check_samplers(sampler: SamplerConfig) -> None:
    """Refuses devices that cannot be dealt out to the samplers."""
    count, num_named = sampler.count, len(_split(sampler.visible_devices))
    field = f"sampler.visible_devices={sampler.visible_devices!r}"
    if not num_named:
        if count > 1 and sampler.platform in _ACCELERATORS:
            raise ValueError(
                f"{field} with sampler.count={count} and sampler.platform={sampler.platform!r}: "
                "must name devices, which are dealt out to the samplers"
            )
        return
    is_shared = sampler.platform == "cuda" and num_named < count
    if num_named % count and not (is_shared and count % num_named == 0):
        words = " or divide it" if sampler.platform == "cuda" else ": a TPU chip has one process"
        raise ValueError(
            f"{field}: the number of devices must be a multiple of sampler.count={count}{words}"
        )
    num_sharing = count // num_named if is_shared else 1
    if is_shared and not 0 < sampler.memory_fraction * num_sharing <= 1:
        raise ValueError(
            f"sampler.memory_fraction={sampler.memory_fraction}: must be above 0 and at most "
            f"1 / {num_sharing}, as {num_sharing} samplers share each GPU of {field}"
        )
    share = 1 if is_shared else num_named // count
    # The chips of TPU v2 and v3 are two devices each.
    if sampler.devices not in ((share, 2 * share) if sampler.platform == "tpu" else (share,)):
        raise ValueError(
            f"sampler.devices={sampler.devices}: must be {share}, the devices that {field} gives "
            f"each of sampler.count={count} samplers"
        )


def _check_evaluator(evaluation: EvalConfig, num_devices: int) -> None:
    """Refuses devices that the evaluator would not use."""
    named = of_one(evaluation)
    if named and len(named) != num_devices:
        raise ValueError(
            f"eval.visible_devices={evaluation.visible_devices!r}: must name {num_devices}, as "
            "many as a copy of the parameters takes (sampler.tensor)"
        )


def _check_chips(role: str, text: str, chips: tuple[str, ...]) -> None:
    """Refuses chips of a TPU that are no block of its grid, which libtpu wants of a process."""
    if not chips:
        return
    first, count = int(chips[0]), len(chips)
    block = tuple(str(first + i) for i in range(count))
    if count not in _TPU_COUNTS or chips != block or first % count:
        raise ValueError(
            f"{role}.visible_devices={text!r}: gives a process the TPU chips {','.join(chips)}, "
            f"must give it {', '.join(map(str, _TPU_COUNTS[:-1]))} or {_TPU_COUNTS[-1]} that "
            "follow each other, the first a multiple of their number"
        )


def _check_overlaps(roles: dict[str, _Placed]) -> None:
    """Refuses devices that two processes would take."""
    names = list(roles)
    for role, other in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
        mine, theirs = roles[role], roles[other]
        platforms = {mine.platform, theirs.platform}
        # What jax chooses on a host of TPUs is its TPUs, and on one of GPUs all of these.
        on_tpu, on_gpu = (p in platforms and platforms <= {p, ""} for p in ("tpu", "cuda"))
        is_named = [bool(section.visible_devices) for section in (mine, theirs)]
        if (on_tpu or (on_gpu and any(is_named))) and not all(is_named):
            name = (role, other)[is_named.index(False)]
            raise ValueError(
                f"{name}.visible_devices='' with {role}.platform={mine.platform!r} and "
                f"{other}.platform={theirs.platform!r}: must name devices that no other process "
                "has, or one of the two platforms must be 'cpu'"
            )
        both = sorted({*of_one(mine)} & {*of_one(theirs)})
        can_share = {role, other} == {"sampler", "eval"} and mine.platform == "cuda"
        if both and mine.platform == theirs.platform and not can_share:
            raise ValueError(
                f"{other}.visible_devices={theirs.visible_devices!r} with "
                f"{role}.visible_devices={mine.visible_devices!r}: both have device {both[0]}, "
                "must be others"
            )
