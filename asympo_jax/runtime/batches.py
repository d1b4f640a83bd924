"""Batches on disk, for replay: all that the learner needs to do an update again bit for bit.

A file an update, `batches/update_00000006.safetensors` of the one that led to version 6, with the
groups of its batch. The newest are kept, so that the disk holds no more than the config allows.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from asympo_jax.runtime.snapshots import SnapshotRefused, read_params, write_params
from asympo_jax.runtime.wire import BadFrame, group_fields, groups_from
from asympo_jax.types import Group

_INTEGERS = ("ticket", "version")


class BatchRefused(ValueError):
    """A recorded batch that cannot be read."""


@dataclasses.dataclass(frozen=True)
class RecordedBatch:
    """The batch of an update.

    Attributes:
        version: number of updates with this one.
        groups: in their order in the batch, those that could not be graded included.
    """

    version: int
    groups: Sequence[Group]


class BatchRecorder:
    """Writes the batches of a run.

    Args:
        workdir: the run's directory; they are under `batches/`.
        resumed_at: the update from which the run carries on; what an earlier attempt recorded of
            later ones is removed.
        every: whether all batches are recorded, or only those that are said to be needed.
        keep: newest ones kept.
        tell: a person, once, if none can be written: no run ends for that.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        resumed_at: int,
        every: bool,
        keep: int,
        tell: Callable[[str], None],
    ):
        """Removes what belongs to no update of this attempt."""
        self._directory = workdir / "batches"
        self._every = every
        self._keep = keep
        self._tell = tell
        self._failed = False
        for path in self._directory.glob(".update_*"):
            path.unlink(missing_ok=True)  # of an attempt that was killed as it wrote
        for version in recorded_versions(workdir):
            if version > resumed_at:
                batch_path(workdir, version).unlink(missing_ok=True)
        self._kept = recorded_versions(workdir)

    def record(self, version: int, groups: Sequence[Group], is_needed: bool) -> pathlib.Path | None:
        """Writes the batch of an update, if it is needed or all are; returns its file.

        Returns None, too, if it cannot be written.
        """
        if not (self._every or is_needed):
            return None
        path = batch_path(self._directory.parent, version)
        try:
            self._directory.mkdir(exist_ok=True)
            write_batch(path, RecordedBatch(version, groups))
            self._kept.append(version)
            while len(self._kept) > self._keep:
                batch_path(self._directory.parent, self._kept.pop(0)).unlink(missing_ok=True)
        except (OSError, SnapshotRefused) as error:
            if not self._failed:
                self._tell(f"batches are not recorded: {error}")
            self._failed = True
            return None
        return path


def batch_path(workdir: pathlib.Path, version: int) -> pathlib.Path:
    """The file of the batch of the update that led to a version."""
    return workdir / "batches" / f"update_{version:08d}.safetensors"


def recorded_versions(workdir: pathlib.Path) -> list[int]:
    """Versions that the recorded batches of a run led to, ascending."""
    paths = (workdir / "batches").glob("update_*.safetensors")
    numbers = (path.stem.removeprefix("update_") for path in paths)
    return sorted(int(number) for number in numbers if number.isdigit())


def write_batch(path: pathlib.Path, batch: RecordedBatch) -> None:
    """Writes a batch, whole or not at all.

    Raises:
        SnapshotRefused: it cannot be written.
    """
    tree = {
        f"{i:06d}": {name: np.asarray(value) for name, value in group_fields(group).items()}
        for i, group in enumerate(batch.groups)
    }
    write_params(path, tree, version=str(batch.version))


def read_batch(path: pathlib.Path) -> RecordedBatch:
    """The batch in a file.

    Raises:
        BatchRefused: the file is missing or damaged, or holds something else.
    """
    try:
        tree, metadata = read_params(path)
        groups = [dict(tree[name]) for name in sorted(tree)]
        for fields in groups:
            fields.update({name: int(fields[name]) for name in _INTEGERS})
        return RecordedBatch(int(metadata["version"]), groups_from(groups))
    except SnapshotRefused as error:
        raise BatchRefused(str(error)) from error
    except (BadFrame, KeyError, TypeError, ValueError) as error:
        raise BatchRefused(f"{path}: is no recorded batch ({error!r:.200})") from error
