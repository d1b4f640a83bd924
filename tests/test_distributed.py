"""Two real processes that train as one: the same bits, each other's checkpoints, one end."""

import re
import signal
import socket
import threading
from typing import Any

import jax
import pytest
from several_processes import asked, flags, free_port, in_environment, killed, run, signalled, slurm
from tiny_runs import cut_back

from asympo_jax import shared_directories
from asympo_jax.cluster import Cluster
from asympo_jax.endings import InUse
from asympo_jax.following import _Writing
from asympo_jax.hosts import joined
from asympo_jax.models.sharding import MeshShape
from asympo_jax.runtime.leases import Stalled
from asympo_jax.runtime.lockstep import Ended, Lockstep
from asympo_jax.runtime.snapshots import SnapshotRefused

# The time to save is for a machine that is at other work, too.
FIELDS: dict[str, Any] = {
    "warmup__num_steps": 2,
    "checkpoint__every_updates": 3,
    "checkpoint__grace_s": 250,
}
GRADIENTS: dict[str, Any] = {"log__gradients_every_updates": 3}


@pytest.fixture(scope="module")
def one(runner, tmp_path_factory):
    """One process with all devices of the mesh, whose sums are gloo's, too.

    Without its flags it would add the same numbers in another order.
    """
    return run(runner, tmp_path_factory.mktemp("one") / "run", flags(1), **FIELDS, **GRADIENTS)[0]


@pytest.fixture(scope="module")
def two(runner, tmp_path_factory):
    """Two processes with half of them each, which Slurm tells where they are; both publish."""
    workdir, snapshots = tmp_path_factory.mktemp("two") / "run", tmp_path_factory.mktemp("both")
    befores = {i: in_environment(variables) for i, variables in enumerate(slurm(2))}
    fields = {**FIELDS, **GRADIENTS, "runtime__snapshot_dir": str(snapshots)}
    ends = run(runner, workdir, [["--distributed"]] * 2, befores, **fields)
    assert not list(snapshots.iterdir())
    return ends


def test_two_processes_end_with_the_bits_and_the_metrics_of_one_on_the_same_mesh(one, two):
    first, second = two
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    assert first.sha == one.sha
    names = ("loss", "reward/mean", "grad/norm", "grad/cosine", "lag/max")
    told = [{name: line.get(name) for name in names} for line in first.metrics]
    assert told == [{name: line.get(name) for name in names} for line in one.metrics]
    # Each writes a part of the same pieces: the numbers once, the text around them twice.
    sizes = [
        [line["snapshot/bytes"] for line in run.metrics if "loss" in line] for run in (one, first)
    ]
    assert all(whole < parts < 1.5 * whole for whole, parts in zip(*sizes, strict=True)), sizes
    lines = (second.stdout + second.stderr).splitlines()
    assert [line for line in lines if not line.startswith("[Gloo]")] == []


def test_two_processes_carry_on_a_run_of_one_end_with_75_and_are_carried_on_by_one(
    one, runner, tmp_path
):
    workdir = tmp_path / "run"
    cut_back(one, workdir, 3)
    fields = {**FIELDS, "runtime__snapshot_dir": None}  # the first process gathers and writes all
    befores = {0: asked(2), 1: signalled(signal.SIGTERM, 1)}
    ends = run(runner, workdir, flags(2), befores, **fields)
    assert [end.code for end in ends] == [75, 75], ends
    assert re.search(r"stopped as asked after update [45] of 6, which is saved", ends[0].error)
    assert ends[1].error == ends[0].error.replace("error: ", "error: process 0 ended: ")
    ends = run(runner, workdir, flags(2), {1: signalled(signal.SIGKILL, 1)}, **fields)
    assert [end.code for end in ends] == [75, -signal.SIGKILL], ends
    assert "process 1 has given no sign of life" in ends[0].error
    ends = run(runner, workdir, flags(2), {0: killed(1)}, **fields)
    assert ends[0].code == -signal.SIGKILL, ends
    assert ends[1].code in (75, -signal.SIGABRT), ends  # jax may be faster
    assert run(runner, workdir, flags(1), **fields)[0].sha == one.sha


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--process_id=1"], "--process_id: is for several processes, add --distributed"),
        (["--nodistributed", *flags(2)[0]], "add --distributed"),
        (["--distributed"], "jax knows no cluster here"),
    ],
)
def test_flags_without_which_or_with_which_nobody_is_found_are_refused(
    runner, tmp_path, words, named
):
    end = runner.finish(tmp_path / "run", [*runner.command(tmp_path / "run"), *words])
    assert (end.code, named in end.error) == (2, True), end.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None, 2, None, 1.0), "must be given together"),
        (("localhost:1", 2, 2, 1.0), "--process_id=2: must be from 0 to 1"),
        (("localhost:1", 0, 0, 1.0), "--num_processes=0: must be at least 1"),
        (("localhost", 2, 0, 1.0), "--coordinator_address=localhost: must be HOST:PORT"),
        ((None, None, None, 0.0), "--initialization_timeout_s=0: must be positive"),
    ],
)
def test_places_to_meet_that_cannot_be_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Cluster(*given)


