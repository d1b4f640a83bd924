"""The processes of a learner on several hosts: how they meet, watch each other and end together.

The first process has everything that a run on one host has; the others are told what to do. All
processes end with the code of the one that ended first:

- The first process announces its end, and waits a moment until the others have gone.
- Another one tells the first process why it ends, or that it was asked to, and is gone.
- A process that was killed tells nothing. It is missed after `_SILENT_S`; if it is the first one,
  at once, as the key-value store goes with it. jax watches, too, but would abort what is left.
"""

import contextlib
import json
import os
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax

# jax shows neither its key-value store nor the number of a process before a backend starts, which
# must be after this process is pinned.
from jax._src import distributed

from asympo_jax import interrupts
from asympo_jax.cluster import Cluster
from asympo_jax.endings import FAILED, INTERRUPTED, STOPPED, TERMINATED, RunFailed
from asympo_jax.progress import say
from asympo_jax.runtime.lockstep import Lockstep, is_late

_BEAT_S = 2.0  # between two signs of life
_SILENT_S = 40.0  # without one a process is taken for dead
_GONE_S = 6.0  # for the others to go when the first process ends
_BEAT, _LEFT, _TOLD, _END = "asympo/beat/", "asympo/left/", "asympo/told/", "asympo/end"


class Hosts:
    """This process among those of a run.

    Attributes:
        index: of this process, 0 is the first.
        count: of all of them.
        lockstep: what the first process announces.
        ended: whether this process has heard that the first one ends.
    """

    def __init__(self, client: Any = None, index: int = 0, count: int = 1):
        """Args: the client of `jax.distributed`, None for one process; index; count."""
        self.index, self.count, self.ended = index, count, False
        self.lockstep = Lockstep(client if count > 1 else None, index, count)
        self._client: Any = client
        self._over = threading.Event()

    def watch(self) -> None:
        """From now on this process ends if another one does."""
        threading.Thread(target=self._look, name="hosts", daemon=True).start()

    def tell(self, code: int, words: str) -> None:
        """Tells the first process how this one ends, or with 75 that it was asked to."""
        told = json.dumps([code, words])
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_TOLD}{self.index}", told, allow_overwrite=True)

    def end(self, code: int, words: str) -> bool:
        """Ends with the others; whether all did in good order."""
        if self.count == 1:
            return True
        try:
            if self.index == 0:
                self.lockstep.end(code, words)
                self._client.key_value_set(_END, json.dumps([code, words]))
                until = time.monotonic() + _GONE_S
                for i in range(1, self.count):
                    left_ms = max(1, round(1000 * (until - time.monotonic())))
                    self._client.blocking_key_value_get(f"{_LEFT}{i}", left_ms)
            elif self.ended:
                self._client.key_value_set(f"{_LEFT}{self.index}", "")
            else:
                self.tell(code, words)
                return False
        except jax.errors.JaxRuntimeError:
            return False
        self._over.set()
        jax.distributed.shutdown()
        return True

    def await_verdict(self) -> None:
        """Waits until another process would be missed, in which case this one is gone."""
        self._over.wait(_SILENT_S + 2 * _BEAT_S)

    def _look(self) -> None:
        """Watches until the end."""
        try:
            (self._look_at_first if self.index else self._look_at_others)()
        except jax.errors.JaxRuntimeError:
            if not self._over.is_set():
                interrupts.leave("process 0 is gone; the same command carries on", STOPPED)

    def _look_at_others(self) -> None:
        """What the first process watches."""
        heard: dict[int, tuple[str, float]] = {
            i: ("", time.monotonic()) for i in range(1, self.count)
        }
        heeded: dict[int, str] = {}
        while not self._over.wait(_BEAT_S / 2):
            told = self._values(_TOLD)
            for i, ending in told.items():
                if ending != heeded.get(i):
                    _heed(i, *json.loads(ending))
            heeded = told
            beats = self._values(_BEAT)
            for i, (beat, since) in heard.items():
                if beats.get(i, beat) != beat:
                    heard[i] = (beats[i], time.monotonic())
                elif time.monotonic() - since > _SILENT_S:
                    words = f"process {i} has given no sign of life for {_SILENT_S:.0f} s"
                    interrupts.leave(f"{words}; the same command carries on", STOPPED)

    def _look_at_first(self) -> None:
        """What the others watch."""
        number = 0
        while not self._over.is_set():
            number += 1
            key = f"{_BEAT}{self.index}"
            self._client.key_value_set(key, str(number), allow_overwrite=True)
            end = self._waited_for(_END)
            # The main thread hears of it, too, unless it is in a program that never ends.
            if end is not None and not self._over.wait(_GONE_S):
                code, words = json.loads(end)
                interrupts.leave(f"process 0 ended: {words}", code)

    def _waited_for(self, key: str) -> str | None:
        """The value of a key, None if it does not come before the next sign of life is due."""
        try:
            return self._client.blocking_key_value_get(key, round(1000 * _BEAT_S))
        except jax.errors.JaxRuntimeError as error:
            if not is_late(error):
                raise
            return None

    def _values(self, folder: str) -> dict[int, str]:
        """What each of the others that has set a key of a kind has set."""
        found = self._client.key_value_dir_get(folder)
        return {int(key.rsplit("/", 1)[1]): value for key, value in found}


