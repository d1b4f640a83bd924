"""What a run writes and shows: metrics lines, the pipeline's shares, progress, rewards."""

import dataclasses
import io
import json
import math
import sys

import numpy as np
import pytest

from asympo_jax.progress import Count, Progress, say
from asympo_jax.runtime import placement
from asympo_jax.runtime.leases import SamplingTotals
from asympo_jax.runtime.metrics import MetricsWriter, read_metrics
from asympo_jax.runtime.pipeline import PipelineMeter, PipelineShares
from asympo_jax.runtime.publisher import Published, Update
from asympo_jax.runtime.rewards import Grader
from asympo_jax.tasks import RewardError, make_task, reward_of
from asympo_jax.types import Group, Prompt


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_metrics_after_the_resumed_update_are_dropped_and_written_once_again(tmp_path):
    writer = MetricsWriter(tmp_path, resumed_at=0, tensorboard=False)
    for update in range(4):
        writer.write(update, {"loss": update})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "lo')  # cut short by a crash
    writer = MetricsWriter(tmp_path, resumed_at=2, tensorboard=False)
    writer.write(3, {"loss": 30.0})
    writer.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["update"], line["loss"]) for line in lines] == [(0, 0), (1, 1), (2, 2), (3, 30)]


def test_a_run_that_starts_again_from_nothing_keeps_no_line_of_the_attempt_before(tmp_path):
    for loss in (1.0, 2.0):
        writer = MetricsWriter(tmp_path, resumed_at=0, tensorboard=False)
        writer.write(0, {"loss": loss})
        writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"update": 0, "loss": 2.0}]


def test_a_value_that_is_not_finite_becomes_null_and_the_line_stays_json(tmp_path):
    writer = MetricsWriter(tmp_path, resumed_at=0, tensorboard=False)
    writer.write(1, {"a": math.nan, "b": math.inf, "c": 1.5})
    writer.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"update": 1, "a": None, "b": None, "c": 1.5}


def group() -> Group:
    zeros = np.zeros((2, 5), np.int32)
    return Group(0, 0, zeros[0], zeros, np.full(2, 5, np.int32), np.zeros(2), np.zeros(2))


