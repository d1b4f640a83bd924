"""How each process of a learner begins: its devices, its checkpoints, its first state."""

import contextlib
import functools
import itertools
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from asympo_jax import devices, interrupts, models, shared_directories, states
from asympo_jax.endings import RunFailed, failures
from asympo_jax.experiment import Parts
from asympo_jax.hosts import Hosts
from asympo_jax.initial import initial_params
from asympo_jax.learning import TrainState
from asympo_jax.runtime import placement
from asympo_jax.runtime.checkpoint import Checkpointer
from asympo_jax.runtime.compilation import keep_compiled
from asympo_jax.runtime.lockstep import Lockstep
from asympo_jax.runtime.private_directories import make_private_directory
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.settings import ExperimentConfig


def announce(
    config: ExperimentConfig, workdir: pathlib.Path, attempt: str, lockstep: Lockstep
) -> None:
    """Says to the other processes of a run, if there are any, that it begins, and with what.

    Raises:
        RunFailed: the workdir cannot be written.
    """
    if lockstep.is_alone:
        return
    with failures(OSError):
        shared_directories.mark(workdir, attempt)
    lockstep.announce("begin", config=config.sha256, attempt=attempt)


def enter_directory(stack: contextlib.ExitStack, parent: str | None, name: str) -> pathlib.Path:
    """A new private directory; it goes when the stack is left, or in an end at once.

    Args:
        stack: of who needs it.
        parent: as of `make_private_directory`.
        name: as of `make_private_directory`.
    """
    with interrupts.held_back():
        directory, lock = make_private_directory(parent, name)
        remove = functools.partial(shutil.rmtree, directory, ignore_errors=True)
        stack.enter_context(lock)
        stack.callback(remove)
        stack.enter_context(interrupts.cleaning(remove))
    return directory


def start_learner(config: ExperimentConfig, num_processes: int) -> jax.sharding.Mesh | None:
    """Starts jax on the learner's devices; after this process is pinned.

    Returns:
        Their mesh, None for one device.

    Raises:
        RunFailed: they are not here.
    """
    keep_compiled(config.compilation_cache)
    try:
        devices.start_learner(config.learner, num_processes)
    except placement.NoDevice as error:
        raise RunFailed(str(error)) from error
    mesh = config.learner.mesh.make()
    if mesh is not None and mesh.is_multi_process:
        _meet(mesh)
    return mesh


def _meet(mesh: jax.sharding.Mesh) -> None:
    """Has all devices that will ever talk to each other do so now.

    CPUs connect when they first do, and give up after 30 s: one process may compile the step that
    much longer than another.
    """
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    groups = [g for n in range(len(axes)) for g in itertools.combinations(axes, n + 1)]

    def sums(x: jax.Array) -> list[jax.Array]:
        return [jax.lax.psum(x, group) for group in groups]

    whole = jax.sharding.PartitionSpec()
    everywhere = jax.sharding.NamedSharding(mesh, whole)
    program = jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=whole, out_specs=whole))
    jax.block_until_ready(program(models.put(everywhere, np.zeros(1, np.float32))))


def open_checkpoints(
    config: ExperimentConfig, workdir: pathlib.Path, num_processes: int
) -> Checkpointer:
    """The checkpoints of a run that goes on, in each of the processes that write them."""
    return Checkpointer(
        workdir,
        config.checkpoint.keep,
        is_owner=True,
        stall_s=config.stall_s,
        num_processes=num_processes,
    )


def take_up(
    config: ExperimentConfig,
    parts: Parts,
    workdir: pathlib.Path,
    store: SnapshotStore,
    checkpointer: Checkpointer,
    check: Callable[[], None],
    mesh: jax.sharding.Mesh | None,
    lockstep: Lockstep,
) -> tuple[TrainState, int]:
    """The state to go on from, whose snapshots are written; updates skipped in a row before.

    Args:
        config: the experiment.
        parts: its task and model.
        workdir: of the run.
        store: where the snapshots go.
        checkpointer: whose newest checkpoint it is taken from, if there is one.
        check: called now and then; raises to end a run that cannot go on.
        mesh: where the state lies.
        lockstep: with the other processes.
    """
    latest = checkpointer.latest()
    place = {"snapshots": str(store.directory), "run_id": store.run_id}
    lockstep.announce("state", update=-1 if latest is None else latest, **place)
    if latest is not None:
        like = states.state_like(config, parts, workdir, checkpointer, mesh)
        restored = checkpointer.restore(like, config.pacing.prompts_per_update)
        publish(store, restored.state.base, restored.snapshots)
        return restored.state, restored.skipped

    def check_both() -> None:
        interrupts.raise_if_received()
        check()

    state = first_state(config, parts, workdir, check_both, mesh, lockstep)
    publish(store, state.base, {0: state.params})
    return state, 0


def first_state(
    config: ExperimentConfig,
    parts: Parts,
    workdir: pathlib.Path,
    check: Callable[[], None],
    mesh: jax.sharding.Mesh | None,
    lockstep: Lockstep,
) -> TrainState:
    """The state at update 0.

    Args:
        config: the experiment.
        parts: its task and model.
        workdir: of the run.
        check: called now and then; raises to end a run that cannot go on.
        mesh: where the state lies.
        lockstep: with the other processes.
    """
    from_first = functools.partial(lockstep.from_first, check=check)
    # Only reading finds some of what is wrong with a Hugging Face directory.
    with failures(ValueError) if config.hf_dir else contextlib.nullcontext():
        params = initial_params(config, parts, workdir, check, mesh, from_first)
    return states.first_state(config, parts, params, mesh)


def make_store(
    config: ExperimentConfig, directory: pathlib.Path, run_id: str, hosts: Hosts
) -> SnapshotStore:
    """Where an attempt at a run publishes; only in a directory of the user's do all hosts write."""
    return SnapshotStore(
        directory,
        run_id,
        config.sampler.params_dtype,
        part=hosts.index,
        num_parts=1 if config.snapshot_dir is None else hosts.count,
        written=functools.partial(hosts.lockstep.written, timeout_s=config.stall_s),
    )


def publish(store: SnapshotStore, base: Any, snapshots: Mapping[int, Any]) -> None:
    """Writes the snapshots that a run begins with; all processes must call it.

    Args:
        store: of the attempt.
        base: of adapters, None without them.
        snapshots: version -> parameters; those that only one process has are not of the others.
    """
    store.write_base(_copied(store, base))
    for version, params in snapshots.items():
        store.write(version, _copied(store, params))


def _copied(store: SnapshotStore, params: Any) -> Any:
    """Parameters or None, as `SnapshotStore.copied` if several processes have parts of them."""
    if all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(params)):
        return params
    return store.copied(params)
