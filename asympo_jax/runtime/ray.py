"""Samplers as actors of Ray, on any node of a cluster, wherever the resources are that they need.

The learner's process keeps the broker, as with samplers on this machine, so that the ledger is
saved with the state. Each sampler is an actor that lives as long as one process; who starts another
and counts it is the supervisor, not Ray. The frames that it would write to a pipe are the arguments
and the values of a method, and a snapshot is the bytes of its files in Ray's object store, put
there once. Ray pickles what it carries: nothing but bytes, text and numbers is given to it.
"""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import ray.exceptions

from asympo_jax.runtime import wire
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Holder
from asympo_jax.runtime.serving import ServedSampler
from asympo_jax.runtime.snapshots import SnapshotRefused, SnapshotStore

_THREADS = 8  # of an actor: its work, and a call on each line
_TOLD_S = 60.0  # until a sampler that has no place is told of
_MAX_WORDS = 300  # of Ray's on an end, characters


class SnapshotObjects:
    """The files of snapshots as objects of Ray, as long as the store has them.

    Args:
        store: of the run.
    """

    def __init__(self, store: SnapshotStore):
        """Nothing is there yet."""
        self._store = store
        self._lock = threading.Lock()
        self._refs: dict[str, ray.ObjectRef] = {}

    def of(self, version: int) -> dict[str, "ray.ObjectRef"]:
        """Name and content of each file that a version needs, put into the object store once.

        Raises:
            SnapshotRefused: a file is not there.
        """
        paths = self._store.files(version)
        with self._lock:
            # Ray frees what nobody refers to.
            kept = {path.name for path in self._store.directory.iterdir()}
            self._refs = {name: ref for name, ref in self._refs.items() if name in kept}
            for path in paths:
                if path.name not in self._refs:
                    try:
                        content = np.fromfile(path, np.uint8)
                    except OSError as error:
                        raise SnapshotRefused(f"{path}: cannot be read ({error})") from error
                    self._refs[path.name] = ray.put(content)
            return {path.name: self._refs[path.name] for path in paths}


class Waiting:
    """Actors that no node has a place for yet; they start as soon as one has.

    Args:
        count: samplers of the run.
        needs: resources of each.
        say: tells people, once until all have a place.
        told_s: seconds until then.
    """

    def __init__(
        self,
        count: int,
        needs: Mapping[str, float],
        say: Callable[[str], None],
        told_s: float = _TOLD_S,
    ):
        """None waits."""
        self._count = count
        self._needs = ", ".join(f"{value:g} {name}" for name, value in needs.items())
        self._say = say
        self._told_s = told_s
        self._lock = threading.Lock()
        self._actors: list[Any] = []
        self._is_told = self._is_ended = False

    def wait(self, actor: Any) -> None:
        """Waits until an actor has its place, or is dead."""
        started = actor.started.remote()
        with self._lock:
            if self._is_ended:
                ray.kill(actor)
            self._actors.append(actor)
        if not ray.wait([started], timeout=self._told_s)[0]:
            self._tell()
            ray.wait([started], timeout=None)
        with self._lock:
            self._actors.remove(actor)
            self._is_told = self._is_told and bool(self._actors)

    def end(self) -> None:
        """Kills those that wait."""
        with self._lock:
            self._is_ended = True
            for actor in self._actors:
                ray.kill(actor)

    def _tell(self) -> None:
        """Tells how many wait."""
        with self._lock:
            if self._is_told or self._is_ended:
                return
            self._is_told = True
            num_waiting = len(self._actors)
        self._say(
            f"{num_waiting} of {self._count} samplers wait for resources ({self._needs} each), or "
            "are slow to start; they go to work when a node of the Ray cluster has a place"
        )


