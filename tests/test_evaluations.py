"""Evaluation during training: in a process of its own, of published snapshots, never in the way."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from tiny_runs import TIMEOUT_S

from asympo_jax.runtime.evaluations import Evaluation, EvaluationLog, EvaluatorEnded
from asympo_jax.runtime.evaluator import EvaluatorProcess
from asympo_jax.runtime.metrics import MetricsWriter, read_metrics

PATIENCE_S = 120.0


class Waiting:
    """Evaluations that come in when a test says so."""

    def __init__(self):
        self.requested: list[tuple[int, bool]] = []
        self.coming: list[Evaluation] = []

    def request(self, version, params, greedily):
        self.requested.append((version, greedily))

    def finished(self, timeout_s=0.0):
        coming, self.coming = self.coming, []
        done = {one.version for one in coming}
        self.requested = [one for one in self.requested if one[0] not in done]
        return coming

    def outstanding(self):
        return [version for version, _ in self.requested]


@pytest.fixture
def writer(tmp_path):
    writer = MetricsWriter(tmp_path, 0, tensorboard=False)
    yield writer
    writer.close()


def make_log(evaluations, writer, max_waiting=2, deadline_s=60.0, say=pytest.fail) -> EvaluationLog:
    return EvaluationLog(evaluations, writer, lambda *_: None, say, max_waiting, deadline_s)


def test_an_evaluation_that_comes_in_late_belongs_to_its_update(writer, tmp_path):
    evaluations = Waiting()
    log = make_log(evaluations, writer)
    for version in (1, 2, 3):
        writer.write(version, {"reward/mean": float(version)})
        if version == 1:
            assert log.request(1, None)
        assert not log.collect()
    evaluations.coming = [Evaluation(1, {"eval/accuracy": 0.5})]
    assert log.collect()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"update": 1, "reward/mean": 1.0, "eval/accuracy": 0.5},
        {"update": 2, "reward/mean": 2.0},
        {"update": 3, "reward/mean": 3.0},
    ]


def test_no_more_snapshots_are_kept_than_allowed(writer):
    evaluations = Waiting()
    log = make_log(evaluations, writer, max_waiting=2)
    assert [log.request(version, None) for version in (0, 10, 20)] == [True, True, False]
    assert evaluations.requested == [(0, True), (10, False)]
    evaluations.coming = [Evaluation(0, {"eval/accuracy": 0.5})]
    log.collect()
    assert log.request(30, None)


def test_the_last_evaluation_waits_for_all_and_gives_up_in_the_end(writer):
    evaluations = Waiting()
    log = make_log(evaluations, writer)
    log.request(1, None)
    evaluations.coming = [Evaluation(1, {"eval/accuracy": 0.25})]
    checks = []

    def answer_the_second_time():
        checks.append(True)
        evaluations.coming = [Evaluation(2, {"eval/accuracy": 0.75})]

    found = log.last(2, None, answer_the_second_time)
    assert (found, len(checks)) == ({"eval/accuracy": 0.75}, 1)
    with pytest.raises(EvaluatorEnded, match=r"eval\.deadline_s=1e-06"):
        make_log(evaluations, writer, deadline_s=1e-6).last(3, None, lambda: None)


FIELDS = {
    "eval__process": True,
    "eval__every_updates": 1,
    "checkpoint__every_updates": 3,
    "eval__max_waiting": 9,
}


@pytest.fixture(scope="module")
def separate(runner, tmp_path_factory):
    """A run that is evaluated in a process of its own, after every update."""
    return runner.train(tmp_path_factory.mktemp("runs") / "separate", **FIELDS)


def accuracies(metrics) -> dict[int, float]:
    return {line["update"]: line["eval/accuracy"] for line in metrics if "eval/accuracy" in line}


def test_the_process_finds_what_the_learner_would_have_found(separate, runner, tmp_path):
    here = runner.train(tmp_path / "here", **{**FIELDS, "eval__process": False})
    assert separate.sha == here.sha
    assert set(accuracies(separate.metrics)) == set(range(7))
    assert accuracies(separate.metrics) == accuracies(here.metrics)
    assert all("time/evaluation_s" in line for line in separate.metrics)
    for name in ("eval/accuracy", "eval/accuracy_greedy"):
        assert separate.result[name] == here.result[name]
        assert separate.metrics[-1][name] == separate.result[name]
    assert not list(runner.snapshots.iterdir()), "snapshots are left behind"


def test_a_resumed_run_makes_up_for_evaluations_that_were_lost(separate, runner):
    path = separate.workdir / "metrics.jsonl"
    before = accuracies(separate.metrics)
    kept = [
        line
        for line in path.read_text().splitlines()
        if not ("eval/accuracy" in line and json.loads(line)["update"] in (5, 6))
    ]
    path.write_text("\n".join(kept) + "\n")
    again = runner.train(separate.workdir, num_updates=7, **FIELDS)
    assert again.code == 0, again.stderr
    after = accuracies(again.metrics)
    assert {update: after[update] for update in range(7)} == before


def test_the_learner_does_not_wait_and_the_snapshots_do(runner, tmp_path, monkeypatch):
    monkeypatch.setitem(runner.environment, "GO_FILE", str(tmp_path / "go"))
    fields = {**FIELDS, "eval__max_waiting": 2, "task__name": "tasks_for_tests:HeldUp"}
    run = runner.start(tmp_path / "run", **fields)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("update    6/6"):
            break
    (tmp_path / "go").touch()
    stderr = run.communicate(timeout=TIMEOUT_S)[1]
    assert run.returncode == 0, stderr
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert set(accuracies(lines)) == {0, 1, 6}
    assert [line.get("eval/left_out") for line in lines] == [None, 0, 1, 1, 1, 1, None]


def evaluator_of(pid: int) -> int | None:
    """Process id of the evaluator that a learner started; None while there is none."""
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(re.sub(r".*\) ", "", path.read_text()).split()[1])
            words = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "asympo_jax.evaluate_snapshots" in words:
            return int(path.parent.name)
    return None


def test_a_killed_evaluator_is_started_anew_and_nothing_is_lost(separate, runner, tmp_path):
    fields = {**FIELDS, "task__name": "tasks_for_tests:HeldUp"}
    runner.environment["GO_FILE"] = str(tmp_path / "go")
    run = runner.start(tmp_path / "run", **fields)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("update    6/6"):
            break
    evaluator = evaluator_of(run.pid)
    assert evaluator is not None
    os.kill(evaluator, signal.SIGKILL)
    (tmp_path / "go").touch()
    stderr = run.communicate(timeout=TIMEOUT_S)[1]
    assert run.returncode == 0, stderr
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    wanted = accuracies(separate.metrics)
    assert accuracies(lines) == {update: wanted[update] for update in range(7)}


STAND_IN = """
import os, signal, sys
import msgpack
from multiprocessing.connection import Connection
given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
pipe = Connection(int(given["fd"]))
attempt = len(os.listdir(given["home"]))
open(f"{given['home']}/{attempt}", "w").close()