def test_a_process_whose_peers_do_not_come_ends_with_75_in_the_time_that_it_was_given(
    runner, tmp_path
):
    words = [*flags(2)[0], "--initialization_timeout_s=1"]
    end = runner.finish(tmp_path / "run", [*runner.command(tmp_path / "run"), *words])
    assert (end.code, "not all processes came within" in end.error) == (75, True), end.stderr


@pytest.mark.parametrize("address", ["::", "127.0.0.1"])
def test_a_port_where_another_run_meets_is_refused(address):
    """That run would be aborted else: its listener lets others share the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((address, 0))
        listener.listen()
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(InUse, match="as where another run meets"):
            joined(Cluster(place, 2, 0, 1.0)).__enter__()


def test_processes_of_one_machine_meet_on_its_loopback(monkeypatch):
    given = []

    def initialize(*args, **kwargs):
        given.append(kwargs["coordinator_bind_address"])
        raise ValueError("enough")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for host in ("localhost", "10.0.0.1"):
        with pytest.raises(ValueError, match="enough"):
            joined(Cluster(f"{host}:{free_port()}", 1, 0, 60.0)).__enter__()
    assert given[0].startswith("localhost:") and given[1] is None


def test_a_workdir_is_that_of_the_first_process_if_it_has_its_mark(tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    for directory in (tmp_path, others):
        (directory / "config.json").write_text("{}")
    shared_directories.mark(others, "before")
    shared_directories.mark(tmp_path, "now")
    looks = []
    assert shared_directories.is_marked(tmp_path, "now", lambda: looks.append(None), 0.0)
    assert not shared_directories.is_marked(others, "now", lambda: looks.append(None), 0.0)
    assert len(looks) == 2


def test_a_mesh_that_the_processes_cannot_share_equally_is_refused():
    MeshShape(2, 2).check_processes(4)
    with pytest.raises(ValueError, match=r"= 4: must be a multiple of the 3 processes"):
        MeshShape(2, 2).check_processes(3)


def test_a_directory_that_another_process_has_made_is_seen_or_not(tmp_path):
    assert shared_directories.is_there(tmp_path, lambda: None, 0.0)
    assert not shared_directories.is_there(tmp_path / "elsewhere", lambda: None, 0.0)


class Keys(dict):
    """A key-value store of one process."""

    def key_value_set_bytes(self, key, value):
        assert key not in self
        self[key] = value

    def blocking_key_value_get_bytes(self, key, timeout_in_ms):
        if key not in self:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
        return self[key]

    def key_value_delete(self, key):
        del self[key]


def test_announcements_come_in_order_and_are_forgotten():
    keys = Keys()
    first, second = Lockstep(keys, 0), Lockstep(keys, 1)
    for number in range(100):
        first.announce("save", number=number)
        assert second.next(lambda: None) == {"type": "save", "number": number}
    assert len(keys) < 20
    first.end(3, "why")
    with pytest.raises(Ended, match="why") as end:
        second.next(lambda: None)
    assert end.value.code == 3


def test_the_first_process_waits_for_what_all_others_write():
    keys = Keys()
    first, second, third = (Lockstep(keys, i, 3) for i in range(3))
    assert second.written("v00000001", 20, 1.0) == 20
    with pytest.raises(Stalled, match=r"process 2 did not write its part of v00000001 in 1 s"):
        first.written("v00000001", 3, 1.0)
    for number in range(2, 50):
        name = f"v{number:08d}"
        assert [of.written(name, 10 + i, 1.0) for i, of in enumerate((third, second))] == [10, 11]
        assert first.written(name, 3, 1.0) == 24
    assert not keys, "nothing is kept"


class FullDisk:
    """A store that refuses version 1 once the parameters of version 2 are copied."""

    def __init__(self):
        self.is_next_copied = threading.Event()
        self.asked = []

    def copied(self, version):
        if version > 1:
            self.is_next_copied.set()
        return version

    def write(self, version, params):
        self.asked.append((version, params))
        assert self.is_next_copied.wait(60)
        raise SnapshotRefused("no space left")


def test_a_process_that_cannot_write_its_part_of_a_snapshot_says_so_at_the_next_one():
    store: Any = FullDisk()
    writing = _Writing(store)
    writing.hand_over(1, 1)
    writing.check()
    with pytest.raises(SnapshotRefused, match="no space left"):
        writing.hand_over(2, 2)
    with pytest.raises(SnapshotRefused, match="no space left"):
        writing.check()
    assert store.asked == [(1, 1)]


def test_a_process_with_no_other_announces_nothing():
    Lockstep().announce("save")
    assert Lockstep().from_first(lambda: 1, None, lambda: None) == 1
