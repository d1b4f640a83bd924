"""Graders that hang, ignore signals, start processes, die or talk nonsense harm nobody."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from asympo_jax.runtime import reward_pool, reward_process
from asympo_jax.runtime.reward_pool import Graded, RewardPool, RewardSource
from asympo_jax.tasks import RewardError
from asympo_jax.types import GradingFailure, Prompt

PROMPT = Prompt(0, "1+1=", "2")
OBEYS = RewardSource("graders_for_tests:Obeys", {})
TIMEOUT = Graded(0.0, GradingFailure.TIMEOUT)
DEATH = Graded(0.0, GradingFailure.DEATH)


@pytest.fixture(scope="module")
def shared():
    with_one = RewardPool(OBEYS, num_processes=1, deadline_s=3.0)
    yield with_one
    with_one.close()


def grade(pool, *texts, call="reward"):
    return pool.grade(call, [(PROMPT, text) for text in texts])


def wait_until_gone(pid: int) -> None:
    """Returns once the process is dead; a zombie counts as dead."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} lives")


def test_answers_come_in_the_order_of_the_responses():
    pool = RewardPool(OBEYS, num_processes=2, deadline_s=30)
    values = [float(i) for i in range(20)]
    assert grade(pool, *map(str, values)) == [Graded(value) for value in values]
    assert grade(pool, "1", "3", call="correct") == [Graded(0.0), Graded(1.0)]
    assert pool.counts == {GradingFailure.NONE: 22}
    pool.close()


def test_no_responses_start_nothing():
    pool = RewardPool(OBEYS, num_processes=2, deadline_s=30)
    assert grade(pool) == []
    assert [worker._process for worker in pool._workers] == [None, None]


@pytest.mark.parametrize("text", ["hang", "spin", "deaf"])
def test_what_outlasts_the_deadline_is_a_timeout_and_the_next_are_right(shared, text):
    before = shared.counts[GradingFailure.TIMEOUT]
    assert grade(shared, "2", text, "3", "4") == [Graded(2.0), TIMEOUT, Graded(3.0), Graded(4.0)]
    assert shared.counts[GradingFailure.TIMEOUT] == before + 1


def test_a_timeout_the_grader_tells_of_is_counted_and_its_process_lives(shared):
    first = grade(shared, "count")[0].value
    assert grade(shared, "late", "count") == [TIMEOUT, Graded(first + 2)]


def test_an_answer_that_is_no_line_of_the_protocol_is_a_death_and_not_awaited():
    answers = ['{"value": NaN}\n', '{"value": "1"}\n', "[" * 60_000 + "\n", "x" * 70_000]
    answers += ['{"value": 1.0}\n{"value": 2.0}\n']
    pool = RewardPool(OBEYS, num_processes=1, deadline_s=600)
    assert grade(pool, *(f"says {answer}" for answer in answers)) == [DEATH] * len(answers)
    pool.close()


def test_a_grader_never_starts_the_accelerator_of_its_sampler(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    pool = RewardPool(OBEYS, num_processes=1, deadline_s=30)
    assert grade(pool, "platform cpu") == [Graded(1.0)]
    pool.close()


@pytest.mark.parametrize("text", ["die", "exit", "memory", "allocate"])
def test_a_grader_that_dies_is_a_death_and_the_next_are_right(shared, text):
    before = shared.counts[GradingFailure.DEATH]
    assert grade(shared, text, "3") == [DEATH, Graded(3.0)]
    assert shared.counts[GradingFailure.DEATH] == before + 1


@pytest.mark.parametrize("word", ["fork", "daemon"])
def test_children_of_a_hung_grader_are_killed_with_it(shared, tmp_path, word):
    note = tmp_path / "pid"
    assert grade(shared, f"{word} {note}", "3") == [TIMEOUT, Graded(3.0)]
    wait_until_gone(int(note.read_text()))


def test_children_of_a_dead_grader_are_killed_and_do_not_hide_its_death(tmp_path):
    note = tmp_path / "pid"
    pool = RewardPool(OBEYS, num_processes=1, deadline_s=600)
    assert grade(pool, f"child_then_die {note}", "3") == [DEATH, Graded(3.0)]
    wait_until_gone(int(note.read_text()))
    pool.close()


def test_children_that_a_grader_forgets_are_killed_with_the_pool(tmp_path):
    note = tmp_path / "pid"
    pool = RewardPool(OBEYS, num_processes=1, deadline_s=600)
    assert grade(pool, f"forget {note}", "3") == [Graded(0.75), Graded(3.0)]
    os.kill(int(note.read_text()), 0)
    pool.close()
    wait_until_gone(int(note.read_text()))


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_grader_that_stops_or_kills_its_guard_is_killed_all_the_same(monkeypatch, number):
    monkeypatch.setattr(reward_process, "_END_S", 0.1)
    pool = RewardPool(OBEYS, num_processes=1, deadline_s=1.5)
    assert grade(pool, "2", f"unguarded {int(number)}", "3") == [Graded(2.0), TIMEOUT, Graded(3.0)]
    pool.close()


@pytest.mark.parametrize("text", ["chatter", "closes 0", "closes 1"])
def test_what_a_grader_does_to_its_standard_pipes_is_no_matter(shared, text):
    assert grade(shared, text, "3") == [Graded(0.25), Graded(3.0)]


def test_a_grader_that_closes_every_pipe_is_a_death(shared):
    assert grade(shared, "closes all", "3") == [DEATH, Graded(3.0)]


def test_a_grader_that_copies_its_process_answers_once(shared):
    assert grade(shared, "copy", "3", "4") == [Graded(0.5), Graded(3.0), Graded(4.0)]


def test_any_text_arrives_whole(shared):
    texts = ["length " + "\u00e9\n\x00\ud83d" * 10, "length " + "x" * 10_000_000]
    assert [graded.value for graded in grade(shared, *texts)] == [47.0, 10_000_007.0]


@pytest.mark.parametrize(
    ("text", "words"), [("raise", "RuntimeError: the grader fell over"), ("nan", "returned nan")]
)
def test_a_reward_that_raises_or_is_no_number_is_an_error_and_its_process_lives(
    shared, text, words
):
    before = grade(shared, "count")[0].value
    failed, after = grade(shared, text, "count")
    assert (failed.value, failed.failure) == (0.0, GradingFailure.ERROR)
    assert words in failed.words
    assert after == Graded(before + 2)


def test_a_call_that_is_cut_short_leaves_no_late_answers_for_the_next(monkeypatch):
    pool = RewardPool(OBEYS, num_processes=2, deadline_s=30)
    assert grade(pool, "1", "2") == [Graded(1.0), Graded(2.0)]

    def interrupt(workers):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reward_pool, "_active", interrupt)
        grade(pool, "7", "8")
    assert grade(pool, "1") == [Graded(1.0)]
    pool.close()


