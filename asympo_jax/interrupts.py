"""SIGINT, SIGTERM and SIGHUP: the first one ends a command in good order, the second one at once.

In good order is an exception in the main thread or, where there is something to save, a call that
asks for an end. A scheduler allows as long as the config says for that; a person who has typed
Ctrl-C waits no longer than for any other end. A handler's exception is swallowed where Python
ignores exceptions, as in destructors and callbacks of libraries, and comes late where C code is at
work. So a signal is remembered, too, and raised again where the work says that it is safe; and a
thread that hears of signals at any time ends the process at a second one, and when the time is up.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from asympo_jax.endings import INTERRUPTED, STOPPED, TERMINATED, Interrupted, Stopped

END_S = 9.0  # for an end in good order
# A scheduler signals the whole group, and a wrapper passes its signal on: that is one signal.
_SAME_S = 1.0
_LEAVE_S = 2.0  # for an end at once: what cleans up, or standard error, may hang
# Advice to a person who stopped a run before it could save.
CARRIES_ON = "the same command carries on from the last checkpoint"
BEGINS_ANEW = "no update was saved, so the same command begins anew"
_SAVED = 0  # the number of no signal: all is saved


class Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds the run, so that roles stop and nothing is left behind."""


_KINDS = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
    signal.SIGHUP: Terminated,  # the terminal was closed
}


class _Ending:
    """What is known of the end of this process.

    Attributes:
        received: what signals raised.
        cleaning: called before an end at once.
        ask: called instead of raising, if there is something to save.
        grace_s: seconds from there to the end of saving; after SIGINT at most those of any end.
        end_s: seconds that an end in good order may take.
        asked: what it was called instead of.
        saved: whether nothing is left to save.
        advice: to the person whose process ends before all is saved.
        told: descriptor that wakes the thread.
        is_held: whether nothing is raised now.
    """

    def __init__(self) -> None:
        self.received: list[type[BaseException]] = []
        self.cleaning: list[Callable[[], object]] = []
        self.ask: Callable[[], object] | None = None
        self.grace_s = self.end_s = END_S
        self.asked: type[BaseException] | None = None
        self.saved = False
        self.advice = ""
        self.told = -1
        self.is_held = False


_ending = _Ending()


def install(advice: str = "", end_s: float = END_S) -> None:
    """From now on these signals end the process; one that it was told to ignore stays ignored.

    Args:
        advice: to the person whose process ends before all is saved.
        end_s: seconds that an end in good order may take.
    """
    _ending.advice, _ending.end_s = advice, end_s
    heard, _ending.told = os.pipe()
    os.set_blocking(_ending.told, False)
    signal.set_wakeup_fd(_ending.told, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard,), name="signals", daemon=True).start()
    for number in _KINDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def allow(end_s: float) -> None:
    """From now on an end in good order may take so many seconds."""
    _ending.end_s = end_s


def advise(advice: str) -> None:
    """From now on this is what a person is told whose process ends before all is saved."""
    _ending.advice = advice


def advice() -> str:
    """What that person is told now."""
    return _ending.advice


