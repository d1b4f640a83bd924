"""Whole runs that fail, are stopped, or have no device: how they end, and what they leave."""

import os
import pathlib
import re
import signal

import pytest
from tiny_runs import TIMEOUT_S, metrics_lines, processes_about, wait_for


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
    assert "Traceback" not in run.stderr, "nothing of the program is at fault"
    assert all(word in run.error for word in words), run.error
    assert not (run.workdir / "result.json").exists()
    assert not list(runner.snapshots.iterdir())
    assert not processes_about(tmp_path)


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


def test_a_closed_terminal_does_not_end_a_run(runner, tmp_path):
    command = runner.command(tmp_path / "run", num_updates=2, runtime__name="sync")
    done = runner.finish_afresh(
        tmp_path / "run", ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    )
    assert done.code == 0
    assert done.result["updates"] == 2


def test_samplers_on_a_platform_that_is_not_there_say_so(runner, tmp_path):
    run = runner.train(tmp_path / "run", learner__platform="cpu", sampler__platform="tpu")
    assert run.code == 1
    assert run.error.startswith(
        "error: sampler 0: sampler.platform='tpu': jax finds no such device"
    )
    assert "Traceback" not in run.stderr


def test_an_evaluator_on_a_platform_that_is_not_there_says_so(runner, tmp_path):
    fields = {"learner__platform": "cpu", "eval__platform": "tpu", "eval__process": True}
    run = runner.train(tmp_path / "run", **fields)
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
    ],
)
def test_a_run_listens_on_no_socket_and_a_signal_ends_it_and_leaves_nothing_behind(
    runner, tmp_path, number, code, word
):
    process = runner.start(tmp_path / "run", num_updates=100_000, eval__process=True)
    wait_for(lambda: len(metrics_lines(tmp_path / "run")) > 3, process)
    processes = processes_about(tmp_path)
    inodes = {name for pid in processes for name in sockets_of(pid)}
    listening = inodes & listening_sockets()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert len(processes) == 3, "learner, sampler, evaluator"
    assert inodes, "the pipe between learner and sampler is a pair of sockets"
    assert not listening
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
