"""Samplers as actors of Ray: the same bits, nothing lost, and no cluster that others could use."""

import contextlib
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import tempfile
import types
import warnings

import numpy as np
import pytest
from sampler_stand_ins import ADMISSION, RUN_ID
from test_config import with_fields
from tiny_runs import TIMEOUT_S, TINY, Finished, wait_until

from asympo_jax import actors, interrupts, training
from asympo_jax.config import resolve
from asympo_jax.runtime import ray_cluster
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.private_directories import make_private_directory
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.runtime.supervisor import Supervisor
from asympo_jax.runtime.tickets import Pacing

needs_ray = pytest.mark.skipif(not ray_cluster.is_installed(), reason="needs the extra [ray]")
FIELDS: dict[str, object] = {
    "task__name": "tasks_for_tests:DiesInActor",
    "sampler__count": 2,
    "lora__rank": 2,  # so that two kinds of files are sent
}
LOOPBACK = ("0100007F:", "0000000000000000FFFF00000100007F:")
PARAMS = {"layer": {"scale": np.arange(8, dtype=np.float32)}}


@pytest.fixture(scope="module")
def noted(tmp_path_factory) -> pathlib.Path:
    """Where an actor notes what it saw before it died."""
    return tmp_path_factory.mktemp("noted")


@pytest.fixture(scope="module")
def on_ray(runner, tmp_path_factory, noted) -> Finished:
    """A run of adapters with two actors, of which one is killed at its second lease."""
    runner.environment["DIED_AT"] = str(noted)
    workdir = tmp_path_factory.mktemp("ray")
    return runner.train(workdir, runtime__name="ray", **FIELDS)


@needs_ray
def test_a_run_whose_actor_is_killed_has_the_bits_of_one_that_knows_nothing_of_ray(
    on_ray, runner, tmp_path
):
    local = runner.train(tmp_path / "local", **FIELDS)
    assert on_ray.sha == local.sha
    assert on_ray.metrics[-1]["grad/norm"] > 0


@needs_ray
def test_an_actor_that_is_killed_is_started_again_and_its_tickets_are_given_out_again(on_ray):
    assert on_ray.code == 0, on_ray.stderr
    last = on_ray.metrics[-1]
    assert last["samplers/restarts"] == on_ray.stderr.count("it is started again") == 1
    assert last["samplers/lost"] == 0
    assert last["tickets/reissued"] >= TINY["prompts_per_update"]
    assert last["tickets/trained"] == last["tickets/issued"] == 6 * TINY["prompts_per_update"]


@needs_ray
def test_the_cluster_of_a_run_listens_on_the_loopback_alone_and_leaves_nothing(
    on_ray, runner, noted
):
    addresses = (noted / "listening").read_text().split()
    assert addresses
    assert [address for address in addresses if not address.startswith(LOOPBACK)] == []
    (directory,) = set(re.findall(r"/[^\s=\0]*asympo-ray-\w+", (noted / "commands").read_text()))
    assert not pathlib.Path(directory).exists()
    assert not [
        path
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
        if directory.encode() in read(path)
    ]
    assert not list(runner.snapshots.iterdir())