def send(version, metrics):
    message = {"type": "evaluated", "version": version, "metrics": metrics}
    pipe.send_bytes(msgpack.packb(message))

def answer():
    send(msgpack.unpackb(pipe.recv_bytes())["version"], {"eval/accuracy": 0.5})

def die():
    pipe.recv_bytes()
    os.kill(os.getpid(), signal.SIGKILL)

does = given["does"].split(";")
exec(does[min(attempt, len(does) - 1)])
"""


@pytest.fixture
def make_evaluator(tmp_path):
    """Evaluators that do something at each attempt, the last of it again and again."""
    made = []

    def make(*does: str, deadline_s: float = 1e6) -> EvaluatorProcess:
        home = tmp_path / f"attempts-{len(made)}"
        home.mkdir()
        command = [sys.executable, "-c", STAND_IN, f"--home={home}", f"--does={';'.join(does)}"]
        environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        made.append(EvaluatorProcess(command, environment, deadline_s))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def wait_for(evaluations: EvaluatorProcess) -> list[Evaluation]:
    """Asks until something comes in, or raises."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := evaluations.finished(0.1):
            return found
    raise AssertionError("nothing came in")


def test_an_evaluator_that_dies_now_and_then_is_started_anew_as_often(make_evaluator):
    evaluator = make_evaluator(*["die()", "answer()"] * 5)
    for version in range(5):
        evaluator.request(version, None, False)
        assert wait_for(evaluator) == [Evaluation(version, {"eval/accuracy": 0.5})]


def test_an_evaluator_that_dies_again_and_again_is_left_out_until_the_next_request(
    make_evaluator, writer, tmp_path
):
    evaluator, said = make_evaluator(*["die()"] * 4, "answer()"), []
    log = make_log(evaluator, writer, say=said.append)
    assert log.request(1, None) and log.request(2, None)
    while not said:
        assert not log.collect()
    assert said == [
        "the evaluator ended with signal 9; what it printed above may say why; "
        "evaluations left out: 1, 2"
    ]
    assert not evaluator.outstanding() and not log.collect()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines == [{"update": 1, "eval/left_out": 1.0}, {"update": 2, "eval/left_out": 1.0}]
    assert log.last(3, None, lambda: None) == {"eval/accuracy": 0.5}


def test_an_evaluator_that_dies_again_and_again_in_the_last_evaluation_ends_the_run(
    make_evaluator, writer
):
    with pytest.raises(EvaluatorEnded, match="the evaluator ended with signal 9"):
        make_log(make_evaluator("die()"), writer).last(3, None, lambda: None)


def test_an_evaluator_that_hangs_is_killed_at_the_deadline_and_asked_again(make_evaluator):
    evaluator = make_evaluator("signal.pause()", "answer()", deadline_s=3.0)
    evaluator.request(7, None, True)
    (found,) = wait_for(evaluator)
    assert found.version == 7


def test_an_evaluator_that_sends_too_many_bytes_is_started_anew(make_evaluator):
    evaluator = make_evaluator("send(7, {'x' * 70_000: 0.5})", "answer()")
    evaluator.request(7, None, True)
    assert wait_for(evaluator) == [Evaluation(7, {"eval/accuracy": 0.5})]


@pytest.mark.parametrize("version", ["8", "[7]", "'7'"])
def test_an_evaluator_that_answers_what_nobody_asked_ends_the_run(make_evaluator, version):
    evaluator = make_evaluator(f"send({version}, {{'eval/accuracy': 0.5}})")
    evaluator.request(7, None, True)
    with pytest.raises(EvaluatorEnded, match="sent no evaluation that was asked for"):
        wait_for(evaluator)


def test_an_evaluator_that_cannot_be_started_is_tried_again(make_evaluator, monkeypatch):
    evaluator, start, failed = make_evaluator("die()", "answer()"), subprocess.Popen, []

    def fail_twice(*given, **more):
        if len(failed) < 2:
            failed.append(given)
            raise OSError("no memory for a process")
        return start(*given, **more)

    monkeypatch.setattr(subprocess, "Popen", fail_twice)
    evaluator.request(7, None, True)
    assert wait_for(evaluator) == [Evaluation(7, {"eval/accuracy": 0.5})]
    assert len(failed) == 2
