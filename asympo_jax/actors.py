"""The samplers of a run as actors of Ray: what each is, does and needs."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from asympo_jax.beginning import enter_directory
from asympo_jax.config import from_plain, resolve
from asympo_jax.endings import NotStarted
from asympo_jax.processes import Arguments, sample
from asympo_jax.progress import say
from asympo_jax.runtime import placement, ray_cluster
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Holder
from asympo_jax.runtime.private_directories import (
    CLUSTER,
    make_private_directory,
    remove_unused,
)
from asympo_jax.runtime.serving import Client, LineEnd
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.runtime.supervisor import Supervisor
from asympo_jax.sections import SamplerConfig
from asympo_jax.settings import ExperimentConfig

if TYPE_CHECKING:
    from asympo_jax.runtime.ray import RayProcess, Waiting

# Of the learner's environment: what compiles its programs must compile those of samplers.
_PASSED_ON = ("XLA_", "JAX_", "LIBTPU_")
_RESOURCE = {"cuda": "GPU", "tpu": "TPU"}  # Ray's names


class ReceivedStore(SnapshotStore):
    """Snapshots whose files came with a lease; each is in the directory while it is read."""

    def __init__(self, directory: pathlib.Path, run_id: str, num_parts: int):
        """Nothing came yet."""
        super().__init__(directory, run_id, num_parts=num_parts)
        self._contents: Mapping[str, np.ndarray] = {}

    def receive(self, contents: Mapping[str, np.ndarray]) -> None:
        """Takes the files of a version, by name, for its first reader."""
        self._contents = contents

    def read_policy(self, version: int, *args: Any, **kwargs: Any) -> Any:
        """See `SnapshotStore.read_policy`."""
        contents, self._contents = self._contents, {}
        paths = [self.directory / name for name in contents]
        try:
            for path, content in zip(paths, contents.values(), strict=True):
                content.tofile(path)
            return super().read_policy(version, *args, **kwargs)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)


class SamplerActor:
    """A sampler; Ray calls each of these in a thread of its own."""

    def __init__(self) -> None:
        """Nothing is at work yet."""
        self._lines = LineEnd(), LineEnd()
        self._store: ReceivedStore | None = None

    def started(self) -> None:
        """Says that it is there."""

    def exchange(
        self, line: int, answer: bytes | None, names: Sequence[str], *contents: np.ndarray
    ) -> bytes | None:
        """See `LineEnd.exchange`; with a lease come the files of its snapshot."""
        if names:
            assert self._store is not None  # nobody else asked for the lease
            self._store.receive(dict(zip(names, contents, strict=True)))
        return self._lines[line].exchange(answer)

    def run(
        self,
        index: int,
        config: str,
        run_id: str,
        prompts_sha256: str,
        node_id: str,
        cores: list[int],
        num_parts: int,
    ) -> None:
        """Samples until the run ends.

        Args:
            index: of the sampler.
            config: text of the run's config.json.
            run_id: identity of the run.
            prompts_sha256: of the task's prompts, as the learner found them.
            node_id: Ray's name of the learner's node.
            cores: of the samplers there; on another node they have all.
            num_parts: files of a snapshot.
        """
        import ray

        directory, lock = make_private_directory(None, run_id)
        try:
            if ray.get_runtime_context().get_node_id() != node_id:
                cores = placement.available_cores()
            self._store = store = ReceivedStore(directory, run_id, num_parts)
            resolved = resolve(from_plain(json.loads(config)))
            given = Arguments(resolved, store, cores, index, -1, -1, prompts_sha256)
            sample(given, Client(*self._lines))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            lock.close()
            for line in self._lines:
                line.close()


@dataclasses.dataclass(frozen=True)
class RaySamplers:
    """Samplers at work as actors.

    Attributes:
        supervisor: of those that are there.
        waiting: those that have no place yet.
        joined: leaves the cluster where they are, and removes what it had here.
    """

    supervisor: Supervisor
    waiting: "Waiting"
    joined: contextlib.ExitStack

    def stop(self, timeout_s: float) -> None:
        """See `Supervisor.stop`; then leaves the cluster."""
        with self.joined:
            self.waiting.end()
            self.supervisor.stop(timeout_s)
        remove_unused(None)  # what actors that were killed on this machine were reading


def start_samplers(
    config: ExperimentConfig,
    store: SnapshotStore,
    run_id: str,
    cores: list[int],
    prompts_sha256: str,
    broker: Broker,
    max_frame_bytes: int,
) -> RaySamplers:
    """Joins the cluster and starts the samplers of a run; see `processes.Launcher`.

    Raises:
        NotStarted: the cluster is refused.
        OSError: it cannot be joined.
    """
    resources = resources_of(config.sampler)
    count = config.sampler.count
    with contextlib.ExitStack() as stack:
        node_id = join(stack, count * resources["CPU"])
        # Imports Ray, which reads the environment that joining has set.
        from asympo_jax.runtime.ray import ActorSpec, RayProcess, SnapshotObjects, Waiting

        source = json.dumps(config.source)
        spec = ActorSpec(
            kind=SamplerActor,
            arguments=(source, run_id, prompts_sha256, node_id, cores, store.num_parts),
            resources=resources,
            env_vars=environment_of(config.sampler),
        )
        snapshots, waiting = SnapshotObjects(store), Waiting(count, resources, say)

        def start(holder: Holder) -> "RayProcess":
            bounds = (max_frame_bytes, config.lease_s)
            return RayProcess(holder, broker, spec, snapshots, waiting, *bounds)

        supervisor = Supervisor(broker, start, count, config.max_restarts, say)
        return RaySamplers(supervisor, waiting, stack.pop_all())


def join(stack: contextlib.ExitStack, num_cpus: float) -> str:
    """Joins the cluster until the stack is left; Ray's name of this node."""
    make = functools.partial(enter_directory, stack, tempfile.gettempdir(), CLUSTER)
    try:
        cluster = ray_cluster.join(num_cpus, make, say)
    except ray_cluster.ClusterRefused as refused:
        raise NotStarted(str(refused)) from refused
    stack.callback(cluster.leave)
    return cluster.node_id


def resources_of(sampler: SamplerConfig) -> dict[str, float]:
    """What a sampler asks Ray for: its cores, or one, and its accelerators."""
    resources: dict[str, float] = {"CPU": sampler.cores or 1}
    if sampler.platform in _RESOURCE:
        resources[_RESOURCE[sampler.platform]] = sampler.devices
    return resources


def environment_of(sampler: SamplerConfig) -> dict[str, str]:
    """What a sampler's process has of the learner's environment, with its own platform."""
    environment = placement.role_environment(
        sampler.platform, (), sampler.devices, sampler.memory_fraction
    )
    return {name: value for name, value in environment.items() if name.startswith(_PASSED_ON)}
