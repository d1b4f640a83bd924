"""Whole runs with real processes: reproducibility, the bound on lag, resume, orderly ends."""

import datetime
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tiny_runs import TIMEOUT_S, TINY, Finished, processes_about


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


def test_a_queue_of_one_batch_holds_any_lag_and_changes_no_bit(one_sampler, runner, tmp_path):
    run = runner.train(tmp_path / "run", queue__capacity=4, sampler__prompts_per_lease=2)
    wide = runner.train(tmp_path / "wide", sampler__prompts_per_lease=2)
    assert run.sha == wide.sha
    assert max(line["queue/depth"] for line in run.metrics[1:]) <= 4


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


def test_one_sampler_two_samplers_and_one_process_end_with_the_same_bits(
    one_sampler, runner, tmp_path
):
    two = runner.train(tmp_path / "two", sampler__count=2)
    alone = runner.train(tmp_path / "alone", runtime__name="sync")
    assert two.sha == one_sampler.sha
    assert all(line["grad/norm"] > 0 for line in one_sampler.metrics[1:])
    assert alone.sha == one_sampler.sha


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
    half = runner.train(tmp_path / "run", num_updates=3)
    whole = runner.train(tmp_path / "run", num_updates=6)
    assert half.result and whole.sha == one_sampler.sha
    assert [line["update"] for line in whole.metrics] == list(range(7))
    assert whole.metrics[-1]["tickets/trained"] == 6 * TINY["prompts_per_update"]


@pytest.mark.parametrize("order", ["ticket", "completion"])
def test_a_killed_run_carries_on_with_tickets_live_and_trains_each_once(runner, tmp_path, order):
    fields = {"order": order, "num_updates": 40, "checkpoint__every_updates": 4}
    process = runner.start(tmp_path / "run", **fields)
    wait_for(lambda: len(metrics_lines(tmp_path / "run")) > 14, process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = runner.train(tmp_path / "run", **fields)
    assert [line["update"] for line in resumed.metrics] == list(range(41))
    last = resumed.metrics[-1]
    assert last["tickets/trained"] == last["tickets/issued"] == 40 * TINY["prompts_per_update"]
    assert max(line["lag/max"] for line in resumed.metrics[1:]) <= TINY["lag"]
    assert not processes_about(tmp_path)
    assert not list(runner.snapshots.iterdir()), "the killed run's snapshots are left"
    if order == "ticket":
        assert resumed.sha == runner.train(tmp_path / "whole", **fields).sha


def test_a_second_run_on_a_workdir_in_use_is_refused_by_the_process_that_has_it(runner, tmp_path):
    process = runner.start(tmp_path / "run", num_updates=100_000)
    try:
        wait_for(lambda: len(metrics_lines(tmp_path / "run")) > 1, process)
        second = runner.train(tmp_path / "run", num_updates=100_000)
        assert second.code == 75
        assert f"is in use by the run with process id {process.pid}" in second.error
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_S)


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


def test_the_config_that_a_run_leaves_starts_the_same_run(one_sampler, runner, tmp_path):
    command = [sys.executable, "-m", "asympo_jax.train", f"--workdir={tmp_path / 'again'}"]
    command.append(f"--config={one_sampler.workdir / 'config.json'}")
    again = runner.finish(tmp_path / "again", command)
    assert again.sha == one_sampler.sha


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


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("RaisesInSampler", ["sampler 0", "prompt", "RuntimeError", "the grader fell over"]),
        ("RaisesInEvaluation", ["prompt 0", "RuntimeError", "the grader fell over"]),
        ("NanInSampler", ["sampler 0", "nan", "finite"]),
        ("ExitsInSampler", ["sampler 0", "SystemExit"]),
        ("KillsSampler", ["sampler 0", "signal 9"]),
    ],
)
def test_the_first_failure_ends_the_run_with_its_cause_and_nothing_is_left(
    runner, tmp_path, task, words
):
    run = runner.train(tmp_path / "run", task__name=f"tasks_for_tests:{task}")
    assert run.code == 1
    assert run.error.startswith("error: ")
    assert all(word in run.error for word in words), run.error
    assert not (run.workdir / "result.json").exists()
    assert not list(runner.snapshots.iterdir())
    assert not processes_about(tmp_path)


def test_an_objective_and_a_reward_of_a_users_own_are_found_by_import_path(runner, tmp_path):
    fields = {
        "objective__name": "tasks_for_tests:scaled",
        "reward__function": "tasks_for_tests:share_of_nines",
        "runtime__name": "sync",
    }
    one = runner.train(tmp_path / "one", **fields)
    three = runner.train(tmp_path / "three", objective__factor=3.0, **fields)
    assert one.metrics[-1]["weight/mean"] == 1 and three.metrics[-1]["weight/mean"] == 3
    assert 0 < one.metrics[1]["reward/mean"] < 0.3
    assert one.sha != three.sha


