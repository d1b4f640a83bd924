"""Which cores and devices a role runs on.

Learner and samplers each take half of the cores, so they never fight for the same ones and a
role's number of threads (on which the last bits of XLA's sums depend) does not change with the
number of samplers.
"""

import os
from collections.abc import Sequence

import jax

# A process with this many chips of one TPU host -> the block of the host's grid that they are.
_TPU_BLOCKS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
_TPU_PORT = 8476  # of the process that has chip 0; libtpu wants one of each process
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


def start_backend(
    field: str,
    platform: str,
    num_devices: int = 1,
    devices: Sequence[str] = (),
    num_processes: int = 1,
) -> None:
    """Starts jax on a platform, or on its own choice if that is empty.

    Args:
        field: of the config that names it.
        platform: of jax.
        num_devices: that are needed; where they are CPUs, the cores are split into as many.
        devices: that this process takes, as of `devices_environment`; empty for all.
        num_processes: of `jax.distributed`, each of which needs an equal share of the devices.

    Raises:
        NoDevice: there is none here, or not as many.
    """
    os.environ.update(devices_environment(platform, devices))
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


def devices_environment(platform: str, devices: Sequence[str]) -> dict[str, str]:
    """What gives a process these devices alone, before jax starts its backend; nothing for none.

    Args:
        platform: `cuda` or `tpu`.
        devices: numbers of its GPUs, or of its TPU chips, which are a block of the host's.
    """
    if not devices:
        return {}
    named = ",".join(devices)
    if platform == "cuda":
        return {"CUDA_VISIBLE_DEVICES": named}
    port = str(_TPU_PORT + int(devices[0]))
    return {
        "TPU_VISIBLE_CHIPS": named,
        # A slice of its own, of one process.
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _TPU_BLOCKS[len(devices)],
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "TPU_PROCESS_PORT": port,
        "CLOUD_TPU_TASK_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def role_environment(
    platform: str, devices: Sequence[str] = (), num_devices: int = 1, memory_fraction: float = 0.0
) -> dict[str, str]:
    """Environment of a sampler or the evaluator: this one's, with its own platform and devices.

    Args:
        platform: of jax.
        devices: as of `devices_environment`.
        num_devices: simulated ones, where they are CPUs.
        memory_fraction: of each GPU that it may take; 0 for what this process was given.
    """
    environment = dict(os.environ)
    # Simulated host devices are the learner's; a sampler has its own. Other flags stay, so that
    # both compile alike.
    kept = [f for f in environment.get("XLA_FLAGS", "").split() if _HOST_DEVICES not in f]
    if platform == "cpu" and num_devices > 1:
        kept.append(f"{_HOST_DEVICES}={num_devices}")
    environment["XLA_FLAGS"] = " ".join(kept)
    environment["JAX_PLATFORMS"] = platform
    if platform == "cuda":
        # Memory is taken as it is needed: sampler, evaluator and another sampler may share a GPU.
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if memory_fraction:
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{memory_fraction:g}"
    return environment | devices_environment(platform, devices)
