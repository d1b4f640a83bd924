"""Whole runs whose samplers or graders die, and snapshots that samplers must not work with."""

import dataclasses
import signal

import numpy as np
import pytest
from sampler_stand_ins import RUN_ID
from tiny_runs import TINY

from asympo_jax.runtime.checkpoint import Checkpointer
from asympo_jax.runtime.leases import Lease
from asympo_jax.runtime.sampler import SamplerLoop
from asympo_jax.runtime.snapshots import SnapshotRefused, SnapshotStore

PARAMS = {"layer": {"scale": np.arange(8, dtype=np.float32)}}


class OneByOne:
    """Leases of the versions 1 and 2, and a sampler that only takes note of its parameters."""

    def __init__(self, store: SnapshotStore):
        self.read_snapshot = store.read_policy
        self.leases = iter([Lease(0, 0, 1), Lease(1, 0, 2)])
        self.seen = []

    def lease(self):
        return next(self.leases)

    def submit(self, lease, groups, busy_s, *, read_s):
        return None

    def decode(self, lease, params):
        self.seen.append((lease.version, np.asarray(params["layer"]["scale"]).tolist()))
        return dataclasses.make_dataclass("Decoded", ["lease"])(lease)

    def grade(self, decoded):
        return []


@pytest.mark.parametrize("fault", ["torn", "corrupt", "older", "foreign", "missing"])
def test_a_sampler_never_works_with_a_snapshot_that_is_not_whole_and_the_right_one(tmp_path, fault):
    store = SnapshotStore(tmp_path, RUN_ID)
    store.write(1, PARAMS)
    path = tmp_path / "v00000002.safetensors"
    good = (tmp_path / "v00000001.safetensors").read_bytes()
    if fault == "foreign":
        SnapshotStore(tmp_path, "run-2").write(2, PARAMS)
    elif fault != "missing":
        store.write(2, PARAMS)
        whole = path.read_bytes()
        flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
        path.write_bytes({"torn": whole[:-9], "corrupt": flipped, "older": good}[fault])
    stages = OneByOne(store)
    with pytest.raises(SnapshotRefused, match=r"v00000002\.safetensors"):
        SamplerLoop(stages, stages).run(pytest.fail)  # pyright: ignore[reportArgumentType]
    assert stages.seen == [(1, list(range(8)))]


WHOLE: dict[str, object] = {"lag": 0, "num_updates": 4, "sampler__prompts_per_lease": 2}

DIES: dict[str, object] = {**WHOLE, "task__name": "tasks_for_tests:DiesInTurn"}


@pytest.fixture(scope="module")
def undisturbed(runner, tmp_path_factory):
    """The run that others are compared with: at lag 0, in one process."""
    return runner.train(tmp_path_factory.mktemp("one"), runtime__name="sync", **WHOLE)


def test_a_run_whose_sampler_is_killed_at_any_moment_ends_with_the_same_bits(
    undisturbed, runner, tmp_path, monkeypatch
):
    moments = "idle rollout reading submitting"
    monkeypatch.setitem(runner.environment, "DIES_AT", moments)
    monkeypatch.setitem(runner.environment, "DIED_AT", str(tmp_path))
    run = runner.train(tmp_path / "run", runtime__max_restarts=4, **DIES)
    assert run.sha == undisturbed.sha
    assert all((tmp_path / moment).exists() for moment in moments.split())
    last = run.metrics[-1]
    assert last["samplers/restarts"] == run.stderr.count("ended with signal 9") == 4
    assert last["tickets/trained"] == last["tickets/issued"] == 4 * TINY["prompts_per_update"]
    assert last["tickets/reissued"] >= 3 * 2
    assert last["refused/frame"] == 1, "the submission that was cut short"


def test_a_run_whose_grader_broke_goes_on_once_it_is_mended(
    undisturbed, runner, tmp_path, monkeypatch
):
    """Also where a lease of the next update is finished already, as in one process."""
    monkeypatch.setitem(runner.environment, "MENDED", str(tmp_path / "mended"))
    fields = {**WHOLE, "task__name": "tasks_for_tests:RaisesUntilMended", "runtime__name": "sync"}
    broken = runner.train(tmp_path / "run", **fields)
    assert broken.code == 1 and "the grader fell over" in broken.error
    checkpointer = Checkpointer(tmp_path / "run", keep=2)
    _, groups = checkpointer.tickets()
    checkpointer.close()
    assert len(groups) == 2, "the first of two leases"
    (tmp_path / "mended").touch()
    assert runner.train(tmp_path / "run", **fields).sha == undisturbed.sha


def test_a_run_that_has_lost_all_samplers_says_how_and_carries_on_when_called_again(
    undisturbed, runner, tmp_path, monkeypatch
):
    monkeypatch.setitem(runner.environment, "DIES_AT", "reading")
    monkeypatch.setitem(runner.environment, "DIED_AT", str(tmp_path))
    fields: dict[str, object] = {**DIES, "runtime__max_restarts": 0, "checkpoint__every_updates": 1}
    run = runner.train(tmp_path / "run", **fields)
    assert run.code == 1
    assert run.error.startswith(f"error: sampler 0 ended with signal {signal.SIGKILL:d} after 0")
    assert not list(runner.snapshots.iterdir())
    assert list((run.workdir / "checkpoints").iterdir())
    again = runner.train(tmp_path / "run", **fields)
    assert again.sha == undisturbed.sha
    assert again.metrics[-1]["tickets/trained"] == 4 * TINY["prompts_per_update"]
