"""Graders that hang, ignore signals, start processes, die or talk nonsense harm nobody."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from asympo_jax.runtime.reward_pool import Graded, RewardPool, RewardSource
from asympo_jax.tasks import RewardError
from asympo_jax.types import GradingFailure, Prompt

PROMPT = Prompt(0, "1+1=", "2")
OBEYS = RewardSource("graders_for_tests:Obeys", {})
TIMEOUT = Graded(0.0, GradingFailure.TIMEOUT)
DEATH = Graded(0.0, GradingFailure.DEATH)


@pytest.fixture(scope="module")
def shared():
    with_one = RewardPool(OBEYS, num_processes=1, deadline_s=1.5)
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


@pytest.mark.parametrize("text", ["die", "exit", "memory"])
def test_a_grader_that_dies_is_a_death_and_the_next_are_right(shared, text):
    before = shared.counts[GradingFailure.DEATH]
    assert grade(shared, text, "3") == [DEATH, Graded(3.0)]
    assert shared.counts[GradingFailure.DEATH] == before + 1


def test_children_of_a_hung_grader_are_killed_with_it(shared, tmp_path):
    note = tmp_path / "pid"
    assert grade(shared, f"fork {note}", "3") == [TIMEOUT, Graded(3.0)]
    wait_until_gone(int(note.read_text()))


def test_children_of_a_dead_grader_that_hold_its_pipe_are_killed(tmp_path):
    note = tmp_path / "pid"
    pool = RewardPool(OBEYS, num_processes=1, deadline_s=60)
    start = time.monotonic()
    assert grade(pool, f"child_then_die {note}", "3") == [DEATH, Graded(3.0)]
    assert time.monotonic() - start < 60, "its death was noticed only at the deadline"
    wait_until_gone(int(note.read_text()))
    pool.close()


def test_a_grader_that_copies_its_process_answers_once(shared):
    assert grade(shared, "copy", "3", "4") == [Graded(0.5), Graded(3.0), Graded(4.0)]


def test_what_a_grader_prints_is_no_answer(shared):
    assert grade(shared, "chatter", "3") == [Graded(0.25), Graded(3.0)]


def test_any_text_arrives_whole(shared):
    texts = ["length " + "\u00e9\n\x00\ud83d" * 10, "length " + "x" * 10_000_000]
    assert [graded.value for graded in grade(shared, *texts)] == [47.0, 10_000_007.0]


def test_a_reward_that_raises_is_an_error_and_leaves_no_late_answers():
    pool = RewardPool(OBEYS, num_processes=2, deadline_s=30)
    with pytest.raises(RewardError, match="RuntimeError: the grader fell over"):
        grade(pool, "7", "raise", "8", "9")
    assert grade(pool, "1", "2", "3") == [Graded(1.0), Graded(2.0), Graded(3.0)]
    pool.close()


def test_a_task_that_cannot_be_made_is_an_error_and_no_grade():
    pool = RewardPool(RewardSource("graders_for_tests:CannotStart", {}), 1, 30)
    with pytest.raises(RewardError, match="ended before it was ready"):
        grade(pool, "1")
    assert pool._workers[0]._process is None


def test_a_closed_pool_has_no_processes_and_can_grade_again():
    pool = RewardPool(OBEYS, num_processes=1, deadline_s=30)
    assert grade(pool, "1") == [Graded(1.0)]
    process = pool._workers[0]._process
    assert process is not None
    pool.close()
    assert process.returncode == -signal.SIGKILL
    assert grade(pool, "1") == [Graded(1.0)]
    pool.close()


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
    with pytest.raises(RewardError, match=r"17 of 33 gradings failed: 17 took longer .* 'late'"):
        grade(pool, "late", "late")
    pool.close()
