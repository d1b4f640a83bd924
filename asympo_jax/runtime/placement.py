"""Which cores and devices a role runs on.

Learner and samplers each take half of the cores, so they never fight for the same ones and a
role's number of threads (on which the last bits of XLA's sums depend) does not change with the
number of samplers.
"""

import os

import jax

_HOST_DEVICES = "--xla_force_host_platform_device_count"


def available_cores() -> list[int]:
    """Cores that this process may use, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def split_cores(cores: list[int]) -> tuple[list[int], list[int]]:
    """Cores of the learner and of all samplers together; both the one there is if only one."""
    half = len(cores) // 2
    return (cores[:half], cores[half : 2 * half]) if half else (cores, cores)


def sampler_cores(shared: list[int], index: int, cores_each: int) -> list[int]:
    """Cores of sampler `index`: all the samplers' share, or `cores_each` of its own (wrapping)."""
    if not cores_each:
        return shared
    start = index * cores_each
    return sorted({shared[(start + i) % len(shared)] for i in range(min(cores_each, len(shared)))})


def pin(cores: list[int]) -> None:
    """Confines this process to the cores; before jax starts a backend, whose pool follows it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


class NoDevice(Exception):
    """A platform that jax has no devices of here."""


def start_backend(field: str, platform: str, num_devices: int = 1, num_processes: int = 1) -> None:
    """Starts jax on a platform, or on its own choice if that is empty.

    Args:
        field: of the config that names it.
        platform: of jax.
        num_devices: that are needed; where they are CPUs, the cores are split into as many.
        num_processes: of `jax.distributed`, each of which needs an equal share of the devices.

    Raises:
        NoDevice: there is none here, or not as many.
    """
    if platform:
        jax.config.update("jax_platforms", platform)
    try:
        num_devices //= num_processes
        if num_devices > 1 and _HOST_DEVICES not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", num_devices)
        if num_processes > 1:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        found = jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        words = f" ({error})" if str(error) else ""
        raise NoDevice(f"{field}={platform!r}: jax finds no such device here{words}") from error
    if len(found) < num_devices:
        share = f" / {num_processes} processes" if num_processes > 1 else ""
        raise NoDevice(
            f"learner.data * learner.fsdp * learner.tensor{share} = {num_devices}: jax finds "
            f"{len(found)} devices of platform {found[0].platform!r} here"
        )


def device_kinds() -> list[str]:
    """What jax calls the devices of this process."""
    return [device.device_kind for device in jax.devices()]


def role_environment(platform: str, visible_devices: str, num_devices: int = 1) -> dict[str, str]:
    """Environment of a sampler or the evaluator: this one's, with its own platform and devices."""
    environment = dict(os.environ)
    # Simulated host devices are the learner's; a sampler has its own. Other flags stay, so that
    # both compile alike.
    kept = [f for f in environment.get("XLA_FLAGS", "").split() if _HOST_DEVICES not in f]
    if platform == "cpu" and num_devices > 1:
        kept.append(f"{_HOST_DEVICES}={num_devices}")
    environment["XLA_FLAGS"] = " ".join(kept)
    environment["JAX_PLATFORMS"] = platform
    if platform == "cuda":
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if visible_devices:
        name = "CUDA_VISIBLE_DEVICES" if platform == "cuda" else "TPU_VISIBLE_CHIPS"
        environment[name] = visible_devices
    return environment