def read(path: pathlib.Path) -> bytes:
    """What is in a file, nothing once its process has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def small_cluster(monkeypatch):
    """A cluster with one CPU, joined by this process."""
    tests = pathlib.Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests.parent}")
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own
            cluster = ray_cluster.join(1, lambda: pathlib.Path(directory), print)
        yield cluster
        cluster.leave()


@needs_ray
def test_samplers_wait_for_resources_and_start_when_there_are_some(small_cluster, tmp_path):
    import ray
    from ray_stand_ins import StandIn

    from asympo_jax.runtime.ray import ActorSpec, RayProcess, SnapshotObjects, Waiting

    store, said = SnapshotStore(tmp_path, RUN_ID), []
    store.write(0, PARAMS)
    pacing = Pacing("ticket", 2, num_updates=6, prompts_per_update=2, prompts_per_lease=2)
    broker = Broker(pacing, 4, run_id=RUN_ID, admission=ADMISSION)
    broker.open(0)
    spec = ActorSpec(StandIn, [str(tmp_path)], {"CPU": 1}, {})
    snapshots, waiting = SnapshotObjects(store), Waiting(2, {"CPU": 1}, said.append, told_s=0.5)

    def start(holder):
        largest = ADMISSION.max_frame_bytes(2)
        return RayProcess(holder, broker, spec, snapshots, waiting, largest, TIMEOUT_S)

    supervisor = Supervisor(broker, start, 2, 3, said.append)
    assert wait_until(lambda: bool(said) and (tmp_path / "come-0").exists())
    (tmp_path / "go").touch()
    assert [each.ticket for each in broker.next_batch(TIMEOUT_S)] == [0, 1]
    broker.close()
    waiting.end()
    supervisor.stop(TIMEOUT_S)
    assert (tmp_path / "ended").exists()
    waits = [words for words in said if "samplers wait for resources (1 CPU each)" in words]
    assert waits and waits[0].startswith(("1 of 2", "2 of 2"))
    ends = [words for words in said if "is started again" in words]
    assert len(ends) == broker.metrics()["samplers/restarts"] == 2
    assert "its actor" in ends[0] and "more than" in ends[1]
    assert broker.metrics()["refused/frame"] == 1
    assert "it is lost" not in " ".join(said)

    store.write(1, PARAMS)
    before, (ref,) = snapshots.of(0), snapshots.of(1).values()
    assert bytes(ray.get(ref)) == store.files(1)[0].read_bytes()
    store.prune(1)
    assert set(snapshots.of(1)) == set(snapshots._refs) == {store.files(1)[0].name}
    assert set(before) == {store.files(0)[0].name}


WRONG = [
    ({"RAY_AUTH_MODE": "disabled"}, ["RAY_AUTH_MODE='disabled'", "must be 'token'"]),
    ({"RAY_ADDRESS": "10.0.0.1:6379"}, ["RAY_AUTH_MODE=''", "must be 'token'"]),
    (
        {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/none"},
        ["RAY_AUTH_TOKEN_PATH='/none'", "RAY_ADDRESS='10.0.0.1:6379'", "no token"],
    ),
    (
        {"RAY_ADDRESS": "ray://10.0.0.1:10001", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a"},
        ["RAY_ADDRESS='ray://10.0.0.1:10001'", "HOST:PORT"],
    ),
]


@pytest.mark.parametrize(("environ", "words"), WRONG)
def test_a_cluster_that_cannot_be_told_apart_from_a_strangers_is_refused_before_anything(
    monkeypatch, tmp_path, environ, words
):
    monkeypatch.setattr(ray_cluster, "is_installed", lambda: True)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as raised:
        training.prepare(resolve(with_fields(runtime__name="ray")), tmp_path / "run")
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_run_on_ray_without_the_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_cluster, "is_installed", lambda: False)
    with pytest.raises(ValueError, match=r"runtime\.name='ray': needs .* 'asympo_jax\[ray\]'"):
        training.prepare(resolve(with_fields(runtime__name="ray")), tmp_path / "run")


class StandInRay(types.ModuleType):
    """A cluster that stands elsewhere, whose dashboard is at an address."""

    def __init__(self, dashboard: str):
        super().__init__("ray")
        self.dashboard, self.calls = dashboard, []

    def init(self, **given):
        self.calls.append("init")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray sets a handler of its own
        found = {"webui_url": self.dashboard, "node_ip_address": "10.0.0.2", "node_id": "n"}
        return types.SimpleNamespace(address_info=found)

    def shutdown(self):
        self.calls.append("shutdown")


@pytest.mark.parametrize(
    ("status", "dashboard", "error", "words", "calls"),
    [
        ("raise SystemExit(0)", "", ray_cluster.ClusterRefused, "who has no token", []),
        ("raise SystemExit('no such host')", "", ConnectionError, "no such host", []),
        (
            "raise SystemExit('AuthenticationError')",
            "10.0.0.1:8265",
            ray_cluster.ClusterRefused,
            "dashboard is at 10.0.0.1:8265",
            ["init", "shutdown"],
        ),
        ("raise SystemExit('AuthenticationError')", "127.0.0.1:8265", None, "", ["init"]),
    ],
)
def test_a_cluster_that_others_could_use_is_refused_with_the_reason(
    monkeypatch, tmp_path, status, dashboard, error, words, calls
):
    scripts = tmp_path / "ray" / "scripts"
    scripts.mkdir(parents=True)
    for package in (scripts, scripts.parent):
        (package / "__init__.py").touch()
    (scripts / "scripts.py").write_text(
        "import os\nassert os.environ['RAY_AUTH_MODE'] == 'disabled'\n"
        f"assert 'RAY_AUTH_TOKEN' not in os.environ\n{status}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, value in (("ADDRESS", "10.0.0.1:6379"), ("AUTH_MODE", "token"), ("AUTH_TOKEN", "a")):
        monkeypatch.setenv(f"RAY_{name}", value)
    monkeypatch.setitem(sys.modules, "ray", stand_in := StandInRay(dashboard))
    before = signal.getsignal(signal.SIGTERM)
    if error is None:
        assert ray_cluster.join(1, no_directory, print) == ray_cluster.Cluster("n", None)
    else:
        with pytest.raises(error, match=words):
            ray_cluster.join(1, no_directory, print)
    assert signal.getsignal(signal.SIGTERM) is before
    # A shutdown of what was never joined does nothing.
    assert [call for call in stand_in.calls if call == "init" or "init" in calls] == calls


def no_directory() -> pathlib.Path:
    """For a cluster that has its files elsewhere."""
    raise AssertionError("a directory was made")


def test_processes_that_a_node_which_did_not_start_leaves_are_ended(monkeypatch, tmp_path):
    token = "of-this-test"
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    child = subprocess.Popen(["sleep", "1000"])
    of_node = subprocess.Popen(["sh", "-c", "sleep 1000; :", str(tmp_path / "session")])
    shell = "sleep 1000 >/dev/null & echo $!"
    orphan = int(subprocess.check_output(["sh", "-c", shell], text=True))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-another-run")
    other = int(subprocess.check_output(["sh", "-c", shell], text=True))
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setitem(sys.modules, "ray", StandInRay(""))
    try:
        ray_cluster.Cluster("n", tmp_path).leave()
        assert of_node.wait(TIMEOUT_S) == -signal.SIGKILL
        assert wait_until(lambda: not is_alive(orphan))
        assert child.poll() is None and is_alive(other)
    finally:
        for process in (child, of_node):
            process.kill()
            process.wait()
        os.kill(other, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether a process is there, and has not ended."""
    found = read(pathlib.Path(f"/proc/{pid}/stat"))
    return bool(found) and found.rpartition(b")")[2].split()[0] != b"Z"


