"""Where the processes of a learner on several hosts meet, as the flags of `train` say it."""

import contextlib
import dataclasses
import socket

from asympo_jax.endings import InUse

_ANSWER_S = 2.0  # for whoever has a port of this machine


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where the processes of a run meet.

    Attributes:
        coordinator_address: host and port of the first process; None to ask the cluster for it and
            for the two numbers: Cloud TPU VMs, Slurm and GKE are known to jax.
        num_processes: all of them.
        process_id: of this one, from 0 on.
        timeout_s: for all of them to come.
    """

    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    timeout_s: float

    def __post_init__(self):
        """Refuses what cannot be.

        Raises:
            ValueError: naming the flag, its value and what is allowed.
        """
        address, count, index = self.coordinator_address, self.num_processes, self.process_id
        if (address is None) + (count is None) + (index is None) not in (0, 3):
            raise ValueError(
                "--coordinator_address, --num_processes, --process_id: must be given together, or "
                "none of them and --distributed, which asks the cluster"
            )
        if not 0 < self.timeout_s <= 86400:
            raise ValueError(
                f"--initialization_timeout_s={self.timeout_s:g}: must be positive and at most 86400"
            )
        if address is None or count is None or index is None:
            return
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"--coordinator_address={address}: must be HOST:PORT")
        if count < 1:
            raise ValueError(f"--num_processes={count}: must be at least 1")
        if not 0 <= index < count:
            raise ValueError(f"--process_id={index}: must be from 0 to {count - 1}")

    @property
    def is_here(self) -> bool:
        """Whether they meet where only this machine's processes come."""
        host = (self.coordinator_address or "").rpartition(":")[0]
        return host in ("127.0.0.1", "localhost")

    def check_port(self) -> None:
        """Refuses a port where somebody answers before the first process listens there.

        jax would share it, and both runs would be aborted as soon as they meet.

        Raises:
            InUse: naming it.
        """
        host, _, port = (self.coordinator_address or "").rpartition(":")
        place = (host.strip("[]"), int(port))
        with contextlib.suppress(OSError), socket.create_connection(place, _ANSWER_S):
            raise InUse(
                f"--coordinator_address={self.coordinator_address}: somebody answers there, as "
                "where another run meets; give all processes another port"
            )
