"""Sweeps: what runs, what is not repeated, what is kept, what is refused."""

import fcntl
import json
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest
import tiny_sweep
from tiny_runs import TIMEOUT_S, Finished, Runner

from asympo_jax import interrupts, laboratory, sweep_config

TESTS = pathlib.Path(__file__).parent
NAMES = [f"lag=1,objective.name={name},seed=3" for name in ("asympo", "spo")]


@pytest.fixture(scope="module")
def sweeper(programs, tmp_path_factory) -> Runner:
    return Runner(programs, tmp_path_factory.mktemp("sweeps"))


@pytest.fixture(scope="module")
def swept(sweeper, tmp_path_factory) -> Finished:
    return sweep(sweeper, tmp_path_factory.mktemp("swept"))


def command(workdir: pathlib.Path, *flags: str) -> list[str]:
    config = f"--config={TESTS / 'tiny_sweep.py'}"
    return [sys.executable, "-m", "asympo_jax.sweep", config, f"--workdir={workdir}", *flags]


def sweep(sweeper: Runner, workdir: pathlib.Path, *flags: str) -> Finished:
    return sweeper.finish(workdir, command(workdir, *flags))


def results(workdir: pathlib.Path, name: str) -> dict:
    return json.loads((workdir / "results" / f"{name}.json").read_text())


def shas(workdir: pathlib.Path) -> dict[str, str]:
    found = {
        path.parent.name: json.loads(path.read_text()) for path in workdir.glob("*/result.json")
    }
    return {name: result["parameters_sha256"] for name, result in found.items()}


def test_every_combination_is_run_and_its_compact_result_kept(swept):
    assert swept.code == 0, swept.stderr
    assert sorted(shas(swept.workdir)) == NAMES
    assert len(set(shas(swept.workdir).values())) == 2
    (run,) = results(swept.workdir, "spo")["runs"]
    assert run["values"] == {"lag": 1, "objective.name": "spo", "seed": 3}
    assert (swept.workdir / run["run"] / "result.json").exists()
    assert run["parameters_sha256"] == shas(swept.workdir)[NAMES[1]]
    assert run["update"] == [0, 2] and len(run["eval/accuracy"]) == 2
    assert run["reward/mean"][0] is None and run["reward/mean"][1] > 0
    assert run["failure"] is None
    about = results(swept.workdir, "laboratory")
    assert about["axes"]["objective"]["name"] == ["asympo", "spo"]
    assert "--workdir=DIR" in about["command"] and str(swept.workdir) not in about["command"]
    assert "jax" in about["versions"] and about["machine"]["cores"] >= 1


def test_settings_are_of_their_objective_alone(swept):
    rates = {
        name: {run["learning_rate"] for run in results(swept.workdir, name)["runs"]}
        for name in ("asympo", "spo")
    }
    assert rates == {"asympo": {3e-4}, "spo": {1e-3}}


def test_a_run_of_a_sweep_is_the_run_that_train_makes(swept, sweeper, tmp_path):
    config = swept.workdir / "jobs" / f"{NAMES[0]}.json"
    flags = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    alone = sweeper.finish(tmp_path / "run", [sys.executable, "-m", "asympo_jax.train", *flags])
    assert alone.sha == shas(swept.workdir)[NAMES[0]]


def test_a_sweep_that_is_done_repeats_nothing(swept, sweeper):
    files = list(swept.workdir.glob("*/metrics.jsonl"))
    before = [path.stat().st_mtime_ns for path in files]
    path = swept.workdir / "results" / "laboratory.json"
    made = results(swept.workdir, "laboratory") | {"machine": "where the runs were made"}
    path.write_text(json.dumps(made))
    again = sweep(sweeper, swept.workdir)
    assert results(swept.workdir, "laboratory") == made
    assert again.code == 0 and "2 runs: 2 done before, 0 to do" in again.stderr
    assert [path.stat().st_mtime_ns for path in files] == before


def test_an_interrupted_sweep_goes_on_with_what_is_missing(swept, sweeper, tmp_path):
    with subprocess.Popen(
        command(tmp_path, "--processes=1"),
        stderr=subprocess.PIPE,
        text=True,
        env=sweeper.environment,
    ) as process:
        assert process.stderr is not None
        lines = []
        while not any(line.startswith("[1/2]") for line in lines):
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130
    done = shas(tmp_path)
    assert len(done) == 1
    assert len(results(tmp_path, "asympo")["runs"]) >= 1
    again = sweep(sweeper, tmp_path)
    assert again.code == 0
    assert "2 runs: 1 done before, 1 to do" in again.stderr
    assert shas(tmp_path) == shas(swept.workdir)


class Hangs:
    """A run that is interrupted while the sweep waits for it, and does not end when it is told."""

    def __init__(self, command, **given):
        self.calls = []
        RUNS.append(self)

    def wait(self, timeout=None):
        if timeout is None:
            raise KeyboardInterrupt
        self.calls.append(timeout)
        raise subprocess.TimeoutExpired("train", timeout)

    def terminate(self):
        self.calls.append("terminate")

    def kill(self):
        self.calls.append("kill")


RUNS: list[Hangs] = []


def test_a_run_of_a_sweep_has_the_time_to_save_that_its_config_gives_it(monkeypatch, tmp_path):
    sweep: Any = tiny_sweep.get_config()
    sweep.base.checkpoint.grace_s = 100.0
    cases = sweep_config.cases(sweep)
    lab = laboratory.Laboratory(cases, tmp_path, 1, {}, print, ended=lambda: None)
    assert lab.end_s == 100.0 + interrupts.END_S
    monkeypatch.setattr(subprocess, "Popen", Hangs)
    with pytest.raises(KeyboardInterrupt):
        lab.run()
    (run,) = RUNS
    first, given_s, last = run.calls
    assert (first, last) == ("terminate", "kill")
    assert 100.0 < given_s <= lab.end_s


