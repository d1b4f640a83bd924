"""Whole runs with real processes: reproducibility, the bound on lag, resume, orderly ends."""

import datetime
import json
import shutil
import sys

import pytest
from tiny_runs import TINY, Finished, cut_back, metrics_lines, processes_about, wait_for


@pytest.fixture(scope="module")
def one_sampler(runner, tmp_path_factory) -> Finished:
    """The run that others are compared with: lag 2, ticket order, one sampler."""
    workdir = tmp_path_factory.mktemp("one")
    fields = {"log__rollouts_every_updates": 3, "log__tensorboard": True}
    return runner.finish_afresh(workdir, runner.command(workdir, **fields))


def test_a_run_leaves_the_files_that_the_readme_names(one_sampler, runner):
    assert one_sampler.result["updates"] == TINY["num_updates"]
    assert set(one_sampler.result) >= {"parameters_sha256", "eval/accuracy", "updates", "wall_s"}
    names = {p.name for p in one_sampler.workdir.iterdir() if not p.name.startswith(".")}
    assert names == {
        "config.json", "task.json", "environment.jsonl", "metrics.jsonl", "timeline.jsonl",
        "result.json", "checkpoints", "rollouts", "tensorboard",
    }  # fmt: skip
    assert not list(runner.snapshots.iterdir()), "snapshots are left behind"


def test_update_is_the_axis_of_all_metrics_and_every_ticket_is_accounted_for(one_sampler):
    assert [line["update"] for line in one_sampler.metrics] == list(range(7))
    for line in one_sampler.metrics[1:]:
        assert line["tickets/trained"] == line["update"] * TINY["prompts_per_update"]
        assert line["lag/max"] == line["lag/mean"] == min(2, line["update"] - 1)
        assert line["balance/net"] == pytest.approx(0.0, abs=1e-6)
    names = "reward/mean queue/depth time/update_s throughput/trained_tokens_per_s idle/learner "
    names += "throughput/sampled_tokens_per_s idle/sampler pipeline/ideal_fraction grad/norm "
    names += "policy/entropy nll/positive nll/negative weight/ess group/degenerate_share "
    names += "response/length response/truncated_share tickets/issued tickets/leased "
    names += "tickets/filtered tickets/failed tickets/reissued compile/count compile/seconds"
    assert set(names.split()) <= set(one_sampler.metrics[-1])


def test_a_run_tells_who_was_at_work_when_and_what_it_ran_on(one_sampler):
    def read(name):
        return [json.loads(line) for line in (one_sampler.workdir / name).read_text().splitlines()]

    lines, (attempt,) = read("timeline.jsonl"), read("environment.jsonl")
    assert [line["update"] for line in lines] == list(range(1, 7))
    leases = [lease for line in lines for lease in line["leases"]]
    assert sorted(number for _, number, *_ in leases) == list(range(6))
    begin = datetime.datetime.fromisoformat(attempt["started"]).timestamp()
    for line in lines:
        times = [line["wait"], line["train"], line["publish"], *(one[3:] for one in line["leases"])]
        assert all(begin <= start <= end for start, end in times)
        assert line["wait"][1] <= line["train"][1] == line["publish"][0]
        # Nothing of a version is drawn before the device is done with it.
        finished = {one["update"]: one["publish"][0] for one in lines}
        assert all(end > finished.get(version, 0) for _, _, version, _, end in line["leases"])


def test_a_run_ends_with_a_sentence_on_its_bottleneck_and_the_share_of_the_ideal(one_sampler):
    told = [line for line in one_sampler.stderr.splitlines() if "the bottleneck" in line]
    assert len(told) == 1 and "of the ideal pipeline" in told[0]
    assert 0 < one_sampler.result["pipeline/ideal_fraction"] <= 1


def test_neither_a_queue_of_one_batch_nor_a_second_sampler_changes_a_bit(runner, tmp_path):
    fields = {"sampler__prompts_per_lease": 2}
    narrow = runner.train(tmp_path / "narrow", queue__capacity=4, **fields)
    two = runner.train(tmp_path / "two", sampler__count=2, **fields)
    assert narrow.sha == two.sha
    assert all(line["grad/norm"] > 0 for line in two.metrics[1:])
    assert max(line["queue/depth"] for line in narrow.metrics[1:]) <= 4


def test_rollouts_are_readable_and_say_how_late_they_are(one_sampler):
    path = one_sampler.workdir / "rollouts" / "update_00000006.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 2 * TINY["group_size"]
    for line in lines:
        assert line["prompt"].endswith("=")
        assert 0 <= line["reward"] <= 1
        assert (line["version"], line["lag"]) == (3, 2)
        assert line["stop"] in ("stop_token", "length")
    # The first update's are those of the model before training.
    names = sorted(path.name for path in (one_sampler.workdir / "rollouts").iterdir())
    assert names == [f"update_{update:08d}.jsonl" for update in (1, 3, 6)]


