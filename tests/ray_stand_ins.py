"""An actor of Ray that does what a test says, for the frames of `asympo_jax.runtime.serving`."""

import os
import pathlib
import select
import signal

from sampler_stand_ins import group

from asympo_jax.runtime.leases import Closed
from asympo_jax.runtime.serving import Client, LineEnd


class StandIn:
    """The first that comes dies when there is a file `go`, the second one sends too much.

    Those that come later work. Each leaves a file with its number in a directory.
    """

    def __init__(self):
        self._lines = LineEnd(), LineEnd()
        self._contents = 0

    def started(self):
        return None

    def exchange(self, line, answer, names, *contents):
        self._contents += sum(map(len, contents))
        return self._lines[line].exchange(answer)

    def run(self, index, home):
        directory = pathlib.Path(home)
        come = len(list(directory.glob("come-*")))
        (directory / f"come-{come}").touch()
        if come == 0:
            while not (directory / "go").exists():
                select.select([], [], [], 0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        if come == 1:
            self._lines[1].send_bytes(b"." * 10**6)
            signal.pause()
        try:
            client = Client(*self._lines)
            while True:
                lease = client.lease()
                assert self._contents > 0, "no snapshot came with the first lease"
                groups = [group(2 * lease.number + i, lease.version) for i in range(2)]
                client.submit(lease, groups, 0.0)
        except Closed:
            (directory / "ended").touch()
        finally:
            for line in self._lines:
                line.close()
