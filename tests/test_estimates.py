"""avg@k, pass@j and maj@k are what counting every case gives; intervals cover what they should."""

import itertools
import math
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from asympo_jax.sampling import estimates

RIGHT = {"a", "b"}  # of the answers in these tests


def correctness(answers):
    return np.array([[answer in RIGHT for answer in prompt] for prompt in answers], bool)


@hypothesis.given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_j_is_the_share_of_all_choices_of_j_responses_that_hold_a_right_one(correct, data):
    size = data.draw(st.integers(1, len(correct)))
    choices = list(itertools.combinations(correct, size))
    expected = sum(map(any, choices)) / len(choices)
    found = estimates.pass_at(np.array([correct]), size)
    assert found == pytest.approx([expected], abs=1e-12)


def test_pass_at_j_of_many_responses_is_a_probability_that_grows_with_j():
    correct_PK = np.arange(4096)[None] < np.array([0, 1, 7, 4095, 4096])[:, None]
    found = np.array([estimates.pass_at(correct_PK, size) for size in (1, 2, 64, 2048, 4096)])
    assert np.all((found >= 0) & (found <= 1)) and np.all(np.diff(found, axis=0) >= 0)
    np.testing.assert_allclose(found[0], estimates.avg(correct_PK), rtol=1e-12)
    assert found[:, 0].tolist() == [0] * 5 and found[:, -1].tolist() == [1] * 5
    assert found[-1].tolist() == [0, 1, 1, 1, 1]
    assert found[3, 1] == pytest.approx(0.5)


@pytest.mark.parametrize("size", [0, 3])
def test_pass_at_more_responses_than_there_are_is_refused(size):
    with pytest.raises(ValueError, match=rf"size={size}: must be from 1 to the 2 responses"):
        estimates.pass_at(np.ones((1, 2), bool), size)


@pytest.mark.parametrize(
    ("num_samples", "expected"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (9, [1, 2, 4, 8, 9])]
)
def test_the_sizes_are_the_powers_of_2_and_all(num_samples, expected):
    assert estimates.sizes(num_samples) == expected


@hypothesis.given(st.lists(st.sampled_from([None, "a", "b", "x", "y"]), min_size=1, max_size=6))
@hypothesis.settings(max_examples=60)
def test_maj_at_k_is_the_mean_over_all_orders_of_taking_the_first_of_the_most_frequent(answers):
    values = []
    for order in itertools.permutations(answers):
        most = Counter(answer for answer in order if answer is not None).most_common(1)
        values.append(bool(most) and most[0][0] in RIGHT)
    found = estimates.majority(correctness([answers]), [answers])
    assert found == pytest.approx([np.mean(values)], abs=1e-12)


def test_answers_that_were_graded_differently_are_as_right_as_their_share():
    correct_PK = np.array([[True, False, False, True]])
    assert estimates.majority(correct_PK, [["a", "a", "a", "b"]]) == pytest.approx([1 / 3])


def test_a_right_response_without_an_answer_does_not_vote():
    correct_PK = np.ones((2, 2), bool)
    assert estimates.majority(correct_PK, [[None, None], [None, "a"]]).tolist() == [0.0, 1.0]


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(7)
    covered, errors, means = [], [], []
    for _ in range(200):
        chance_P = generator.beta(0.5, 1.0, size=80)  # its mean is 1/3
        correct_PK = generator.random((80, 4)) < chance_P[:, None]
        found = estimates.estimate({"avg": estimates.avg(correct_PK)})["avg"]
        covered.append(found.low <= 1 / 3 <= found.high)
        errors.append(found.standard_error)
        means.append(found.mean)
    assert 0.9 <= np.mean(covered) <= 0.985
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


def test_the_interval_of_an_uneven_value_is_that_of_its_quantiles():
    value_P = np.zeros(400)
    value_P[:40] = 1.0
    found = estimates.estimate({"rare": value_P})["rare"]
    assert found.mean == 0.1
    assert found.standard_error == pytest.approx(math.sqrt(0.1 * 0.9 / 399))
    # The 2.5 % and 97.5 % quantiles of a binomial of 400 draws with probability 0.1.
    assert (found.low * 400, found.high * 400) == (
        pytest.approx(29, abs=1),
        pytest.approx(52, abs=1),
    )


def test_an_interval_does_not_depend_on_what_else_is_estimated():
    value_P = np.random.default_rng(0).random(30)
    alone = estimates.estimate({"a": value_P})
    together = estimates.estimate({"b": 1 - value_P, "a": value_P})
    assert together["a"].mean == alone["a"].mean == value_P.mean()
    assert together["a"].low == pytest.approx(alone["a"].low, rel=1e-12)
    assert together["b"].high == pytest.approx(1 - alone["a"].low, rel=1e-12)
    assert list(together) == ["b", "a"]


@pytest.mark.parametrize("num_right", [0, 9])
def test_none_or_all_of_the_prompts_right_has_the_interval_of_wilson(num_right):
    found = estimates.estimate({"all": np.full(9, num_right / 9), "half": np.full(9, 0.5)})
    expected = scipy.stats.binomtest(num_right, 9).proportion_ci(0.95, method="wilson")
    assert (found["all"].low, found["all"].high) == pytest.approx((expected.low, expected.high))
    assert found["all"].standard_error == pytest.approx(0.1)
    assert found["half"] == estimates.Estimate(0.5, 0.0, 0.5, 0.5)


def test_a_single_prompt_has_no_interval():
    found = estimates.estimate({"one": np.array([0.25])})["one"]
    assert found.mean == 0.25
    assert all(math.isnan(x) for x in (found.standard_error, found.low, found.high))


def test_one_response_a_prompt_is_its_own_pass_and_its_own_majority():
    correct_PK = np.array([[True], [False]])
    assert estimates.avg(correct_PK).tolist() == [1.0, 0.0]
    assert estimates.pass_at(correct_PK, 1).tolist() == [1.0, 0.0]
    assert estimates.majority(correct_PK, [["a"], ["x"]]).tolist() == [1.0, 0.0]
