"""What one core hands over: leases of the broker, frames of groups, snapshots.

    python benchmarks/hand_over.py

Leases a second: given out and handed in, with more and more of them out at the same time, the
broker in this process. Frames: a lease of 8 prompts with 8 responses of up to 3072 tokens, as a
sampler encodes it and the broker reads it. Snapshots: written as the learner does, with the copy to
the host and the checksum, and read as a sampler does, in the RAM disk. All in seconds of this
process's CPU time, which other work on the machine changes little; medians of the repeats. Prints a
table and, as its last line, JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import tables

from asympo_jax.runtime import wire
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Lease
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.types import Group

OUT_AT_ONCE = (1, 64, 1024)  # leases


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--leases", type=int, default=4096, help="of a repeat (4096)")
    parser.add_argument("--snapshot_mb", type=int, default=256, help="of a snapshot (256)")
    given = parser.parse_args()
    rows: dict[str, float] = {}
    for order in ("ticket", "completion"):
        for count in OUT_AT_ONCE:
            seconds = _median(given.repeats, lambda o=order, n=count: _lease(o, n, given.leases))
            rows[f"{order}, {count} leases out: leases/s"] = given.leases / seconds
    for name, (seconds, size) in _frames(given.repeats).items():
        rows[f"frame of a lease, {name}: MB/s"] = size / seconds / 1e6
    for name, seconds in _snapshots(given.repeats, given.snapshot_mb).items():
        rows[f"snapshot, {name}: MB/s"] = given.snapshot_mb / seconds
    for name, value in rows.items():
        print(f"{name:44}{value:12,.0f}")
    print(json.dumps({"benchmark": "hand_over", **rows, "machine": tables.machine()}))


def _median(repeats: int, work: Callable[[], Any]) -> float:
    """CPU seconds of work."""
    return statistics.median(_cpu_s(work) for _ in range(repeats))


def _cpu_s(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _lease(order: Any, out_at_once: int, num_leases: int) -> None:
    """Leases of a prompt each, so many of them out; an update takes what was handed in."""
    num_updates = num_leases // out_at_once
    broker = Broker(Pacing(order, 1, num_updates, out_at_once, 1), 2 * out_at_once)
    broker.open(0)
    for update in range(num_updates):
        leases = [broker.lease((0, 0)) for _ in range(out_at_once)]
        for lease in leases:
            broker.submit(lease, [_group(lease.number, lease.version)], 1.0, (0, 0))
        batch = broker.next_batch(1.0)
        broker.complete(update + 1, {group.ticket for group in batch})
        broker.publish(update + 1)


def _group(ticket: int, version: int, size: int = 1, prompt: int = 1, longest: int = 1) -> Group:
    """A group whose responses are as long as they can be."""
    return Group(
        ticket=ticket,
        version=version,
        prompt_S=np.zeros(prompt, np.int32),
        response_GT=np.zeros((size, longest), np.int32),
        length_G=np.full(size, longest, np.int32),
        stop_G=np.zeros(size, np.int8),
        reward_G=np.zeros(size, np.float32),
    )


def _frames(repeats: int) -> dict[str, tuple[float, int]]:
    """Seconds and bytes of a frame, written and read."""
    groups = [_group(ticket, 0, 8, 1024, 3072) for ticket in range(8)]
    fields = [wire.group_fields(group) for group in groups]
    message = {"type": "submit", "lease": wire.lease_fields(Lease(0, 0, 0)), "groups": fields}
    frame, times = wire.encode(message), 20
    size = len(frame) * times
    written = _median(repeats, lambda: [wire.encode(message) for _ in range(times)])
    read = _median(
        repeats, lambda: [wire.groups_from(wire.decode(frame)["groups"]) for _ in range(times)]
    )
    return {"written": (written, size), "read": (read, size)}


def _snapshots(repeats: int, megabytes: int) -> dict[str, float]:
    """Seconds of a snapshot, written and read."""
    params = {f"layer_{i}": jnp.ones((megabytes, 15_625), jnp.float32) for i in range(16)}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        store = SnapshotStore(directory, "run")
        written = _median(repeats, lambda: store.write(0, params))
        return {"written": written, "read": _median(repeats, lambda: store.read(0))}


if __name__ == "__main__":
    main()