def test_a_run_that_fails_is_kept_with_its_cause(sweeper, tmp_path):
    flags = ["--config.axes.lag=0", "--config.axes.objective.name=('asympo',)"]
    flags += ["--config.base.num_updates=1"]
    flags += ["--config.base.optimizer.learning_rate=1e300"]
    flags += ["--config.base.learner.max_skipped_updates=0"]
    broken = sweep(sweeper, tmp_path, *flags)
    assert broken.code == 1
    assert "1 of 1 runs failed" in broken.error
    (run,) = results(tmp_path, "asympo")["runs"]
    assert "must be finite" in run["failure"] and run["diverged"]
    assert run["update"] == [0] and len(run["eval/accuracy"]) == 1


def copy_of(swept: Finished, directory: pathlib.Path) -> pathlib.Path:
    shutil.copytree(swept.workdir, directory)
    return directory


def test_the_result_of_a_run_counts_and_not_an_earlier_failure(swept, sweeper, tmp_path):
    workdir = copy_of(swept, tmp_path / "sweep")
    failure = workdir / "jobs" / f"{NAMES[0]}.failure"
    failure.write_text('{"cause": "is in use", "diverged": false}')
    assert sweep(sweeper, workdir).code == 0
    assert results(workdir, "asympo")["runs"][0]["failure"] is None


def test_a_run_that_was_refused_leaves_no_result(sweeper, swept, tmp_path):
    workdir = copy_of(swept, tmp_path / "sweep")
    run = workdir / NAMES[0]
    (run / "result.json").unlink()
    with (run / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = sweep(sweeper, workdir)
    assert refused.code == 1
    assert f"1 of 2 runs failed: {NAMES[0]}" in refused.error and "is in use" in refused.stderr
    assert not list((workdir / "jobs").glob("*.failure"))
    assert results(workdir, "asympo")["runs"] == []
    assert sweep(sweeper, workdir).code == 0
    assert shas(workdir) == shas(swept.workdir)


def test_runs_that_are_being_made_longer_have_no_result_yet(swept, sweeper, tmp_path):
    workdir = copy_of(swept, tmp_path / "sweep")
    flags = ["--config.base.num_updates=3", "--config.axes.objective.name=('asympo',)"]
    with (workdir / NAMES[0] / ".lock").open("a") as held:  # so that it cannot go on
        fcntl.flock(held, fcntl.LOCK_EX)
        assert sweep(sweeper, workdir, *flags).code == 1
    assert results(workdir, "asympo")["runs"] == []


def test_results_are_evaluated_alike(swept, sweeper):
    other = sweep(sweeper, swept.workdir, "--config.base.eval.num_prompts=9")
    assert other.code == 2
    assert "eval.num_prompts=9" in other.error and "was evaluated with 8" in other.error


def test_all_runs_have_as_many_cores(swept, sweeper, tmp_path):
    workdir = copy_of(swept, tmp_path / "sweep")
    (workdir / NAMES[0] / "result.json").unlink()
    cores = workdir / "jobs" / "learner_cores"
    cores.write_text(f"{int(cores.read_text()) + 1}\n")
    refused = sweep(sweeper, workdir)
    assert refused.code == 2 and "--processes=" in refused.error and "cores" in refused.error


def test_what_breaks_the_sweep_itself_is_told_and_is_no_success(swept, sweeper, tmp_path):
    workdir = copy_of(swept, tmp_path / "sweep")
    (workdir / NAMES[0] / "result.json").unlink()
    (workdir / "jobs" / f"{NAMES[0]}.log").unlink()
    (workdir / "jobs" / f"{NAMES[0]}.log").mkdir()
    broken = sweep(sweeper, workdir)
    assert broken.code == 1
    assert broken.error.startswith("error: ") and f"{NAMES[0]}.log" in broken.error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.axes.lag=(0, -1)"], ["run lag=-1", "lag=-1: must not be negative"]),
        (["--config.axes.seed=()"], ["axes.seed=()", "at least one value"]),
        (["--config.axes.seed=(3, 3)"], ["axes.seed=(3, 3)", "must differ"]),
        (
            ["--config.axes.objective.name=('spo',)", "--config.base.optimizer.learning_rate=1e-3"],
            ["base.optimizer.learning_rate=0.001", "would change nothing"],
        ),
        ([f"--config.axes.objective.name=('{'x' * 200}',)"], ["more than 200 bytes"]),
        (["--config.base.lga=3"], ["no field 'lga'"]),
        (["--processes=0"], ["processes"]),
    ],
)
def test_wrong_sweeps_are_refused_before_any_run(sweeper, tmp_path, flags, words):
    refused = sweep(sweeper, tmp_path / "new", *flags)
    assert refused.code == 2
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    assert all(word in refused.stderr for word in words), refused.stderr
    assert not (tmp_path / "new").exists()


def test_the_config_of_a_single_run_is_no_sweep(sweeper, tmp_path):
    arguments = [f"--config={TESTS.parent / 'configs' / 'arithmetic.py'}", f"--workdir={tmp_path}"]
    refused = sweeper.finish(tmp_path, [sys.executable, "-m", "asympo_jax.sweep", *arguments])
    assert refused.code == 2 and "base, axes, settings" in refused.error
