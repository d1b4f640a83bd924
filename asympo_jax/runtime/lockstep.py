"""What the processes of a learner on several hosts do in lock-step.

A program on the devices of all processes must be given to them in the same order everywhere, so all
of them are given in main threads, and the first process announces each before it gives it. What it
announces goes through the key-value store of `jax.distributed`, and not through a collective:
nobody sits in one while the first process waits for groups, and a batch does not wait for the
devices.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from asympo_jax.runtime import wire
from asympo_jax.runtime.leases import Stalled

_KEY, _WRITTEN = "asympo/do/", "asympo/written/"
_LOOK_MS = 500  # between looks whether this process is to end
# Announcements that are kept. The first process is two updates ahead at most, and an update has two
# announcements at most, so that all others have read those before.
_KEPT = 16


class KeyValueStore(Protocol):
    """What is used of the client of `jax.distributed`."""

    def key_value_set_bytes(self, key: str, value: bytes) -> None:
        """Sets a key that is not there."""
        ...

    def blocking_key_value_get_bytes(self, key: str, timeout_in_ms: int) -> bytes:
        """Waits for a key."""
        ...

    def key_value_delete(self, key: str) -> None:
        """Deletes a key."""
        ...


def is_late(error: Exception) -> bool:
    """Whether a wait on the store was over without the key, and nothing broke."""
    return "DEADLINE_EXCEEDED" in str(error)


class Ended(Exception):
    """The first process has announced its end.

    Attributes:
        code: its exit code.
    """

    def __init__(self, code: int, words: str):
        """Carries the code."""
        super().__init__(words)
        self.code = code


class Lockstep:
    """Announcements from the first process to the others.

    Args:
        store: that all processes see; None where there is one process.
        index: of this process, 0 is the first.
        count: of all of them.
    """

    def __init__(self, store: KeyValueStore | None = None, index: int = 0, count: int = 1):
        """Nothing is announced yet."""
        self._store, self._index, self._count, self._number = store, index, count, 0

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to tell."""
        return self._store is None

    def announce(self, action: str, **content: Any) -> None:
        """Tells all others what the first process does next; to nobody where it is the only one.

        Args:
            action: a word.
            content: plain data and arrays, as `wire` takes them.
        """
        if self._store is None:
            return
        assert self._index == 0
        frame = wire.encode({"type": action, **content})
        self._store.key_value_set_bytes(f"{_KEY}{self._number}", frame)
        if self._number >= _KEPT:
            self._store.key_value_delete(f"{_KEY}{self._number - _KEPT}")
        self._number += 1

    def end(self, code: int, words: str) -> None:
        """Announces that there is nothing more to do."""
        self.announce("end", code=code, words=words)

    def next(self, check: Callable[[], None]) -> dict[str, Any]:
        """What the first process does next; its word is under `type`.

        Args:
            check: called now and then while there is nothing; raises to end the wait.

        Raises:
            Ended: it does nothing more.
            jax.errors.JaxRuntimeError: it is gone.
        """
        assert self._store is not None and self._index
        while True:
            check()
            try:
                key = f"{_KEY}{self._number}"
                frame = self._store.blocking_key_value_get_bytes(key, _LOOK_MS)
            except jax.errors.JaxRuntimeError as error:
                if not is_late(error):
                    raise
            else:
                self._number += 1
                message = wire.decode(frame)
                if message["type"] == "end":
                    raise Ended(message["code"], message["words"])
                return message

    def written(self, name: str, num_bytes: int, timeout_s: float) -> int:
        """Says that this process has written its part of something; the first waits for all others.

        Any thread may call it, as no program is given to the devices.

        Args:
            name: of what is written, once in an attempt.
            num_bytes: of this process's part.
            timeout_s: that the first one waits for each of the others.

        Returns:
            Bytes of all parts in the first process, of its own in another.

        Raises:
            Stalled: in the first process, another one took too long.
            jax.errors.JaxRuntimeError: the first process is gone.
        """
        assert self._store is not None
        if self._index:
            self._store.key_value_set_bytes(f"{_WRITTEN}{name}/{self._index}", b"%d" % num_bytes)
            return num_bytes
        for i in range(1, self._count):
            key = f"{_WRITTEN}{name}/{i}"
            try:
                found = self._store.blocking_key_value_get_bytes(key, round(1000 * timeout_s))
            except jax.errors.JaxRuntimeError as error:
                if not is_late(error):
                    raise
                raise Stalled(
                    f"process {i} did not write its part of {name} in {timeout_s:.0f} s "
                    "(runtime.stall_s bounds this wait)"
                ) from error
            self._store.key_value_delete(key)
            num_bytes += int(found)
        return num_bytes

    def from_first(self, make: Callable[[], Any], like: Any, check: Callable[[], None]) -> Any:
        """A tree of arrays that the first process makes, on the hosts of all, bit for bit.

        Args:
            make: called in the first process alone, however long it takes.
            like: shapes and types of the arrays.
            check: as of `next`.
        """
        if self._store is None:
            return make()
        if self._index:
            message = self.next(check)
            assert message["type"] == "share", message
            value = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        else:
            value = jax.device_get(make())
            self.announce("share")
        return jax.tree.map(_broadcast, value)


def _broadcast(x: np.ndarray) -> np.ndarray:
    """An array of the first process; as bytes, since sums of floats would lose the sign of -0."""
    found = multihost_utils.broadcast_one_to_all(np.frombuffer(x.tobytes(), np.uint8))
    return np.frombuffer(np.asarray(found).tobytes(), x.dtype).reshape(x.shape)
