"""The checks of benchmarks/soak.py find what they are for; its monkey repeats itself."""

import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from asympo_jax import objectives
from asympo_jax.config import resolve
from asympo_jax.defaults import default_config
from asympo_jax.runtime.snapshots import write_params
from asympo_jax.types import Prompt

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def load():
    """A module of benchmarks/ by its name; they find each other as scripts do."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def checks(load):
    return load("soak_checks")


@pytest.fixture(scope="module")
def bounds(checks):
    return checks.Bounds(prompts=2, group_size=3, lag=1, checkpoints=2, snapshots=2, batches=1)


def line(update: int, **fields: object) -> dict[str, object]:
    """Metrics of an update of a run in which nothing is wrong, but for some."""
    good: dict[str, object] = {
        "update": update,
        "loss": 0.5,
        "grad/norm": 1.0,
        "params/norm": 2.0,
        "lag/max": 1.0,
    }
    good |= {"tickets/issued": 2 * update + 2, "tickets/trained": 2 * update}
    good |= {"tickets/filtered": 0, "tickets/failed": 0, "update/skipped": 0.0}
    return good | {name.replace("__", "/"): value for name, value in fields.items()}


def rollouts(update: int, *tickets: int) -> list[dict[str, int]]:
    """What an update trained on, three responses a ticket."""
    version = max(0, update - 2)
    lag = update - 1 - version
    return [{"ticket": t, "version": version, "lag": lag} for t in tickets for _ in range(3)]


def test_a_good_line_is_not_complained_about_and_every_bad_one_is(checks, bounds):
    assert checks.check_line(line(5), line(4), bounds) == []
    for fields, words in (
        ({"tickets__issued": 9}, "-1 tickets are live"),
        ({"tickets__issued": 15}, "5 tickets are live"),
        ({"tickets__trained": 9}, "together not 10"),
        ({"tickets__trained": 9, "tickets__failed": 2}, "together not 10"),
        ({"lag__max": 2.0}, "lag/max is 2"),
        ({"params__norm": None}, "params/norm is not finite"),
    ):
        found = checks.check_line(line(5, **fields), None, bounds)
        assert len(found) == 1 and words in found[0], (fields, found)
    fell = checks.check_line(line(5), line(4, tickets__failed=1), bounds)
    assert len(fell) == 1 and "tickets/failed fell from 1 to 0" in fell[0]


def test_a_ticket_that_is_trained_twice_is_found(checks, bounds):
    assert checks.check_rollouts(5, rollouts(5, 8, 9), 2, bounds) == []
    twice = checks.check_rollouts(5, rollouts(5, 8, 8), 1, bounds)
    assert twice == ["P2 update 5: 6 responses of ticket 8"]
    elsewhere = checks.check_rollouts(5, rollouts(5, 7, 9), 2, bounds)
    assert elsewhere == ["P2 update 5: trained ticket 7, which is not its own"]
    missing = checks.check_rollouts(5, rollouts(5, 8), 2, bounds)
    assert missing == ["P2 update 5: 1 tickets were written down, 2 trained"]


def test_a_group_beyond_its_lag_is_found(checks, bounds):
    late = rollouts(5, 8, 9)
    late[0] |= {"version": 2, "lag": 2}
    found = checks.check_rollouts(5, late, 2, bounds)
    assert found == ["P3 update 5: ticket 8 is of version 2 with lag 2, not 3"]
    for fields in ({"version": 2}, {"lag": 2}):
        late[0] |= {"version": 3, "lag": 1} | fields
        assert len(checks.check_rollouts(5, late, 2, bounds)) == 1


def journal_of(checks, bounds, path, *lines):
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    journal = checks.Journal(path, bounds)
    return journal, journal.read()


def test_a_gap_and_a_repeat_on_the_axis_of_updates_are_found(checks, bounds, tmp_path):
    path = tmp_path / "metrics.jsonl"
    evaluation = {"update": 1, "eval/accuracy": 0.5}
    whole, found = journal_of(checks, bounds, path, line(1), evaluation, line(2))
    assert found == [] and whole.updates == whole.num_read == 2
    _, found = journal_of(checks, bounds, path, line(1), line(3))
    assert found == ["P5 update 3 follows update 1 in metrics.jsonl"]
    _, found = journal_of(checks, bounds, path, line(1), line(2), line(2))
    assert found == ["P5 update 2 follows update 2 in metrics.jsonl"]


def test_lines_are_read_as_they_come_and_anew_where_a_run_carries_on(checks, bounds, tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal, _ = journal_of(checks, bounds, path, line(1), line(2))
    with path.open("a") as file:
        file.write(json.dumps(line(3))[:20])
        file.flush()
        assert journal.read() == [] and journal.updates == 2
        file.write(json.dumps(line(3))[20:] + "\n")
    assert journal.read() == [] and journal.updates == 3
    anew = tmp_path / "anew"
    anew.write_text("".join(json.dumps(line(update)) + "\n" for update in (1, 2)))
    journal.kept = 1
    os.replace(anew, path)
    assert journal.read() == []
    assert (journal.updates, journal.num_read, journal.beginning) == (2, 4, 2)


def test_an_update_that_is_done_again_otherwise_is_found(checks, bounds, tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal, _ = journal_of(checks, bounds, path, line(1))
    (tmp_path / "anew").write_text(json.dumps(line(1, loss=0.25)) + "\n")
    os.replace(tmp_path / "anew", path)
    assert len(found := journal.read()) == 1
    assert found[0].startswith("P5 update 1 was done again with [0.25")


@pytest.mark.parametrize(
    ("code", "faults", "last", "is_allowed"),
    [
        (-9, {"learner killed"}, "", True),
        (-9, {"learner terminated"}, "", False),
        (75, {"learner terminated", "sampler killed"}, "error: stopped as asked", True),
        (-15, {"learner terminated"}, "", True),
        (130, {"learner interrupted"}, "error: interrupted", True),
        (1, {"sampler killed"}, "error: sampler 0 ended with signal 9: none is left", True),
        (1, {"sampler paused"}, "error: sampler 0 ended with signal 9: none is left", False),
        (1, {"snapshot spoiled"}, "error: /x/v01.safetensors: its checksum", True),
        (1, {"snapshot spoiled"}, "error: sampler 0 ended", False),
        (1, {"disk full"}, "OSError: File too large", False),
        (0, {"sampler killed"}, "", False),
        (2, {"disk full"}, "error: cannot be written", False),
    ],
)
def test_an_end_must_fit_what_was_done_to_the_run(checks, code, faults, last, is_allowed):
    assert (checks.check_end(code, faults, ["before", last]) == []) is is_allowed


def test_snapshots_that_are_torn_or_not_finite_or_too_many_are_found(checks, bounds, tmp_path):
    (tmp_path / "run").mkdir()
    paths = [tmp_path / "run" / f"v{version:08d}.safetensors" for version in range(3)]
    write_params(paths[0], {"a": np.ones(3, np.float32)})
    assert checks.check_snapshots(tmp_path, (), bounds) == []
    write_params(paths[0], {"a": np.array([1.0, np.nan], np.float32)})
    found = checks.check_snapshots(tmp_path, (), bounds)
    assert found == [f"P6 {paths[0]}: is not finite"]
    paths[0].write_bytes(b"torn")
    assert "cannot be read" in checks.check_snapshots(tmp_path, (), bounds)[0]
    assert checks.check_snapshots(tmp_path, {paths[0]}, bounds) == []
    for path in paths:
        write_params(path, {"a": np.ones(3, np.float32)})
    found = checks.check_snapshots(tmp_path, (), bounds)
    assert found == ["P7 there are 3 snapshots, not 2 at most"]


def test_files_beyond_their_bounds_are_found(checks, bounds, tmp_path):
    (tmp_path / "batches").mkdir()
    assert checks.check_files(tmp_path, 2, bounds) == []
    for version in (1, 2):
        (tmp_path / "batches" / f"update_{version}.safetensors").touch()
    assert checks.check_files(tmp_path, 3, bounds) == [
        "P7 there are 3 checkpoints, not 2 at most",
        "P7 there are 2 batches, not 1 at most",
    ]


def test_a_process_is_found_by_its_mark_and_so_is_a_socket_that_listens(checks, load):
    proc = load("proc")
    program = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "TEST_SOAK": "marked"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    [found] = proc.marked("TEST_SOAK=marked")
    assert found.pid == process.pid and proc.is_alive(process.pid)
    assert 2**20 < found.resident_bytes < 2**30 and found.num_descriptors >= 4
    violations = checks.check_processes([found])
    assert len(violations) == 1 and violations[0].endswith(" listens")
    process.communicate("\n")
    assert not proc.marked("TEST_SOAK=marked") and not proc.is_alive(process.pid)
    own = SimpleNamespace(pid=os.getpid(), role="x", resident_bytes=2**32, num_descriptors=999)
    found = checks.check_processes([own])
    assert [words.split("has ")[1] for words in found] == ["4096 MB of memory", "999 descriptors"]


def test_a_slope_is_common_to_series_that_begin_anywhere(checks):
    series = [[(x, 3.0 * x + start) for x in range(5)] for start in (100.0, -7.0)]
    assert checks.slope(series) == pytest.approx(3.0)
    assert checks.slope([[(x, 9.0) for x in range(5)], []]) == 0.0
    assert np.isnan(checks.slope([[(1.0, 2.0)]]))


def test_the_plan_of_a_seed_repeats_and_has_every_kind_in_every_deck(load):
    faults = load("soak_faults")
    size = sum(faults.DECK.values())
    first, again, other = (
        list(itertools.islice(faults.plan(seed), 2 * size)) for seed in (0, 0, 1)
    )
    assert first == again != other
    kinds = [kind for _, kind in first]
    assert kinds[:size] != kinds[size:] and sorted(kinds[:size]) == sorted(kinds[size:])
    assert set(kinds[:size]) == set(faults.DECK) == set(load("soak_checks").ENDS)
    pauses_s = [pause_s for pause_s, _ in itertools.islice(faults.plan(0), 2000)]
    assert np.mean(pauses_s) == pytest.approx(faults.MEAN_PAUSE_S, rel=0.1)


def test_a_hundredth_of_the_micro_batches_have_no_finite_weight_and_always_the_same(load):
    objective = load("soak_parts").objective
    rng = np.random.default_rng(0)

    def is_finite(advantage_B):
        loss, _ = objectives.policy_loss(
            objective,
            jnp.full((8, 2), -1.0),
            jnp.ones((8, 2), bool),
            jnp.asarray(advantage_B, jnp.float32),
            group_size=4,
        )
        return bool(jnp.isfinite(loss))

    drawn = [rng.normal(size=8).astype(np.float32) for _ in range(400)]
    spoiled = [number for number, one in enumerate(drawn) if not is_finite(one)]
    assert 1 <= len(spoiled) <= 12
    assert [number for number in spoiled if is_finite(drawn[number])] == []
    assert is_finite(np.zeros(8))


def test_rewards_fail_by_what_is_graded_alone_and_short_responses_never(load, monkeypatch):
    parts = load("soak_parts")
    calls: list[str] = []
    monkeypatch.setattr(parts.time, "sleep", lambda _: calls.append("hangs"))
    monkeypatch.setattr(parts.os, "kill", lambda *_: calls.append("dies"))

    def graded(index, text):
        try:
            return parts.reward(Prompt(index=index, text=f"{index}=", answer="0"), text)
        except ArithmeticError:
            calls.append("raises")
            return 0.5

    texts = [f"{number:06d}" for number in range(40_000)]
    rewards = [graded(1, text) for text in texts]
    calls += ["nan" for reward in rewards if np.isnan(reward)]
    shares = {name: calls.count(name) / len(texts) for name in ("hangs", "dies", "raises", "nan")}
    assert 2e-5 < shares["hangs"] < 4e-4
    for name in ("dies", "raises", "nan"):
        assert 1e-4 < shares[name] < 1.5e-3, shares
    assert [graded(1, text) for text in texts[:99]] == rewards[:99]
    calls.clear()
    assert all(0 <= graded(index, "123") < 1 for index in range(9999)) and not calls


def test_the_run_and_its_reference_differ_in_nothing_that_changes_what_is_trained(load):
    run = load("soak_run")

    def resolved(fields):
        config = default_config()
        config.update_from_flattened_dict({**run.CONFIG, "num_updates": 9, **fields})
        return resolve(config)

    local, alone = resolved(run.LOCAL), resolved(run.ALONE)
    assert (local.runtime_name, alone.runtime_name) == ("local", "sync")
    for field in ("seed", "pacing", "objective", "step", "reward", "model", "optimizer"):
        assert getattr(local, field) == getattr(alone, field)
    bounds, watched = load("soak_watch").BOUNDS, local.eval
    assert bounds.prompts * run.CONFIG["group_size"] == local.prompts_per_update * bounds.group_size
    assert bounds.lag == local.pacing.max_lag
    assert bounds.checkpoints > local.checkpoint.keep
    assert bounds.snapshots > local.pacing.max_lag + 1 + watched.max_waiting
    assert bounds.batches > local.learner.max_skipped_updates + 1
