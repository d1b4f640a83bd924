"""Runs that are killed, interrupted or asked to stop at any moment, and what carries on from them.

ASYMPO_TEST_MOMENTS is the number of random moments, of which the suite has few.
"""

import os
import pathlib
import random
import signal
from typing import Any

import pytest
from moments import Moment, run
from tiny_runs import TINY, Finished, processes_about, wait_until

NUM_RANDOM = int(os.environ.get("ASYMPO_TEST_MOMENTS", "2"))
FIELDS: Any = {
    "num_updates": 16,
    "checkpoint__every_updates": 3,
    "log__rollouts_every_updates": 1,
    "log__rollouts_groups": 4,
}
KILL, TERM, INT = (signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGINT,)
NAMED = [
    (Moment("update", 2, KILL), -signal.SIGKILL),
    (Moment("before", 1, KILL), -signal.SIGKILL),
    (Moment("after", 1, KILL), -signal.SIGKILL),
    (Moment("during", 3, KILL), -signal.SIGKILL),
    (Moment("update", 1, TERM), 75),
    (Moment("during", 1, TERM + TERM), 143),
]


def random_moments(seed: int, signals: tuple[int, ...]) -> list[Moment]:
    """Moments of runs that may be in their start, in an update or in a checkpoint."""
    draw = random.Random(seed)
    return [Moment("operation", draw.randint(1, 120), signals) for _ in range(NUM_RANDOM)]


def nothing_is_left(runner, workdir: pathlib.Path) -> bool:
    return not processes_about(workdir) and not list(runner.snapshots.iterdir())


@pytest.fixture(scope="module")
def whole(runner, tmp_path_factory) -> Finished:
    """The run that was never interrupted."""
    return run(runner, tmp_path_factory.mktemp("whole") / "run", **FIELDS)


def assert_ends_as(whole: Finished, runner, workdir: pathlib.Path) -> None:
    """Carries a run on to its end, and compares it with one that was never interrupted."""
    last = run(runner, workdir, **FIELDS)
    assert last.code == 0, last.stderr
    assert last.sha == whole.sha
    assert last.trained == whole.trained
    assert [line["update"] for line in last.metrics] == list(range(17))
    counts = last.metrics[-1]
    assert counts["tickets/trained"] == counts["tickets/issued"] == 16 * TINY["prompts_per_update"]
    assert max(line["lag/max"] for line in last.metrics[1:]) <= TINY["lag"]
    assert wait_until(lambda: nothing_is_left(runner, workdir))
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert names == ["15", "16"], "the newest two, and nothing that is half written"


def test_a_run_that_ends_around_its_checkpoints_carries_on_and_ends_with_the_same_bits(
    whole, runner, tmp_path
):
    for moment, code in NAMED:
        ended = run(runner, tmp_path / "run", moment, **FIELDS)
        assert ended.code == code, (moment, ended.stderr)
    assert_ends_as(whole, runner, tmp_path / "run")


def test_a_run_that_is_killed_at_random_moments_trains_the_same_tickets_and_ends_with_the_same_bits(
    whole, runner, tmp_path
):
    for moment in random_moments(0, KILL):
        ended = run(runner, tmp_path / "run", moment, **FIELDS)
        assert ended.code in (-signal.SIGKILL, 0), ended.stderr
    assert_ends_as(whole, runner, tmp_path / "run")


def test_ctrl_c_saves_what_was_trained_and_at_any_moment_leaves_nothing_else(runner, tmp_path):
    named = [Moment(name, 1, INT) for name in ("start", "lock", "update")]
    for moment in [*named, *random_moments(1, INT)]:
        ended = run(runner, tmp_path / "run", moment, **{**FIELDS, "num_updates": 100_000})
        assert ended.code == 130, (moment, ended.stderr)
        assert "error: interrupted" in ended.stderr
        if moment.name == "update":
            saved = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
            assert saved == ended.metrics[-1]["update"], "no update is lost"
            assert "saved" in ended.error
        assert wait_until(lambda: nothing_is_left(runner, tmp_path))


def test_a_run_that_is_terminated_before_it_trains_says_that_it_has_not_saved(runner, tmp_path):
    ended = run(runner, tmp_path / "run", Moment("start", 1, TERM), **FIELDS)
    assert ended.code == 143, ended.stderr
    assert not (tmp_path / "run" / "result.json").exists()
    assert wait_until(lambda: nothing_is_left(runner, tmp_path))