def starts_after(home: pathlib.Path, num_failed: int) -> RewardPool:
    home.mkdir()
    options = {"home": str(home), "num_failed": num_failed}
    return RewardPool(RewardSource("graders_for_tests:StartsAfter", options), 1, 30)


def test_a_process_whose_start_failed_twice_is_started_again_for_the_same_response(tmp_path):
    pool = starts_after(tmp_path / "home", 2)
    assert grade(pool, "5", "3") == [Graded(5.0), Graded(3.0)]
    pool.close()


def test_a_task_that_cannot_be_made_is_an_error_and_no_grade(tmp_path):
    pool = starts_after(tmp_path / "home", 9)
    with pytest.raises(RewardError, match=r"ended before it was ready.*, 3 times in a row"):
        grade(pool, "1")
    assert pool._workers[0]._process is None
    assert len(list((tmp_path / "home").iterdir())) == 3


@pytest.mark.parametrize("num_failed", [2, 3])
def test_a_process_that_the_system_refuses_is_tried_three_times(monkeypatch, num_failed):
    pool, start, failed = RewardPool(OBEYS, 1, 30), subprocess.Popen, []

    def fail(*given, **more):
        if len(failed) < num_failed:
            failed.append(given)
            raise OSError("no memory for a process")
        return start(*given, **more)

    monkeypatch.setattr(subprocess, "Popen", fail)
    if num_failed == 2:
        assert grade(pool, "5") == [Graded(5.0)]
    else:
        with pytest.raises(RewardError, match=r"could not be started \(no memory"):
            grade(pool, "5")
    pool.close()


def test_a_closed_pool_has_no_processes_and_can_grade_again():
    pool = RewardPool(OBEYS, num_processes=1, deadline_s=30)
    assert grade(pool, "1") == [Graded(1.0)]
    process = pool._workers[0]._process
    assert process is not None
    pool.close()
    assert process.returncode == 0, "its guard has ended all and then itself"
    assert grade(pool, "1") == [Graded(1.0)]
    process = pool._workers[0]._process
    del pool
    gc.collect()
    assert process is not None and process.returncode == 0, "a pool that nobody has is closed"


@pytest.mark.parametrize("ends", ["killed", "returns"])
def test_nothing_is_left_behind_by_a_program_that_ends_without_closing(tmp_path, ends):
    note = tmp_path / "pid"
    program = (
        "from asympo_jax.runtime.reward_pool import *\n"
        "from asympo_jax.types import Prompt\n"
        "import pathlib\n"
        "pool = RewardPool(RewardSource('graders_for_tests:Obeys', {}), 1, 600.0)\n"
        f"pool.grade('reward', [(Prompt(0, '', ''), {'pid ' + str(note)!r})])\n"
    )
    if ends == "returns":
        program = program.replace(f"{'pid ' + str(note)!r}", "'1'") + (
            f"pathlib.Path({str(note)!r}).write_text(str(pool._workers[0]._process.pid))\n"
        )
    started = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    deadline = time.monotonic() + 120
    while not (note.is_file() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if ends == "killed":
        started.kill()
    started.wait(60)
    wait_until_gone(int(note.read_text()))


def test_a_run_in_which_most_gradings_fail_is_stopped_with_an_example():
    pool = RewardPool(OBEYS, num_processes=1, deadline_s=30)
    assert grade(pool, *["late"] * 15) == [TIMEOUT] * 15
    assert grade(pool, *["1"] * 16) == [Graded(1.0)] * 16
    assert grade(pool, "late") == [TIMEOUT], "half of them is not most of them"
    with pytest.raises(RewardError, match=r"17 of 33 gradings failed: 17 took longer .* 'late'"):
        grade(pool, "late")
    pool.close()


def test_sixteen_failures_are_enough_to_stop_and_the_words_of_an_error_are_told():
    pool = RewardPool(OBEYS, num_processes=1, deadline_s=30)
    assert {one.failure for one in grade(pool, *["raise"] * 15)} == {GradingFailure.ERROR}
    expected = r"16 of 16 gradings failed: .* 16 raised .* RuntimeError: the grader fell over"
    with pytest.raises(RewardError, match=expected):
        grade(pool, "raise")
    pool.close()
