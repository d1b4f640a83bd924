"""Checkpoints: state, ledger, groups, run identity and snapshots still to be read, in one commit.

Orbax writes a checkpoint beside its name and renames it, so one is complete or absent. Groups that
are finished and not yet used are stored; tickets whose samplers are at work wait again, and in
ticket order the snapshots of the lag window let them be sampled again exactly.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from asympo_jax.learning import TrainState
from asympo_jax.runtime import wire
from asympo_jax.runtime.checkpoint_directory import DELETED, open_manager, open_reader
from asympo_jax.runtime.ledger import Ledger
from asympo_jax.runtime.saving import Writing
from asympo_jax.runtime.snapshots import SnapshotStore, parameters_sha256
from asympo_jax.types import Group


class CheckpointRefused(ValueError):
    """A checkpoint that cannot be read or written."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds.

    Attributes:
        state: parameters, optimiser, update count; on the base that was given.
        ledger: every ticket's state.
        run_id: identity of the run.
        skipped: updates in a row, up to this one, that were skipped.
        snapshots: version -> parameters.
    """

    state: TrainState
    ledger: Ledger
    run_id: str
    skipped: int
    snapshots: dict[int, Any]


class Checkpointer:
    """Checkpoints of one run.

    Args:
        workdir: the run's directory; they are under `checkpoints/`.
        keep: newest ones kept.
        is_owner: whether this process has the workdir to itself, and so may remove what a process
            that was killed left half written.
        stall_s: seconds in which one must be written; a disk may hang for ever.
        num_processes: that save the state together, each its own part of the arrays; what is not
            the state is of the first one, whatever the others give.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        keep: int,
        is_owner: bool = False,
        stall_s: float = threading.TIMEOUT_MAX,
        num_processes: int = 1,
    ):
        """Opens the directory; of several processes all must, in the same turn."""
        directory = (workdir / "checkpoints").absolute()
        self._manager = open_manager(directory, keep, is_owner, num_processes)
        # Several processes save together, and each reads for itself.
        self._reader = self._manager if num_processes == 1 else open_reader(directory)
        self._saved_base_sha256: str | None = None  # hashed once, no update changes it
        self._stall_s = stall_s
        if is_owner:
            self._delete()
        self._writing: Writing | None = None
        self._is_stuck = False

    def save(
        self,
        state: TrainState,
        ledger: dict,
        groups: Sequence[Group],
        run_id: str,
        store: SnapshotStore | None,
        versions: Collection[int],
        skipped: int = 0,
    ) -> None:
        """Saves after an update; returns when the arrays are copied, the files follow.

        Nothing is saved twice: a run that was stopped after its last checkpoint has it already. Of
        the base of adapters there is the hash alone, it can be made again.

        Args:
            state: after the update.
            ledger: of all tickets, as plain data.
            groups: of those that are finished.
            run_id: identity of the run.
            store: has the snapshots; None where the first process has them.
            versions: of them, those that are saved if they are there.
            skipped: updates in a row, up to this one, that were skipped.

        Raises:
            CheckpointRefused: it, or the one before, cannot be written.
        """
        self.wait()
        if self.latest() == int(state.update):
            return
        snapshots: dict[str, Any] = {"none": np.zeros(1)}  # Orbax takes no empty item
        if store is not None:
            found = [version for version in sorted(versions) if store.has(version)]
            snapshots = {str(version): store.read(version) for version in found}
        update = int(state.update)
        if state.base is not None and self._saved_base_sha256 is None:
            self._saved_base_sha256 = parameters_sha256(state.base)
        run = {"ledger": ledger, "run_id": run_id, "update": update, "skipped": skipped}
        run["base_sha256"] = self._saved_base_sha256
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(_as_tree(state)),
            snapshots=ocp.args.StandardSave(snapshots),
            groups=ocp.args.StandardSave({"frame": wire.encode_groups(groups)}),
            run=ocp.args.JsonSave(run),
        )
        begin = functools.partial(self._manager.save, update, args=arguments)
        self._writing = Writing(update, begin, self._finish)
        self._writing.start()
        if not self._writing.copied.wait(self._stall_s):
            self.wait(0.0)
        self.check()

    def _finish(self) -> None:
        """Waits until Orbax has written a checkpoint, and deletes those that it replaces."""
        self._manager.wait_until_finished()
        self._delete()

    def _delete(self) -> None:
        """Deletes what has lost its name."""
        shutil.rmtree(self._manager.directory / DELETED, ignore_errors=True)

    def latest(self) -> int | None:
        """Update of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def tickets(self) -> tuple[Ledger | None, list[Group]]:
        """Ledger and finished groups of the newest complete checkpoint; none if there is none.

        Raises:
            CheckpointRefused: they cannot be read.
        """
        update = self._manager.latest_step()
        if update is None:
            return None, []
        with self._refusing(update, "read"):
            items: dict[str, Any] = {"run": ocp.args.JsonRestore()}
            if has_groups := (self._manager.directory / str(update) / "groups").exists():
                items["groups"] = ocp.args.StandardRestore()  # an older run did not store them
            found = self._reader.restore(update, args=ocp.args.Composite(**items))
            groups = wire.decode_groups(found["groups"]["frame"]) if has_groups else []
            finished = {group.ticket for group in groups}
            return Ledger.from_json(found["run"]["ledger"], finished), groups

    def base_sha256(self) -> str | None:
        """Hash of the base of the adapters in the newest complete checkpoint, None without."""
        update = self._manager.latest_step()
        assert update is not None
        with self._refusing(update, "read"):
            arguments = ocp.args.Composite(run=ocp.args.JsonRestore())
            return self._reader.restore(update, args=arguments)["run"].get("base_sha256")

    def updates(self) -> list[int]:
        """Updates of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def state(self, like: TrainState, update: int) -> TrainState:
        """The state in the checkpoint of an update, without what else is in it.

        Args:
            like: a state of the same shapes, whose values are ignored, but for its base.
            update: one of `updates`.

        Raises:
            CheckpointRefused: it cannot be read.
        """
        arguments = ocp.args.Composite(state=_restoring(like))
        with self._refusing(update, "read"):
            found = self._reader.restore(update, args=arguments)["state"]
            return TrainState(**found, base=like.base)

    def restore(self, like: TrainState, prompts_per_update: int) -> Restored:
        """The newest complete checkpoint.

        Args:
            like: a state of the same shapes, whose values are ignored, but for its base.
            prompts_per_update: tickets that each update has settled.

        Raises:
            CheckpointRefused: it cannot be read, or its parts are of different updates.
        """
        update = self._manager.latest_step()
        assert update is not None
        with self._refusing(update, "read"):
            found = self._reader.restore(
                update,
                args=ocp.args.Composite(
                    state=_restoring(like),
                    snapshots=ocp.args.StandardRestore(),
                    run=ocp.args.JsonRestore(),
                ),
            )
            run, state = found["run"], TrainState(**found["state"], base=like.base)
            ledger = Ledger.from_json(run["ledger"])
            parts = {
                "its state": int(state.update),
                "its run": run["update"],
                "its ledger": ledger.outcomes.total() / max(1, prompts_per_update),
            }
            for part, of_update in parts.items():
                if of_update != update:
                    raise ValueError(f"{part} is of update {of_update:g}")
            return Restored(
                state=state,
                ledger=ledger,
                run_id=run["run_id"],
                skipped=run.get("skipped", 0),  # an older run did not count them
                snapshots={int(version): tree for version, tree in found["snapshots"].items()},
            )

    def check(self) -> None:
        """Looks, without waiting, whether what was being written has failed.

        Raises:
            CheckpointRefused: it cannot be written.
        """
        writing = self._writing
        if writing is not None and writing.failure is not None:
            self._writing = None
            with self._refusing(writing.update, "written"):
                raise writing.failure

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits for what is being written.

        Args:
            timeout_s: at most; `stall_s` unless it is given.

        Raises:
            CheckpointRefused: it cannot be written, or is not within `stall_s`.
        """
        if self._writing is None:
            return
        self._writing.join(self._stall_s if timeout_s is None else timeout_s)
        is_late = self._writing.is_alive()
        self.check()
        if is_late:
            self._is_stuck = True
            raise CheckpointRefused(
                f"{self._manager.directory / str(self._writing.update)}: this checkpoint was not "
                f"written within runtime.stall_s={self._stall_s:g}"
            )
        self._writing = None

    def close(self) -> None:
        """Ends the threads of Orbax; what is being written is finished, or lost if it cannot be."""
        with contextlib.suppress(Exception):  # told by `wait`, or the run has another cause to end
            self.wait(0.0 if self._is_stuck else None)
            self._manager.close()
            self._reader.close()

    @contextlib.contextmanager
    def _refusing(self, update: int | None, what: str) -> Iterator[None]:
        """Within it whatever breaks is a checkpoint that cannot be read or written."""
        try:
            yield
        except Exception as error:  # Orbax and its libraries raise errors of many kinds
            words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            advice = "; without it the run goes on from the one before" if what == "read" else ""
            raise CheckpointRefused(
                f"{self._manager.directory / str(update)}: this checkpoint cannot be {what} "
                f"({words}){advice}"
            ) from error


def _restoring(like: TrainState) -> ocp.args.StandardRestore:
    """What restores a state of the shapes of `like`."""
    return ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_tree(like)))


def _as_tree(state: TrainState) -> dict[str, Any]:
    """The state as a plain tree of what it has, without its base."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {n: value for n, value in fields.items() if n != "base" and value is not None}