def published(version, finished, wait_s, train_s, busy_s) -> Published:
    """An update on one group of two candidates, of which samplers handed in a pair each time."""
    update = Update(version, None, {}, [group()], 2, {}, asked=0.0, taken=0.0)
    reads = 2 * (version // 2)
    sampled = SamplingTotals(2 * version, 20 * version, busy_s, reads, 0.25 * reads)
    return Published(update, {}, sampled, finished, wait_s, train_s, publish_s=0.25)


def test_a_learner_that_never_waits_is_at_its_ideal_and_the_idle_shares_say_who_waits():
    meter = PipelineMeter(num_samplers=1, clock=Clock())
    for update in range(1, 4):
        meter.add(published(update, 2.0 * update, 0.0, 2.0, 0.5 * update))
    metrics = meter.metrics()
    assert metrics["time/publish_s"] == 0.25
    assert metrics["snapshot/read_s"] == pytest.approx(0.25)
    assert metrics["pipeline/ideal_fraction"] == pytest.approx(1.0)
    assert metrics["idle/learner"] == 0.0
    assert metrics["idle/sampler"] == pytest.approx(0.75)
    assert metrics["time/update_s"] == pytest.approx(2.0)
    assert metrics["throughput/trained_tokens_per_s"] == pytest.approx(5.0)


def test_two_samplers_that_are_busy_all_the_time_share_the_ideal_between_them():
    meter = PipelineMeter(num_samplers=2, clock=Clock())
    for update in range(1, 4):
        meter.add(published(update, 2.0 * update, 1.5, 0.5, 4.0 * update))
    metrics = meter.metrics()
    assert metrics["idle/learner"] == pytest.approx(0.75)
    assert metrics["idle/sampler"] == pytest.approx(0.0)
    assert metrics["time/sample_s"] == pytest.approx(2.0)
    assert metrics["pipeline/ideal_fraction"] == pytest.approx(1.0)


def test_the_first_update_in_which_programs_are_compiled_counts_until_there_is_another():
    meter = PipelineMeter(num_samplers=1, clock=Clock())
    assert meter.whole() is None
    meter.add(published(1, 100.0, 80.0, 20.0, 80.0))
    assert meter.metrics()["time/update_s"] == 100.0
    assert meter.whole() is None
    for update in range(2, 60):
        meter.add(published(update, 98.0 + 2.0 * update, 1.0, 0.5, 79.5 + 0.5 * update))
        assert meter.metrics()["time/update_s"] == 2.0
    shares = meter.whole()
    assert shares is not None
    assert (shares.update_s, shares.wait_s, shares.train_s) == (2.0, 1.0, 0.5)
    assert shares.ideal_fraction == meter.metrics()["pipeline/ideal_fraction"] == 0.25


def test_a_run_that_ends_while_its_pipeline_fills_has_no_bottleneck():
    meter = PipelineMeter(num_samplers=1, num_filling=3, clock=Clock())
    for update in range(1, 4):
        meter.add(published(update, 2.0 * update, 1.5, 0.5, 4.0 * update))
    assert meter.whole() is None
    meter.add(published(4, 8.0, 1.5, 0.5, 16.0))
    assert meter.whole() is not None


@pytest.mark.parametrize(
    ("train_s", "sample_s", "words"),
    [
        (0.5, 1.9, ["the samplers were", "0.95 of the ideal"]),
        (1.0, 0.5, ["the learner was", "0.5"]),
    ],
)
def test_one_sentence_names_what_a_run_waited_for(train_s, sample_s, words):
    shares = PipelineShares(2.0, 2.0 - train_s, train_s, 0.1, sample_s, 1.0 - sample_s / 2.0)
    assert all(word in shares.bottleneck() for word in [*words, "in the mean an update took 2 s"])
    assert f"the learner waited {1 - train_s / 2:.0%}" in shares.bottleneck()


def test_progress_says_what_a_person_waits_for(capsys):
    clock = Clock()
    progress = Progress(num_updates=10, clock=clock)
    progress.evaluated(0, {"eval/accuracy": 0.25, "eval/accuracy_greedy": 0.5})
    metrics = {"reward/mean": 0.5, "lag/mean": 3.0, "idle/learner": 0.02, "idle/sampler": 0.4}
    metrics["update/skipped"] = 0.0
    for update in range(1, 11):
        clock.now += 10.0
        progress.update(update, metrics)
    lines = capsys.readouterr().err.splitlines()
    assert "0.250" in lines[0]
    assert lines[5].split(" · ") == [
        "update    5/10", "reward 0.50", "accuracy 0.25", "lag 3",
        "learner waits 2%, samplers wait 40%", "50 s left",
    ]  # fmt: skip
    assert lines[-1].endswith("done")


def test_progress_prints_a_line_every_few_seconds_only(capsys):
    clock = Clock()
    progress = Progress(num_updates=1000, clock=clock)
    metrics = {"reward/mean": 0.5, "lag/mean": 3.0, "idle/learner": 0.0, "idle/sampler": 0.0}
    metrics["update/skipped"] = 0.0
    for update in range(1, 101):
        clock.now += 0.1
        progress.update(update, metrics)
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_a_count_says_what_is_left_every_few_seconds_and_how_long_it_took(capsys):
    clock = Clock()
    count = Count("sampled", 298, clock=clock)
    for done in range(1, 299):
        clock.now += 0.5
        count.show(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sampled    6/298 prompts · 2 min 26 s left"
    assert lines[-2:] == ["sampled  294/298 prompts · 2 s left", "sampled  298/298 prompts · 149 s"]
    assert len(lines) == 50


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e39, None, "1", [1.0]])
def test_a_reward_that_is_no_finite_number_is_an_error_and_not_a_zero(value):
    task = make_task("arithmetic")
    task.reward = lambda prompt, text: value  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RewardError, match="prompt 4"):
        reward_of(task.reward, Prompt(4, "1+1=", "2"), "#2")


def test_a_reward_that_ends_the_process_is_an_error_too():
    def reward(prompt, text):
        raise SystemExit(0)

    with pytest.raises(RewardError, match=r"prompt 4.*SystemExit"):
        reward_of(reward, Prompt(4, "1+1=", "2"), "#2")


def test_a_penalty_rises_over_the_last_tokens_before_the_longest_response():
    grader = Grader(lambda prompt, text: 1.0, 20, overlong_buffer=4, overlong_penalty=0.5)
    lengths = np.array([1, 16, 17, 18, 20])
    rewards, failures = grader.grade(Prompt(0, "1+1=", "2"), ["#2"] * 5, lengths)
    np.testing.assert_allclose(rewards, [1.0, 1.0, 0.875, 0.75, 0.5])
    assert failures is None
    plain = dataclasses.replace(grader, overlong_buffer=0)
    assert (plain.grade(Prompt(0, "1+1=", "2"), ["#2"] * 5, lengths)[0] == 1.0).all()


def test_progress_goes_on_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    say("nobody hears this")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    sys.stderr.close()
    say("nor this")


@pytest.mark.parametrize(
    ("cores", "learner", "samplers"),
    [([0, 1], [0], [1]), ([4], [4], [4]), ([0, 1, 2], [0], [1]), ([0, 1, 2, 3], [0, 1], [2, 3])],
)
def test_learner_and_samplers_have_as_many_cores_each_and_share_none_but_the_only_one(
    cores, learner, samplers
):
    assert placement.split_cores(cores) == (learner, samplers)


def test_samplers_with_cores_of_their_own_take_them_in_turn():
    shared = [4, 5, 6, 7]
    assert [placement.sampler_cores(shared, i, 2) for i in range(3)] == [[4, 5], [6, 7], [4, 5]]
    assert placement.sampler_cores(shared, 1, 0) == shared
