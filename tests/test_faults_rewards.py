"""Rewards that fail too often, and rewards that change the process that they are graded in."""

import dataclasses

import numpy as np
import pytest

from asympo_jax.runtime.reward_alarm import RewardAlarm
from asympo_jax.runtime.reward_pool import Graded, RewardPool, RewardSource
from asympo_jax.tasks import RewardError
from asympo_jax.tokenizers import CharTokenizer
from asympo_jax.types import GradingFailure, Group, Prompt

PROMPT = Prompt(0, "1+1=", "2")
TOKENIZER = CharTokenizer("0123456789+=")


def group(ticket: int, failure: GradingFailure = GradingFailure.NONE) -> Group:
    """A group of two responses, of which the second may have failed."""
    return Group(
        ticket=ticket,
        version=0,
        prompt_S=np.array(TOKENIZER.encode("1+1="), np.int32),
        response_GT=np.array([TOKENIZER.encode("27"), TOKENIZER.encode("49")], np.int32),
        length_G=np.array([2, 1], np.int32),
        stop_G=np.zeros(2, np.int8),
        reward_G=np.zeros(2, np.float32),
        behaviour_logp_GT=None,
        failure_G=np.array([0, failure], np.int8),
    )


def groups(num_graded: int, num_failed: int) -> list[Group]:
    failed = [group(ticket, GradingFailure.DEATH) for ticket in range(num_failed)]
    return failed + [group(ticket) for ticket in range(num_failed, num_failed + num_graded)]


def test_a_run_ends_with_an_example_once_too_many_recent_groups_could_not_be_graded():
    alarm = RewardAlarm(0.25, TOKENIZER)
    alarm.check(groups(6, 2), 0)
    alarm.check(groups(6, 2), 1)
    alarm.check(groups(6, 2), 2)
    alarm.check(groups(6, 2), 3)
    expected = (
        r"update 4: 11 of the last 40 groups .* reward\.max_failed_share=0\.25; .* 69 none, "
        r"0 timeout, 11 death, 0 error; such as a death at '4' to '1\+1='"
    )
    with pytest.raises(RewardError, match=expected):
        alarm.check(groups(5, 3), 4)


def test_few_groups_raise_no_alarm_but_an_update_without_any_does():
    alarm = RewardAlarm(0.25, TOKENIZER)
    alarm.check(groups(1, 6), 0)
    with pytest.raises(RewardError, match=r"update 1: none of its 2 groups could be graded"):
        alarm.check(groups(0, 2), 1)


def test_only_recent_groups_count_and_a_share_of_1_allows_any():
    alarm = RewardAlarm(0.25, TOKENIZER)
    alarm.check(groups(512, 0), 0)
    with pytest.raises(RewardError, match=r"64 of the last 128 groups"):
        alarm.check(groups(64, 64), 1)
    lenient = RewardAlarm(1.0, TOKENIZER)
    for update in range(8):
        lenient.check(groups(1, 31), update)
        lenient.check(groups(0, 32), update)


def test_an_update_of_few_groups_without_any_graded_is_measured_by_those_before():
    alarm = RewardAlarm(0.25, TOKENIZER)
    for update in range(6):
        alarm.check(groups(1, 0), update)
    alarm.check(groups(0, 1), 6)
    alarm.check(groups(0, 1), 7)
    with pytest.raises(
        RewardError, match=r"update 8: none of its 1 groups .* of the last 9 groups 3 could"
    ):
        alarm.check(groups(0, 1), 8)


def test_the_pool_of_a_sampler_allows_the_same_share():
    obeys = RewardSource("graders_for_tests:Obeys", {})
    pool = RewardPool(obeys, 1, 30.0, 1.0)
    late = [(PROMPT, "late")] * 20
    assert {one.failure for one in pool.grade("reward", late)} == {GradingFailure.TIMEOUT}
    pool.close()


@pytest.mark.parametrize(("isolate", "spoilt"), [(True, 0.0), (False, 1.0)])
def test_an_isolated_grading_begins_with_the_state_that_the_task_was_made_with(isolate, spoilt):
    source = RewardSource("graders_for_tests:Obeys", {}, isolate=isolate)
    pool = RewardPool(source, num_processes=1, deadline_s=30.0)
    texts = [(PROMPT, text) for text in ("spoil", "spoilt", "count", "count")]
    found = [one.value for one in pool.grade("reward", texts)]
    assert found == [0.5, spoilt, *((1.0, 1.0) if isolate else (3.0, 4.0))]
    pool.close()


def test_an_isolated_grading_is_killed_with_what_it_started_and_the_next_is_right(tmp_path):
    source = RewardSource("graders_for_tests:Obeys", {}, isolate=True)
    pool = RewardPool(source, num_processes=1, deadline_s=1.5)
    texts = ["1", "deaf", "2", "die", "3", "raise", "copy", f"fork {tmp_path / 'pid'}", "4"]
    found = pool.grade("reward", [(PROMPT, text) for text in texts])
    kinds = [GradingFailure(one.failure).name for one in found]
    assert kinds == [
        "NONE", "TIMEOUT", "NONE", "DEATH", "NONE", "ERROR", "NONE", "TIMEOUT", "NONE"
    ]  # fmt: skip
    assert [found[i] for i in (0, 2, 4, 6, 8)] == [Graded(x) for x in (1.0, 2.0, 3.0, 0.5, 4.0)]
    pool.close()


def test_the_failures_of_a_group_without_any_count_as_none():
    alarm = RewardAlarm(0.0, TOKENIZER)
    alarm.check([dataclasses.replace(group(t), failure_G=None) for t in range(64)], 0)