def raise_if_received() -> None:
    """Raises what a signal has asked for, if its exception was swallowed."""
    if _ending.received:
        raise _ending.received[0]


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Within it no signal raises; at its end it does. For a moment's work that leaves nothing half.

    Between what is made and the context that removes it again, an exception would leave it there.
    """
    _ending.is_held = True
    try:
        yield
    finally:
        _ending.is_held = False
    raise_if_received()


@contextlib.contextmanager
def asking(ask: Callable[[], object], grace_s: float) -> Iterator[None]:
    """Within it signals call `ask` and raise nothing; at its end all must be saved.

    What a signal asked for before, and whose exception was swallowed, is raised first.

    Args:
        ask: makes the work come to its end; called in the main thread, wherever that is.
        grace_s: seconds from SIGTERM or SIGHUP to the end of this context; from SIGINT no more than
            an end in good order may take.
    """
    raise_if_received()
    _ending.grace_s, _ending.ask = grace_s, ask
    try:
        yield
        _ending.saved = True
        if _ending.told >= 0:
            os.write(_ending.told, bytes([_SAVED]))
    finally:
        _ending.ask = None


def is_asked() -> bool:
    """Whether a signal asked the work to come to its end."""
    return _ending.asked is not None


def raise_if_asked() -> None:
    """Raises what a signal stood for that asked the work to come to its end."""
    if _ending.asked is not None:
        raise _ending.asked


def ending_of(signalled: BaseException) -> type[Interrupted] | type[Stopped]:
    """How a run ends that has saved everything before it heeds a signal."""
    return Interrupted if isinstance(signalled, KeyboardInterrupt) else Stopped


def ask() -> None:
    """Asks the work to come to its end, as SIGTERM does, for another process that got one.

    It counts as no signal: a scheduler that signals all processes may be later here.
    """
    if _ending.ask is None:
        _ending.received.append(Terminated)  # raised where the work says that it is safe
    elif _ending.asked is None:
        _ending.asked = Terminated
        _ending.ask()


def is_saved() -> bool:
    """Whether a process that is ended now loses nothing."""
    return _ending.saved


@contextlib.contextmanager
def cleaning(clean: Callable[[], object]) -> Iterator[None]:
    """Within it `clean` is called in an end at once, in another thread than the main one."""
    _ending.cleaning.append(clean)
    try:
        yield
    finally:
        _ending.cleaning.remove(clean)


def _handle(number: int, frame: object) -> None:
    """The handler; a second signal is the thread's."""
    kind = _KINDS[signal.Signals(number)]
    if _ending.ask is not None:
        if _ending.asked is None:
            _ending.asked = kind
            _ending.ask()
        return
    if _ending.received:
        return  # Raised already: a second time would break off what cleans up.
    _ending.received.append(kind)
    if not _ending.is_held:
        raise kind


def _watch(heard: int) -> None:
    """Ends the process at a second signal, or when the time that the first one gave is up."""
    first, is_saved, deadline, since = _SAVED, False, float("inf"), 0.0
    while True:
        left_s = None if not first else max(0.0, deadline - time.monotonic())
        if not select.select([heard], [], [], left_s)[0]:
            state = "in its last steps, all is saved" if is_saved else "not in time"
            _leave(first, is_saved, f"{state}; {_ending.advice}")
        for number in os.read(heard, 64):
            if number == _SAVED:
                is_saved = True
                if first != signal.SIGINT:
                    deadline = time.monotonic() + _ending.end_s
            elif number not in _KINDS:
                continue
            elif not first:
                given_s = _ending.end_s
                # What was asked may have been saved before this thread had its turn.
                if _ending.ask is not None or _ending.asked is not None:
                    shorter_s = min(_ending.grace_s, _ending.end_s)
                    given_s = shorter_s if number == signal.SIGINT else _ending.grace_s
                    _tell_asked(number, given_s)
                first, since = number, time.monotonic()
                deadline = since + given_s
            elif number == signal.SIGINT or (
                # A closing terminal may send several.
                number != signal.SIGHUP and time.monotonic() - since >= _SAME_S
            ):
                _leave(number, is_saved, f"at once; {_ending.advice}")


def _tell_asked(number: int, given_s: float) -> None:
    """Says what happens now, to whoever may not want to wait for it."""
    again = "Ctrl-C again" if number == signal.SIGINT else "another signal"
    words = (
        f"{signal.Signals(number).name}: ends after the update at work and saves, {given_s:g} s at "
        f"most; {again} ends at once\n"
    )
    with contextlib.suppress(OSError):
        os.write(2, words.encode())


def _leave(number: int, is_saved: bool, words: str) -> None:
    """Ends the process as a signal wants it."""
    is_interrupt = number == signal.SIGINT
    code = INTERRUPTED if is_interrupt else STOPPED if is_saved else TERMINATED
    leave(f"{'interrupted' if is_interrupt else 'terminated'} {words}", code)


def leave(words: str, code: int) -> NoReturn:
    """Cleans up and ends the process, whatever its other threads are at."""
    last_resort = threading.Timer(_LEAVE_S, os._exit, (code,))
    last_resort.daemon = True
    with contextlib.suppress(RuntimeError):  # no room for a thread
        last_resort.start()
    for clean in list(_ending.cleaning):
        with contextlib.suppress(Exception):
            clean()
    with contextlib.suppress(OSError):
        os.write(2, f"error: {' '.join(words.split())}\n".encode())
    os._exit(code)