@pytest.fixture
def temporary(monkeypatch, tmp_path) -> pathlib.Path:
    """The temporary directory of a process that may start a cluster of its own, of stand-ins."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in ray_cluster._LOOPBACK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-this-test")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


class StandInNode(StandInRay):
    """A node on the loopback that comes up at the last of so many starts."""

    def __init__(self, num_starts: int = 1):
        super().__init__("")
        self.num_starts = num_starts

    def init(self, **given):
        self.calls.append("init")
        logs = pathlib.Path(given["_temp_dir"], "session", "logs")
        logs.mkdir(parents=True, mode=0o777, exist_ok=True)
        if self.calls.count("init") < self.num_starts:
            raise Exception("it timed out.")
        found = {"node_ip_address": "127.0.0.1", "node_id": "n"}
        return types.SimpleNamespace(address_info=found)


@pytest.mark.parametrize("is_at_once", [False, True])
def test_the_files_of_a_cluster_of_its_own_are_private_and_go_however_the_run_ends(
    monkeypatch, temporary, is_at_once
):
    monkeypatch.setitem(sys.modules, "ray", StandInNode())
    with contextlib.ExitStack() as stack:
        assert actors.join(stack, 1) == "n"
        (directory,) = temporary.iterdir()
        assert (directory / "ray" / "session").exists()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        if is_at_once:
            codes = []
            monkeypatch.setattr(os, "_exit", codes.append)
            interrupts.leave("interrupted at once", 130)
            assert codes == [130] and not directory.exists()
    assert not directory.exists()


def test_what_a_killed_run_left_of_its_cluster_is_removed_by_the_next(monkeypatch, temporary):
    killed, lock = make_private_directory(str(temporary), "ray")
    (killed / "ray" / "session").mkdir(parents=True)
    lock.close()  # what the end of a process does
    cut = temporary / "asympo-ray-cut"  # in its removal
    (cut / "ray").mkdir(parents=True)
    (temporary / "asympo-mine" / "ray").mkdir(parents=True)
    (temporary / "asympo-mine" / "notes").touch()
    monkeypatch.setitem(sys.modules, "ray", StandInNode())
    with contextlib.ExitStack() as stack:
        actors.join(stack, 1)
        assert not killed.exists() and not cut.exists()
        assert len(list(temporary.iterdir())) == 2


def test_a_node_that_does_not_come_up_in_time_is_started_again_and_the_third_is_the_last(
    monkeypatch, temporary, capsys
):
    monkeypatch.setitem(sys.modules, "ray", node := StandInNode(3))
    with contextlib.ExitStack() as stack:
        actors.join(stack, 1)
    assert node.calls == ["init", "shutdown", "init", "shutdown", "init", "shutdown"]
    told = capsys.readouterr().err
    assert "(it timed out.); it is started again, 1 of 2" in told and "2 of 2" in told
    monkeypatch.setitem(sys.modules, "ray", StandInNode(4))
    late = pytest.raises(ConnectionError, match=r"it timed out\.; it was started 3 times")
    with late, contextlib.ExitStack() as stack:
        actors.join(stack, 1)
    assert not list(temporary.iterdir())


def test_a_cluster_of_its_own_is_refused_where_ray_was_imported_before(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", StandInRay(""))
    for name in ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ray_cluster.ClusterRefused, match="imported before the run began"):
        ray_cluster.join(1, no_directory, print)