class ActorLine:
    """A `serving.Line` to a `serving.LineEnd` in an actor; a call has an answer and the next frame.

    Args:
        exchange: method of the actor: (answer or None, names, contents) -> frame, None at the end.
        begin: waits until the actor is there.
        snapshots: of the versions that leases name.
    """

    def __init__(
        self, exchange: Callable[..., Any], begin: Callable[[], None], snapshots: SnapshotObjects
    ):
        """Asks for the first frame."""
        self._exchange = exchange
        self._begin = begin
        self._snapshots = snapshots
        self._sent: set[str] = set()
        self._pending: Any = exchange(None, [])

    def poll(self, timeout: float, /) -> bool:
        """Whether a frame, or the end, comes within so many seconds from the actor's start."""
        self._begin()
        return bool(ray.wait([self._pending], timeout=timeout)[0])

    def recv_bytes(self, maxlength: int, /) -> bytes:
        """The next frame."""
        pending, self._pending = self._pending or self._exchange(None, []), None
        try:
            frame = ray.get(pending)
        except ray.exceptions.RayError as error:
            raise EOFError from error
        if frame is None:
            raise EOFError
        if not isinstance(frame, bytes):
            raise wire.BadFrame(f"a {type(frame).__name__} is no frame")
        if len(frame) > maxlength:
            raise OSError("a frame is too long")
        return frame

    def send_bytes(self, frame: bytes, /) -> None:
        """Sends a frame; a lease goes with the files of its snapshot that are not there."""
        files: dict[str, ray.ObjectRef] = {}
        message = wire.decode(frame)
        if message["type"] == "lease":
            files = self._snapshots.of(wire.lease_from(message["lease"]).version)
        new = [name for name in files if name not in self._sent]
        self._sent = set(files) or self._sent
        self._pending = self._exchange(frame, new, *(files[name] for name in new))

    def close(self) -> None:
        """Nothing: an actor that is not answered is ended."""


@dataclasses.dataclass(frozen=True)
class ActorSpec:
    """What an actor of a sampler is.

    Attributes:
        kind: its class: `started()`, `exchange(line, answer, names, *contents)` with line 0 for
            leases and 1 for submissions, and `run(index, *arguments)`, which is its work.
        arguments: of `run`.
        resources: as Ray names them.
        env_vars: of its process, from its start on.
    """

    kind: type
    arguments: Sequence[str | int | float | list[int]]
    resources: Mapping[str, float]
    env_vars: Mapping[str, str]

    def start(self) -> Any:
        """A new actor, in its own time."""
        others = dict(self.resources)
        return (
            ray.remote(self.kind)
            .options(
                num_cpus=others.pop("CPU", 0),
                num_gpus=others.pop("GPU", 0),
                resources=others,
                max_restarts=0,
                max_concurrency=_THREADS,
                runtime_env={"env_vars": dict(self.env_vars)},
            )
            .remote()
        )


class RayProcess(ServedSampler):
    """One actor of a sampler and the threads that serve it.

    Args:
        holder: its name at the broker.
        broker: what it leases from.
        spec: of the actor.
        snapshots: that it reads.
        waiting: where it waits for its place.
        max_frame_bytes: of a submission; an actor that sends more is killed.
        start_s: seconds from its start until it must have asked for its first lease.
    """

    def __init__(
        self,
        holder: Holder,
        broker: Broker,
        spec: ActorSpec,
        snapshots: SnapshotObjects,
        waiting: Waiting,
        max_frame_bytes: int,
        start_s: float,
    ):
        """Asks Ray for the actor."""
        super().__init__(holder, broker)
        self._actor = actor = spec.start()
        self._work = actor.run.remote(holder[0], *spec.arguments)

        def line(number: int) -> ActorLine:
            def exchange(*args: Any) -> Any:
                return actor.exchange.remote(number, *args)

            return ActorLine(exchange, lambda: waiting.wait(actor), snapshots)

        self._serve_lines(line(0), line(1), max_frame_bytes, start_s)

    def wait(self) -> str:
        """See `supervisor.SamplerProcess`."""
        words = super().wait()
        ray.kill(self._actor)  # its process goes on after its work
        return words

    def _kill(self) -> None:
        """Ends the actor and its process."""
        ray.kill(self._actor)

    def _exit(self, timeout_s: float | None) -> str | None:
        """What Ray says of the end."""
        if not ray.wait([self._work], timeout=timeout_s)[0]:
            return None
        try:
            ray.get(self._work)
        except ray.exceptions.RayError as error:
            lines = str(error).split("\n")  # the last one has the error of its work
            dead = [line for line in lines if line.startswith("The actor is dead")]
            return f"its actor: {[*lines, *dead][-1][:_MAX_WORDS]}"
        return "the end of its work"
