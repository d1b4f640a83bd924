"""SIGINT, SIGTERM and SIGHUP as exceptions that cannot get lost.

A handler's exception is swallowed where Python ignores exceptions, as in destructors and callbacks
of libraries. So a signal is remembered, too, and raised again where the work says that it is safe.
"""

import signal
from typing import NoReturn


class Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds the run, so that roles stop and nothing is left behind."""


_KINDS = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
    signal.SIGHUP: Terminated,  # the terminal was closed
}
_received: list[type[BaseException]] = []


def install() -> None:
    """From now on these signals raise; one that this process was told to ignore stays ignored."""
    for number in _KINDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def raise_if_received() -> None:
    """Raises what a signal has asked for, if its exception was swallowed."""
    if _received:
        raise _received[0]


def _raise(number: int, frame: object) -> NoReturn:
    """The handler."""
    kind = _KINDS[signal.Signals(number)]
    _received.append(kind)
    raise kind
