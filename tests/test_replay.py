"""Recorded runs trained again, by the command: with the same objective, and with another."""

import dataclasses
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from tiny_runs import TINY, Finished, Runner

from asympo_jax import replaying
from asympo_jax.runtime.batches import (
    RecordedBatch,
    batch_path,
    read_batch,
    recorded_versions,
    write_batch,
)

# The objective is NaN for batches of so many tokens as it is told, here none.
FIELDS = {"objective__name": "tasks_for_tests:nan_at", "log__record_batches": 100}
FIELDS |= {"sampler__record_behaviour_logp": True}


@pytest.fixture(scope="module")
def recorded(runner, tmp_path_factory) -> Finished:
    """A run that was resumed after three of its six updates."""
    workdir = tmp_path_factory.mktemp("runs") / "recorded"
    runner.train(workdir, num_updates=3, runtime__name="sync", **FIELDS)
    return runner.train(workdir, **FIELDS)


def replay(runner: Runner, workdir: pathlib.Path, *flags: str) -> Finished:
    command = [sys.executable, "-m", "asympo_jax.replay", f"--workdir={workdir}", *flags]
    return runner.finish(workdir, command)


def num_tokens_of(run: Finished) -> dict[int, int]:
    """Response tokens of each update."""
    num_responses = TINY["prompts_per_update"] * TINY["group_size"]
    lines = [line for line in run.metrics if "loss" in line]
    return {line["update"]: round(line["response/length"] * num_responses) for line in lines}


@pytest.mark.parametrize(("flags", "first"), [([], 0), (["--from=3", "--to=6"], 3)])
def test_a_replay_ends_with_the_same_bits_as_the_run(runner, recorded, flags, first):
    done = replay(runner, recorded.workdir, *flags)
    assert done.code == 0, done.stderr
    assert done.stdout.count("as recorded") == 6 - first
    assert f"parameters_sha256 {recorded.sha}" in done.stdout
    assert "its parameters_sha256 is the same" in done.stdout


def test_another_objective_is_shown_beside_the_one_that_was_recorded(runner, recorded):
    flags = ("--config.objective.name=spo", "--config.objective.alpha=0.1", "--to=4")
    done = replay(runner, recorded.workdir, *flags)
    assert done.code == 0, done.stderr
    assert done.stdout.count(", recorded ") == done.stdout.count(", replayed ") == 4
    assert recorded.sha not in done.stdout
    lines = (recorded.workdir / "replay" / "spo" / "metrics.jsonl").read_text().splitlines()
    found, known = [json.loads(line) for line in lines], recorded.metrics[1:5]
    assert [line["update"] for line in found] == [1, 2, 3, 4]
    # The same policy on the same batch, and from then on another.
    assert found[0]["policy/entropy"] == known[0]["policy/entropy"]
    assert found[0]["grad/norm"] != known[0]["grad/norm"]
    assert found[3]["policy/entropy"] != known[3]["policy/entropy"]


def test_a_batch_that_is_not_as_it_was_is_told_with_code_1(runner, recorded, tmp_path):
    shutil.copytree(recorded.workdir, tmp_path / "run")
    path = batch_path(tmp_path / "run", 2)
    batch = read_batch(path)
    batch.groups[0].reward_G[0] += np.float32(0.5)
    write_batch(path, RecordedBatch(2, batch.groups))
    done = replay(runner, tmp_path / "run", "--to=3")
    assert done.code == 1
    assert done.error.startswith("error: update 2: is not as it was recorded")
    assert done.stdout.count("as recorded") == 1


def test_an_objective_that_needs_more_starts_from_what_the_checkpoint_has(runner, recorded):
    flags = ("--config.objective.name=decoupled_ppo", "--config.objective.kl_coefficient=0.1")
    done = replay(runner, recorded.workdir, *flags, "--from=3", "--to=5")
    assert done.code == 0, done.stderr
    path = recorded.workdir / "replay" / "decoupled_ppo" / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["update"] for line in found] == [4, 5]
    assert min(line["reference/kl_k3"] for line in found) > 0, "from the initial parameters"