def _heed(index: int, code: int, words: str) -> None:
    """Ends the first process as another one has, or asks its work to come to an end."""
    if code == STOPPED:
        interrupts.ask()
    else:
        interrupts.leave(f"process {index} ended: {words}", code)


ALONE = Hosts()


@contextlib.contextmanager
def joined(cluster: Cluster | None) -> Iterator[Hosts]:
    """Meets the others; at the end of the context all end.

    Args:
        cluster: where; None for one process.

    Raises:
        ValueError: no cluster is known here.
        InUse: another run meets at that port of this machine.
    """
    if cluster is None:
        yield ALONE
        return
    hosts = _join(cluster)
    try:
        yield hosts
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            hosts.await_verdict()
        code, words = _ending_of(error)
        hosts.end(code, words)
        if isinstance(error, RunFailed | KeyboardInterrupt | interrupts.Terminated):
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        os._exit(code)  # Python's own end would wait for the others once more
    if not hosts.end(0, "done"):
        say("another process did not end in good order; the result is whole")
        os._exit(0)


def _join(cluster: Cluster) -> Hosts:
    """Meets the others within the time that is given; no backend has started before."""
    if cluster.process_id == 0:
        cluster.check_port()
    words = f"not all processes came within --initialization_timeout_s={cluster.timeout_s:g}"
    late = threading.Timer(cluster.timeout_s, interrupts.leave, (words, STOPPED))
    late.daemon = True
    late.start()
    # Else SIGTERM would be jax's.
    jax.config.update("jax_enable_preemption_service", False)
    address = cluster.coordinator_address
    try:
        jax.distributed.initialize(
            address,
            cluster.num_processes,
            cluster.process_id,
            cluster_detection_method=None if address is None else "deactivate",
            # jax ends a process that is late by an abort.
            initialization_timeout=round(2 * cluster.timeout_s) + 10,
            # Else it listens on all interfaces, and answers whoever comes.
            coordinator_bind_address=address if cluster.is_here else None,
            shutdown_timeout_seconds=round(_GONE_S),
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed: jax knows no cluster here ({error}); give --coordinator_address, "
            "--num_processes and --process_id"
        ) from error
    finally:
        late.cancel()
    state = distributed.global_state
    hosts = Hosts(state.client, state.process_id, state.num_processes)
    if hosts.count > 1:
        hosts.watch()
    return hosts


def _ending_of(error: BaseException) -> tuple[int, str]:
    """Exit code and words of what ended this process."""
    match error:
        case RunFailed():
            return error.exit_code, str(error)
        case KeyboardInterrupt():
            return INTERRUPTED, "interrupted"
        case interrupts.Terminated():
            return STOPPED if interrupts.is_saved() else TERMINATED, "terminated"
        case SystemExit(code=int(code)):
            return code, "it says why itself"
    return FAILED, f"{type(error).__name__}: {error}"
