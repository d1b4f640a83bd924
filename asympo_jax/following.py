"""What all processes of a learner on several hosts do but the first one: the same, when it says so.

They have their part of the state on their devices, and write their part of each checkpoint and,
where all hosts see the directory, of each snapshot. All else is of the first process: the workdir
and its lock, tickets, samplers, evaluations, metrics, what is told.
"""

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import jax

from asympo_jax import beginning, experiment, interrupts, loops, shared_directories, states
from asympo_jax.endings import STOPPED, NotStarted, RunFailed, failures
from asympo_jax.hosts import Hosts
from asympo_jax.initial import check_initial
from asympo_jax.learning import TrainState, make_batch
from asympo_jax.runtime import placement, wire
from asympo_jax.runtime.checkpoint import Checkpointer
from asympo_jax.runtime.lockstep import Ended
from asympo_jax.runtime.snapshots import SnapshotRefused, SnapshotStore, parameters_sha256
from asympo_jax.settings import ExperimentConfig
from asympo_jax.warmup_cache import num_positions


class FirstEnded(RunFailed):
    """The first process ended without a result; the code is its own."""

    def __init__(self, code: int, words: str):
        """Carries the code."""
        super().__init__(f"process 0 ended: {words}")
        self.exit_code = code


def follow(config: ExperimentConfig, workdir: pathlib.Path, hosts: Hosts) -> None:
    """Follows until the first process has ended.

    Raises:
        ValueError: a config that does not fit the task, or is not that of the first process, or a
            workdir that is not the same directory.
        FirstEnded: the first process ended without a result.
        NotStarted: this process does not see the directory of the snapshots.
        RunFailed: this one cannot go on.
    """
    try:
        parts = experiment.build_parts(config)
        check_initial(config)
        follower = _Follower(config, parts, workdir, hosts)
        follower.check_begin()
        with failures(ValueError, OSError, SnapshotRefused):
            follower.run()
    except Ended as end:
        hosts.ended = True
        if end.code:
            raise FirstEnded(end.code, str(end)) from end


@dataclasses.dataclass(frozen=True)
class _Follower:
    """One attempt at a run, in a process that follows."""

    config: ExperimentConfig
    parts: experiment.Parts
    workdir: pathlib.Path
    hosts: Hosts

    def check_begin(self) -> None:
        """Waits until the first process begins, and compares."""
        message = self._next()
        if message["config"] != self.config.sha256:
            raise ValueError(
                f"process {self.hosts.index}: its config is not that of process 0; start all "
                "processes with the same command"
            )
        check = interrupts.raise_if_received
        if not shared_directories.is_marked(self.workdir, message["attempt"], check):
            raise ValueError(
                f"workdir={self.workdir}: process {self.hosts.index} does not see what process 0 "
                "wrote there; all hosts must share it"
            )

    def run(self) -> None:
        """Follows; the end comes as an exception."""
        learner_cores, _ = placement.split_cores(placement.available_cores())
        placement.pin(learner_cores)
        mesh = beginning.start_learner(self.config, self.hosts.count)
        checkpointer = beginning.open_checkpoints(self.config, self.workdir, self.hosts.count)
        asking = interrupts.asking(self._ask, self.config.checkpoint.grace_s)
        with contextlib.closing(checkpointer), asking:
            self._follow(checkpointer, mesh)

    def _follow(self, checkpointer: Checkpointer, mesh: jax.sharding.Mesh | None) -> None:
        """Does what is announced; the end comes as an exception."""
        step, sign_gradients = loops.make_programs(self.config, self.parts, mesh)
        state, writing, version = self._first_state(checkpointer, mesh)
        while True:
            match self._next(writing.check):
                case {"type": "update", "groups": list(groups), "is_halved": bool(is_halved)}:
                    batch = make_batch(
                        wire.groups_from(groups), self.config.group_size, num_positions(self.config)
                    )
                    if is_halved:
                        sign_gradients(state, batch)
                    state, _ = step(state, batch)
                    version += 1
                    writing.hand_over(version, state.params)
                    checkpointer.check()
                case {"type": "save"}:
                    checkpointer.save(state, {}, [], "", None, ())
                case {"type": "hash"}:
                    parameters_sha256(state.params)

    def _first_state(
        self, checkpointer: Checkpointer, mesh: jax.sharding.Mesh | None
    ) -> tuple[TrainState, "_Writing", int]:
        """The state that the first process goes on from, its snapshots written, its version."""
        message, check = self._next(), interrupts.raise_if_received
        assert message["type"] == "state", message
        update, directory = message["update"], pathlib.Path(message["snapshots"])
        store = beginning.make_store(self.config, directory, message["run_id"], self.hosts)
        if store.num_parts > 1 and not shared_directories.is_there(directory, check):
            raise NotStarted(
                f"runtime.snapshot_dir={self.config.snapshot_dir!r}: process {self.hosts.index} "
                "does not see what process 0 made there; give a directory that all hosts share, or "
                "none, and process 0 writes all"
            )
        if update >= 0:
            like = states.state_like(self.config, self.parts, self.workdir, checkpointer, mesh)
            state = checkpointer.state(like, update)
            beginning.publish(store, state.base, {})
            return state, _Writing(store), update
        state = beginning.first_state(
            self.config, self.parts, self.workdir, check, mesh, self.hosts.lockstep
        )
        beginning.publish(store, state.base, {0: state.params})
        return state, _Writing(store), 0

    def _next(self, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """What the first process does next; what `check` raises ends the wait."""

        def check_all() -> None:
            interrupts.raise_if_received()
            check()

        return self.hosts.lockstep.next(check_all)

    def _ask(self) -> None:
        """Tells the first process that this one was asked to end."""
        self.hosts.tell(STOPPED, "asked to end")


class _Writing:
    """Snapshots, written beside the work on the next update, as the first process does it."""

    def __init__(self, store: SnapshotStore):
        """Nothing is to be written yet."""
        self._store = store
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def hand_over(self, version: int, params: Any) -> None:
        """Copies the parameters, and writes this process's part once the one before is written."""
        copy = self._store.copied(params)
        if self._thread is not None:
            self._thread.join()
        self.check()
        # A daemon, since it may wait for devices of processes that are gone.
        self._thread = threading.Thread(target=self._write, args=(version, copy), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what broke."""
        if self._failure is not None:
            raise self._failure

    def _write(self, version: int, params: Any) -> None:
        """Writes one."""
        try:
            self._store.write(version, params)
        except Exception as error:  # the main thread raises it
            self._failure = error