def test_an_objective_that_needs_what_was_not_recorded_is_refused(recorded, tmp_path):
    shutil.copytree(recorded.workdir, tmp_path / "run")
    path = batch_path(tmp_path / "run", 5)
    groups = [dataclasses.replace(x, behaviour_logp_GT=None) for x in read_batch(path).groups]
    write_batch(path, RecordedBatch(5, groups))
    request = replaying.Request(tmp_path / "run", 3, fields={"objective.name": "grpo"})
    with pytest.raises(ValueError, match=r"'grpo': needs behaviour log-probs, .*record_behaviour"):
        replaying.prepare(request)


def test_a_run_skips_an_update_goes_on_and_is_replayed_with_the_same_bits(
    runner, recorded, tmp_path
):
    size = num_tokens_of(recorded)[3]
    flags = {"objective__fewest": size - 0.5, "objective__most": size + 0.5}
    run = runner.train(tmp_path / "run", **FIELDS, **flags, runtime__name="sync")
    found = num_tokens_of(run)
    lines = {line["update"]: line for line in run.metrics if "loss" in line}
    assert list(lines) == [1, 2, 3, 4, 5, 6]
    for version, line in lines.items():
        assert line["update/skipped"] == (found[version] == size)
        assert (line["loss"] is None) == (found[version] == size)
        assert line["tickets/trained"] == version * TINY["prompts_per_update"]
    assert lines[3]["update/skipped"] == 1 and lines[3]["params/norm"] == lines[2]["params/norm"]
    assert "update 2 is skipped" in run.stderr
    assert run.sha != recorded.sha
    done = replay(runner, run.workdir)
    assert done.code == 0, done.stderr
    assert "as recorded (skipped)" in done.stdout and run.sha in done.stdout


def test_a_run_whose_updates_are_all_skipped_ends_with_code_3_and_its_batches(runner, tmp_path):
    fields = {"objective__name": FIELDS["objective__name"], "objective__most": 1e6}
    fields |= {"learner__max_skipped_updates": 1, "runtime__name": "sync"}
    run = runner.train(tmp_path / "run", **fields)
    assert run.code == 3
    assert run.error.startswith("error: update 1: loss nan")
    path = batch_path(run.workdir, 2)
    assert str(path) in run.error and recorded_versions(run.workdir) == [1, 2]
    assert not (run.workdir / "result.json").exists()
    assert not list((run.workdir / "checkpoints").glob("[0-9]*"))
    done = replay(runner, run.workdir, f"--batch={path}")
    assert done.code == 0, done.stderr
    assert "(skipped)" in done.stdout and "after 0 updates" in done.stdout


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"first": 2}, "--from=2: workdir={workdir} has no checkpoint .* one of \\[0, 3, 6\\]"),
        ({"first": 4, "last": 3}, "--from=4: must be less than --to=3"),
        ({"last": 9}, "the batch of update 7 is not recorded, those of 1-6 are"),
        ({"first": 6}, "the batch of update 7 is not recorded"),
        ({"batch": "{workdir}/config.json"}, "config.json: cannot be read"),
        ({"batch": "{workdir}/config.json", "last": 3}, "--to=3: with --batch there is one update"),
        ({"fields": {"lag": 3}}, "--config.lag: a replay may change fields of objective and"),
        (
            {"fields": {"objective.name": "spo", "objective.floor": 1.0}},
            "objective.floor is not an",
        ),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_one_sentence(recorded, fields, words):
    workdir = recorded.workdir
    if "batch" in fields:
        fields = {**fields, "batch": pathlib.Path(fields["batch"].format(workdir=workdir))}
    with pytest.raises(ValueError, match=words.format(workdir=workdir)):
        replaying.prepare(replaying.Request(workdir, **fields))


def test_a_gap_and_no_batches_at_all_are_named(recorded, tmp_path):
    shutil.copytree(recorded.workdir, tmp_path / "run")
    batch_path(tmp_path / "run", 2).unlink()
    with pytest.raises(ValueError, match=r"update 2 is not recorded, those of 1, 3-6 are"):
        replaying.prepare(replaying.Request(tmp_path / "run"))
    assert replaying.prepare(replaying.Request(tmp_path / "run", first=3)).first == 3
    shutil.rmtree(tmp_path / "run" / "batches")
    with pytest.raises(ValueError, match=r"no recorded batches; --config.log.record_batches=N"):
        replaying.prepare(replaying.Request(tmp_path / "run"))