def test_one_process_told_the_config_that_a_run_leaves_ends_with_the_same_bits(
    one_sampler, runner, tmp_path
):
    command = [sys.executable, "-m", "asympo_jax.train", f"--workdir={tmp_path / 'alone'}"]
    command.append(f"--config={one_sampler.workdir / 'config.json'}")
    alone = runner.finish(tmp_path / "alone", [*command, "--config.runtime.name=sync"])
    assert all(line["grad/norm"] > 0 for line in one_sampler.metrics[1:])
    assert alone.sha == one_sampler.sha
    ran, left = (
        json.loads((workdir / "config.json").read_text())
        for workdir in (alone.workdir, one_sampler.workdir)
    )
    left["runtime"]["name"] = "sync"
    assert ran == left


def test_lag_0_ends_with_the_same_bits_as_the_synchronous_loop_and_lag_2_does_not(
    one_sampler, runner, tmp_path
):
    lag_0 = runner.train(tmp_path / "local", lag=0)
    alone = runner.train(tmp_path / "sync", lag=0, runtime__name="sync")
    assert lag_0.sha == alone.sha != one_sampler.sha
    assert {line["lag/max"] for line in lag_0.metrics[1:]} == {0.0}


def test_completion_order_keeps_both_bounds_and_drops_nothing(runner, tmp_path):
    run = runner.train(
        tmp_path / "completion", order="completion", lag=2, num_updates=12, sampler__count=2,
        sampler__prompts_per_lease=2,
    )  # fmt: skip
    lines = run.metrics[1:]
    assert max(line["lag/max"] for line in lines) <= 2
    assert max(line["queue/depth"] for line in lines) <= 2 * TINY["prompts_per_update"]
    assert lines[-1]["tickets/trained"] == lines[-1]["tickets/issued"] == 12 * 4
    assert lines[-1]["tickets/failed"] == lines[-1]["tickets/filtered"] == 0


def test_grpo_gets_behaviour_log_probs_and_asympo_runs_without_any(one_sampler, runner, tmp_path):
    grpo = runner.train(tmp_path / "grpo", objective__name="grpo", num_updates=3)
    ratios = [name for name in grpo.metrics[-1] if name.startswith("ratio/")]
    assert len(ratios) == 7
    # At lag 0 the behaviour policy is the current one, and the ratio is 1 up to rounding.
    assert grpo.metrics[1]["ratio/mean"] == pytest.approx(1.0, abs=1e-4)
    assert not [name for name in one_sampler.metrics[-1] if name.startswith("ratio/")]


def test_a_longer_run_carries_on_from_the_checkpoint_and_ends_with_the_same_bits(
    one_sampler, runner, tmp_path
):
    half = runner.train(tmp_path / "run", num_updates=3, runtime__name="sync")
    whole = runner.train(tmp_path / "run", num_updates=6, runtime__name="sync")
    assert half.result and whole.sha == one_sampler.sha
    assert [line["update"] for line in whole.metrics] == list(range(7))
    assert whole.metrics[-1]["tickets/trained"] == 6 * TINY["prompts_per_update"]


def test_a_killed_run_in_completion_order_kept_others_out_and_trains_each_ticket_once(
    runner, tmp_path
):
    fields = {"order": "completion", "num_updates": 100_000, "checkpoint__every_updates": 4}
    process = runner.start(tmp_path / "run", **fields)
    try:
        wait_for(lambda: len(metrics_lines(tmp_path / "run")) > 6, process)
        second = runner.train(tmp_path / "run", **fields)
    finally:
        process.kill()
        process.communicate()
    assert second.code == 75
    assert f"is in use by the run with process id {process.pid}" in second.error
    assert not (tmp_path / "run" / "result.json").exists()
    num_updates = len(metrics_lines(tmp_path / "run")) + 8
    resumed = runner.train(tmp_path / "run", **{**fields, "num_updates": num_updates})
    assert [line["update"] for line in resumed.metrics] == list(range(num_updates + 1))
    last, num_tickets = resumed.metrics[-1], num_updates * TINY["prompts_per_update"]
    assert last["tickets/trained"] == last["tickets/issued"] == num_tickets
    assert max(line["lag/max"] for line in resumed.metrics[1:]) <= TINY["lag"]
    assert not processes_about(tmp_path)
    assert not list(runner.snapshots.iterdir()), "the killed run's snapshots are left"


