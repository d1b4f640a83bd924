"""Countdown's problems can be solved, stay in their split, and are verified without evaluating."""

from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import pytest

from asympo_jax.tasks import make_task
from asympo_jax.tasks.countdown import Countdown, evaluate, final_expression
from asympo_jax.types import Prompt

PROMPT = Prompt(0, "3 5 7=56:", "3 5 7=56")


@pytest.fixture(scope="module")
def task() -> Countdown:
    found = make_task("countdown")
    assert isinstance(found, Countdown)
    return found


@pytest.mark.parametrize("num_numbers", [2, 3, 6])
def test_every_demonstration_is_right_and_can_be_encoded(num_numbers):
    task = Countdown(num_numbers=num_numbers)
    for i in range(200):
        text, response = task.demonstration(i)
        assert text == task.train_prompt(i).text
        assert task.reward(task.train_prompt(i), response) == 1.0
        assert "=-" not in response, "no step has a negative result"
        assert task.tokenizer.decode(task.tokenizer.encode(text + response)) == text + response
        target = int(task.train_prompt(i).answer.partition("=")[2])
        assert 1 <= target <= 100


@pytest.mark.parametrize("num_numbers", [2, 3, 4, 5, 6])
def test_the_smallest_numbers_and_targets_leave_problems_in_both_splits(num_numbers):
    task = Countdown(num_numbers=num_numbers, max_number=3, max_target=10)
    for prompt in (task.train_prompt(0), task.eval_prompt(0)):
        assert 1 <= int(prompt.answer.partition("=")[2]) <= 10


def test_no_problem_is_in_both_splits(task):
    def kind(prompt):
        numbers, _, target = prompt.answer.partition("=")
        return tuple(sorted(map(int, numbers.split()))), target

    held_out = {kind(task.eval_prompt(i)) for i in range(500)}
    assert not held_out & {kind(task.train_prompt(i)) for i in range(2000)}
    assert len(held_out) > 400
    assert task.eval_prompt(7) == Countdown().eval_prompt(7)


@pytest.mark.parametrize(
    "text",
    [
        "#(3+5)*7",
        "3+5=8;8*7=56;#(3+5)*7",
        "#1\n#### 7*(5+3) = 56",
        "So \\boxed{7 \\times (3 + 5)}",
        "#7\u00d7(3+5)\nThat was easy.",
        "#-7*(-3-5)",
        "#(3 + 5) * 7 = 56",
    ],
)
def test_an_expression_of_all_numbers_with_the_right_value_earns_1(task, text):
    assert task.reward(PROMPT, text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(3+5)*7",
        "#56",
        "#",
        "#8*7",
        "#(3+5)*7+0",
        "#(3+5)*7*1",
        "#(3+5)*7+3-3",
        "#3+5*7",
        "#(3+5)*7\n#3",
        "#(3+5)*7=56=56",
        "#(3+5)*7=99",
        "#(3+5*7",
        "#3+5)*7",
        "#(3+5)*7/0",
        "#35*7",
        "#(3+5)**7",
        "#(3+5)//7",
        "#__import__('os')",
        "#" + "(" * 199 + "3",
        "#" + "-" * 199 + "3",
        "#" + "9**" * 3_000_000,
        "#" * 10_000_000,
        "\\boxed{(3+5)*7",
    ],
)
def test_every_other_response_earns_0(task, text):
    assert task.reward(PROMPT, text) == 0.0


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1-2-3", -4),
        ("8/4/2", 1),
        ("2+3*4", 14),
        ("1/3+1/6", Fraction(1, 2)),
        ("-(2+3)", -5),
        ("2*-3", -6),
        ("1/0", None),
        ("1 2", None),
        ("", None),
        ("()", None),
        ("1+", None),
    ],
)
def test_operators_have_their_usual_order_and_fractions_are_exact(expression, value):
    assert evaluate(expression)[0] == value


@hypothesis.given(st.text(st.sampled_from("0123456789+-*/() =#\\{}x")))
def test_no_text_raises(task, text):
    assert task.reward(PROMPT, "#" + text) in (0.0, 1.0)
    final_expression(text)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_numbers": 1}, "task.num_numbers=1: must be from 2 to 6"),
        ({"max_number": 101}, "task.max_number=101"),
        ({"max_number": 2}, "task.max_number=2: must be from 3 to 100"),
        ({"max_target": 9}, "task.max_target=9"),
        ({"template": "{numbers}"}, r"task.template=.* must hold \{target\}"),
        ({"template": "Make {target} of {numbers}"}, "task.template=.*allowed are"),
        ({"tokenizer_dir": "/nowhere"}, "task.tokenizer_dir='/nowhere': tokenizer.json"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_task("countdown", **options)
