"""Samplers as processes on this machine, each on two private pairs of pipes: nothing listens.

The learner's process keeps the broker. For each sampler it starts a program, hands it one end of
two socket pairs as inherited file descriptors, and serves the other ends.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe

from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Holder
from asympo_jax.runtime.serving import Client, ServedSampler


class LocalProcess(ServedSampler):
    """One process of a sampler and the threads that serve it.

    Args:
        holder: its name at the broker.
        broker: what it leases from.
        command: program and arguments; `--index=I`, `--fd=N` and `--submit_fd=M` follow.
        environment: environment of the program.
        max_frame_bytes: of a submission; a process that sends more is killed.
        start_s: seconds until it must have asked for its first lease, else it is killed.
    """

    def __init__(
        self,
        holder: Holder,
        broker: Broker,
        command: Sequence[str],
        environment: Mapping[str, str],
        max_frame_bytes: int,
        start_s: float,
    ):
        """Starts the program."""
        super().__init__(holder, broker)
        (leases, leases_end), (submissions, submissions_end) = Pipe(), Pipe()
        with leases_end, submissions_end:
            fds = [leases_end.fileno(), submissions_end.fileno()]
            self._process = subprocess.Popen(
                [*command, f"--index={holder[0]}", f"--fd={fds[0]}", f"--submit_fd={fds[1]}"],
                env=dict(environment),
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C reaches the learner alone, which closes the pipes
            )
        self._serve_lines(leases, submissions, max_frame_bytes, start_s)

    def _kill(self) -> None:
        """Ends the process."""
        self._process.kill()

    def _exit(self, timeout_s: float | None) -> str | None:
        """Its exit code or signal."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class LocalClient(Client):
    """The broker as a sampler process sees it, through two file descriptors."""

    def __init__(self, fd: int, submit_fd: int):
        """Takes over the descriptors."""
        for each in (fd, submit_fd):
            os.set_inheritable(each, False)
        super().__init__(Connection(fd), Connection(submit_fd))
