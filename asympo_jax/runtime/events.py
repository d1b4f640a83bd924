"""TensorBoard events, written by the caller itself.

The thread of tensorboardX's own writer ends when the disk is full, and whoever then hands it more
waits for ever.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_FLUSH_S = 30.0  # at most this much is not yet to be seen, or lost after a failure


class EventWriter:
    """Appends to the events in a folder, in files of its own.

    Args:
        folder: of all events of a run.
        purged_from: update from which events of earlier attempts are not shown.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        purged_from: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Makes no file yet."""
        self._folder = folder
        self._purged_from = purged_from
        self._clock = clock
        self._num_files = 0
        self._file: Any = None
        self._flushed = clock()
        self._failed: float | None = None  # when, if nothing was written since

    def write(
        self, update: int, values: Mapping[str, float], histograms: Mapping[str, Sequence[int]]
    ) -> None:
        """One event; nothing for a while after a failure, so that a full disk gets few files.

        Raises:
            OSError: it cannot be written; what was not yet to be seen is lost, and what comes
                after that while goes to another file.
        """
        if self._failed is not None and self._clock() - self._failed < _FLUSH_S:
            return
        from tensorboardX import summary  # imported here because it is slow to load

        found = summary.Summary()
        for name, value in values.items():
            found.MergeFrom(summary.scalar(name, value))
        for name, all_ in histograms.items():
            found.MergeFrom(summary.histogram(name, np.asarray(all_), "auto"))
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write_event(
                _messages().Event(wall_time=time.time(), step=update, summary=found)
            )
            if self._clock() - self._flushed >= _FLUSH_S:
                self._file.flush()
                self._flushed = self._clock()
            self._failed = None
        except OSError:
            self._failed = self._clock()
            self.close()
            raise

    def close(self) -> None:
        """Closes the file, whether or not what is left can be written; an empty one goes."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
            # It has not closed its file where what was left could not be written.
            with contextlib.suppress(OSError):
                file._py_recordio_writer.close()
        for path in self._folder.glob(f"events*.{os.getpid()}.*"):
            with contextlib.suppress(OSError):
                if not path.stat().st_size:
                    path.unlink()

    def _open(self) -> Any:
        """A new file; the first one hides what earlier attempts wrote of the same updates."""
        from tensorboardX.event_file_writer import EventsWriter

        self._folder.mkdir(exist_ok=True)
        suffix = f".{os.getpid()}.{self._num_files}"
        file = EventsWriter(str(self._folder / "events"), suffix)
        if not self._num_files:
            start = _messages().SessionLog(status=_messages().SessionLog.START)
            file.write_event(
                _messages().Event(wall_time=time.time(), step=self._purged_from, session_log=start)
            )
        self._num_files += 1
        return file


def _messages() -> Any:
    """The messages of event files, whose classes types cannot see."""
    from tensorboardX.proto import event_pb2

    return event_pb2