def test_a_run_that_was_stopped_before_its_result_was_written_writes_it_when_called_again(
    one_sampler, runner, tmp_path
):
    shutil.copytree(one_sampler.workdir, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    again = runner.train(tmp_path / "run")
    assert again.sha == one_sampler.sha
    assert [line["update"] for line in again.metrics] == list(range(7))


def test_a_complete_run_is_not_run_again(one_sampler, runner):
    again = runner.train(one_sampler.workdir, log__rollouts_every_updates=3, log__tensorboard=True)
    assert "already complete" in again.stderr
    assert again.result == one_sampler.result


def test_another_config_on_the_same_workdir_is_refused_by_name(one_sampler, runner):
    other = runner.train(one_sampler.workdir, objective__name="spo")
    assert other.code == 2
    assert "objective.name='spo'" in other.error and "'asympo'" in other.error


def test_evaluate_prints_greedy_and_sampled_accuracy_of_the_last_checkpoint(one_sampler, runner):
    command = [sys.executable, "-m", "asympo_jax.evaluate", f"--workdir={one_sampler.workdir}"]
    done = runner.finish(one_sampler.workdir, [*command, "--num_prompts=6", "--samples=2"])
    assert done.code == 0, done.stderr
    assert "greedy" in done.stdout and "avg@2" in done.stdout and "6 updates" in done.stdout
    found = json.loads((one_sampler.workdir / "evaluation.json").read_text())
    assert found["num_prompts"] == 6
    for name in ("evaluation.json", "evaluation.jsonl"):
        (one_sampler.workdir / name).unlink()


def test_a_warm_up_is_kept_for_the_next_run_and_made_again_when_it_would_differ(runner, tmp_path):
    fields: dict[str, object] = {"warmup__num_steps": 8, "warmup__batch_size": 8}
    fields |= {"num_updates": 1, "runtime__name": "sync"}
    first = runner.train(tmp_path / "a", **fields)
    second = runner.train(tmp_path / "b", objective__name="spo", **fields)
    third = runner.train(tmp_path / "c", **{**fields, "warmup__num_steps": 16})
    assert "warm-up    8/8" in first.stderr
    assert "kept from before" in second.stderr and "8/8" not in second.stderr
    assert "warm-up   16/16" in third.stderr
    assert len(list((tmp_path / "warmup").iterdir())) == 2


def test_an_objective_and_a_reward_of_a_users_own_are_found_by_import_path(runner, tmp_path):
    fields = {
        "objective__name": "tasks_for_tests:scaled",
        "reward__function": "tasks_for_tests:share_of_nines",
        "runtime__name": "sync",
    }
    run = runner.train(tmp_path / "run", objective__factor=3.0, num_updates=2, **fields)
    assert run.metrics[-1]["weight/mean"] == 3, "1 unless the option arrives"
    assert 0 < run.metrics[1]["reward/mean"] < 0.3


def test_dynamic_sampling_filters_what_it_does_not_train_and_goes_on_after_a_stop(runner, tmp_path):
    fields = {
        "candidates_per_update": 6,
        "task__name": "tasks_for_tests:Rarely",
        "objective__name": "decoupled_ppo",
        "log__gradients_every_updates": 2,
        "checkpoint__every_updates": 3,
        "runtime__name": "sync",
    }
    whole = runner.train(tmp_path / "whole", **fields)
    cut_back(whole, tmp_path / "run", update=3)
    run = runner.train(tmp_path / "run", **fields)
    told = "carries on from the checkpoint of update 3\ntraining begins; "
    assert told in run.stderr
    last = run.metrics[-1]
    assert (last["tickets/trained"], last["tickets/filtered"]) == (24, 12)
    assert last["tickets/issued"] == 36
    assert [line["update"] for line in run.metrics if "grad/cosine" in line] == [2, 4, 6]
    assert run.sha == whole.sha


def test_samplers_refreshed_periodically_have_the_lag_that_the_histogram_says(runner, tmp_path):
    run = runner.train(tmp_path / "run", lag=0, refresh_every_updates=3)
    lags = [line["lag/histogram"] for line in run.metrics[1:]]
    assert lags == [{str(update % 3): 4} for update in range(6)]


def test_a_run_can_be_made_longer_and_not_shorter(one_sampler, runner):
    shorter = runner.train(one_sampler.workdir, num_updates=3)
    assert shorter.code == 2
    assert "num_updates=3" in shorter.error and "6 updates" in shorter.error


def test_the_checkpoint_of_another_config_is_never_carried_on(one_sampler, runner, tmp_path):
    shutil.copytree(one_sampler.workdir, tmp_path / "run")
    for name in ("metrics.jsonl", "result.json"):
        (tmp_path / "run" / name).unlink()
    other = runner.train(tmp_path / "run", objective__name="spo")
    assert other.code == 2
    assert "objective.name='spo'" in other.error


def test_a_damaged_checkpoint_is_named_in_one_sentence(one_sampler, runner, tmp_path):
    shutil.copytree(one_sampler.workdir, tmp_path / "run")
    for damaged in ("run/metadata", "state/_METADATA"):
        (tmp_path / "run" / "checkpoints" / "6" / damaged).write_text("garbage")
    run = runner.train(tmp_path / "run", num_updates=7)
    assert run.code == 1
    assert "checkpoints/6: this checkpoint cannot be read" in run.error
    command = [sys.executable, "-m", "asympo_jax.evaluate", f"--workdir={tmp_path / 'run'}"]
    evaluated = runner.finish(tmp_path / "run", command)
    assert evaluated.code == 2
    assert "checkpoints/6: this checkpoint cannot be read" in evaluated.error