def test_dynamic_sampling_filters_what_it_does_not_train_and_goes_on_after_a_stop(runner, tmp_path):
    fields = {
        "candidates_per_update": 6,
        "task__name": "tasks_for_tests:Rarely",
        "objective__name": "decoupled_ppo",
        "log__gradients_every_updates": 2,
        "runtime__name": "sync",
    }
    runner.train(tmp_path / "run", num_updates=3, **fields)
    run = runner.train(tmp_path / "run", **fields)
    last = run.metrics[-1]
    assert (last["tickets/trained"], last["tickets/filtered"]) == (24, 12)
    assert last["tickets/issued"] == 36
    assert [line["update"] for line in run.metrics if "grad/cosine" in line] == [2, 4, 6]
    assert run.sha == runner.train(tmp_path / "whole", **fields).sha


def test_samplers_refreshed_periodically_have_the_lag_that_the_histogram_says(runner, tmp_path):
    run = runner.train(tmp_path / "run", lag=0, refresh_every_updates=3)
    lags = [line["lag/histogram"] for line in run.metrics[1:]]
    assert lags == [{str(update % 3): 4} for update in range(6)]


@pytest.mark.parametrize("fields", [{"num_updates": 1}, {"lag": 0}, {"runtime__name": "sync"}])
def test_parameters_that_are_not_finite_are_never_published_and_end_the_run(
    runner, tmp_path, fields
):
    """Also where the learner waits for samplers, and they for the version that never comes."""
    fields = {**fields, "learner__max_skipped_updates": 0}
    run = runner.train(tmp_path / "run", optimizer__learning_rate=1e300, **fields)
    assert run.code == 3
    assert re.search(r"update 0: .* update/norm (nan|inf), .* must be finite", run.error), run.error
    assert not (tmp_path / "run" / "result.json").exists()


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


def test_a_closed_terminal_does_not_end_a_run(runner, tmp_path):
    command = runner.command(tmp_path / "run", num_updates=2, runtime__name="sync")
    done = runner.finish_afresh(
        tmp_path / "run", ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    )
    assert done.code == 0
    assert done.result["updates"] == 2


def test_samplers_on_a_platform_that_is_not_there_say_so(runner, tmp_path):
    run = runner.train(tmp_path / "run", sampler__platform="tpu")
    assert run.code == 1
    assert run.error.startswith(
        "error: sampler 0: sampler.platform='tpu': jax finds no such device"
    )
    assert "Traceback" not in run.stderr


def test_an_evaluator_on_a_platform_that_is_not_there_says_so(runner, tmp_path):
    run = runner.train(tmp_path / "run", eval__platform="tpu", eval__process=True)
    assert run.code == 1
    assert run.error.startswith(
        "error: the evaluator: eval.platform='tpu': jax finds no such device here"
    )


def test_a_platform_that_is_not_there_is_told_in_a_sentence(runner, tmp_path):
    run = runner.train(tmp_path / "run", learner__platform="tpu")
    assert run.code == 1
    assert run.error.startswith("error: learner.platform='tpu': jax finds no such device here")
    assert not metrics_lines(tmp_path / "run"), "nothing binds this workdir to its config"


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 75, "stopped as asked after update"),
        (signal.SIGHUP, 75, "stopped as asked after update"),
    ],
)
def test_a_signal_ends_the_run_and_leaves_nothing_behind(runner, tmp_path, number, code, word):
    process = runner.start(tmp_path / "run", num_updates=100_000, eval__process=True)
    wait_for(lambda: len(metrics_lines(tmp_path / "run")) > 3, process)
    assert len(processes_about(tmp_path)) == 3, "learner, sampler, evaluator"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, stderr
    assert stderr.strip().splitlines()[-1].startswith(f"error: {word}")
    assert not processes_about(tmp_path)
    assert not list(runner.snapshots.iterdir())


def test_a_signal_that_a_destructor_swallows_ends_the_run_all_the_same(runner, tmp_path):
    fields = {"task__name": "tasks_for_tests:SwallowsSignal", "runtime__name": "sync"}
    run = runner.train(tmp_path / "run", num_updates=50, **fields)
    assert "Exception ignored" in run.stderr
    assert run.code == 143
    assert "not in time" not in run.stderr, "by itself, and not by the thread that watches"
    assert len(metrics_lines(run.workdir)) <= 1, "of the evaluation before training"


def test_a_local_run_has_no_listening_socket(runner, tmp_path):
    process = runner.start(tmp_path / "run", num_updates=100_000, eval__process=True)
    try:
        wait_for(lambda: len(metrics_lines(tmp_path / "run")) > 3, process)
        inodes = {name for pid in processes_about(tmp_path) for name in sockets_of(pid)}
        assert inodes, "the pipe between learner and sampler is a pair of sockets"
        assert not inodes & listening_sockets()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)


def metrics_lines(workdir: pathlib.Path) -> list[str]:
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, process: subprocess.Popen) -> None:
    """Waits for a state of a running command; fails when the command ends before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)


def sockets_of(pid: int) -> set[str]:
    """Inodes of a process's sockets."""
    links = []
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except OSError:
            continue
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def listening_sockets() -> set[str]:
    """Inodes of all sockets that listen: TCP in state 0A, UDP at all, Unix with the accept flag."""
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" or table.startswith("udp"):
                found.add(fields[9])
    for line in pathlib.Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & 0x10000:
            found.add(fields[6])
    return found
