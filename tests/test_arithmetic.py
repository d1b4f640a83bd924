"""Arithmetic: right chains earn 1, other endings 0, and held-out problems stay held out."""

import re

import hypothesis
import hypothesis.strategies as st
import pytest

from asympo_jax.tasks import make_task
from asympo_jax.tasks.arithmetic import Arithmetic

SETTINGS = hypothesis.settings(deadline=None, derandomize=True)
STEP = re.compile(r"([0-9])([-+*])([0-9])=([0-9])")


def _result(left: str, operator: str, right: str) -> int:
    """One step, counted independently of the task."""
    numbers = int(left), int(right)
    return {"+": sum(numbers), "-": numbers[0] - numbers[1], "*": numbers[0] * numbers[1]}[
        operator
    ] % 10


def _wrong_steps(response: str) -> list[bool]:
    """For each step of a response, whether its result is wrong."""
    steps = STEP.findall(response)
    return [_result(*step[:3]) != int(step[3]) for step in steps]


@pytest.fixture(scope="module")
def task() -> Arithmetic:
    return Arithmetic(num_terms=4, wrong_share=0.0)


@pytest.mark.parametrize("num_terms", [2, 3, 4])
def test_every_problem_is_either_for_training_or_held_out(num_terms: int):
    task = Arithmetic(num_terms=num_terms)
    train = {task.train_prompt(i).text for i in range(task.num_train)}
    held_out = {task.eval_prompt(i).text for i in range(task.num_eval)}
    assert len(train) == task.num_train
    assert len(held_out) == task.num_eval > 0
    assert not train & held_out
    assert len(train | held_out) == 10**num_terms * 3 ** (num_terms - 1)
    pattern = re.compile(rf"[0-9]([-+*][0-9]){{{num_terms - 1}}}=")
    assert all(pattern.fullmatch(text) for text in train | held_out)


@SETTINGS
@hypothesis.given(st.integers(0, 10**12))
def test_a_right_chain_ends_in_the_answer_and_earns_1(task: Arithmetic, index: int):
    prompt_text, response = task.demonstration(index)
    steps = STEP.findall(response)
    assert response == "".join(f"{a}{op}{b}={c};" for a, op, b, c in steps) + f"#{steps[-1][3]}"
    assert prompt_text == steps[0][0] + "".join(op + b for _, op, b, _ in steps) + "="
    assert [step[0] for step in steps[1:]] == [step[3] for step in steps[:-1]]
    assert not any(_wrong_steps(response))
    prompt = _find(task, prompt_text)
    assert task.reward(prompt, response) == 1.0
    assert task.correct(prompt, response)


def _find(task: Arithmetic, text: str):
    """A prompt with the answer of problem `text`, counted independently of the task."""
    value = text[0]
    for operator, term in zip(text[1:-1:2], text[2:-1:2], strict=True):
        value = str(_result(value, operator, term))
    prompt = task.train_prompt(0)
    return type(prompt)(index=0, text=text, answer=value)


@pytest.mark.parametrize("index", [0, 1, 1000])
def test_a_prompt_carries_the_answer_of_its_problem(task: Arithmetic, index: int):
    for prompt in (task.train_prompt(index), task.eval_prompt(index)):
        assert prompt.index == index
        assert prompt.answer == _find(task, prompt.text).answer


@SETTINGS
@hypothesis.given(st.integers(0, 2047), st.text("0123456789#;+=") | st.text())
def test_only_an_ending_of_hash_and_answer_earns_1(task: Arithmetic, index: int, text: str):
    prompt = task.eval_prompt(index)
    for response in (text, f"{text}#{prompt.answer}", f"#{prompt.answer}{text}"):
        expected = response.endswith(f"#{prompt.answer}")
        assert task.reward(prompt, response) == float(expected)


@pytest.mark.parametrize(
    "form", ["", "{}", "#{} ", "#{}\n", "#{};", "#0{}", "# {}", "#-{}", "#{0}{0}", "#"]
)
def test_near_misses_of_the_right_ending_earn_0(task: Arithmetic, form: str):
    prompt = task.train_prompt(7)
    assert task.reward(prompt, "#" + prompt.answer) == 1.0
    assert task.reward(prompt, form.format(prompt.answer)) == 0.0


def test_every_other_digit_and_digits_beyond_ascii_earn_0(task: Arithmetic):
    prompt = task.train_prompt(7)
    right = int(prompt.answer)
    assert [task.reward(prompt, f"#{d}") for d in range(10)] == [d == right for d in range(10)]
    assert task.reward(prompt, "#" + chr(0x0660 + right)) == 0.0


@pytest.mark.parametrize("wrong_share", [0.0, 0.1, 0.5, 1.0])
def test_demonstrations_are_wrong_as_often_as_asked(wrong_share: float):
    task = Arithmetic(num_terms=4, wrong_share=wrong_share)
    wrong = [w for i in range(2000) for w in _wrong_steps(task.demonstration(i)[1])]
    # One random result in ten is right by chance; five standard errors either side.
    expected = 0.9 * wrong_share
    margin = 5 * (expected * (1 - expected) / len(wrong)) ** 0.5
    assert abs(sum(wrong) / len(wrong) - expected) <= margin


def test_demonstrations_show_no_held_out_problem():
    task = Arithmetic(num_terms=2)
    held_out = {task.eval_prompt(i).text for i in range(task.num_eval)}
    shown = {task.demonstration(i)[0] for i in range(2000)}
    assert not shown & held_out
    assert len(shown) == task.num_train


def test_two_tasks_with_the_same_options_agree_in_everything():
    first, second = Arithmetic(num_terms=3), make_task("arithmetic", num_terms=3)
    for i in (5, 0, 5):
        assert first.train_prompt(i) == second.train_prompt(i)
        assert first.eval_prompt(i) == second.eval_prompt(i)
        assert first.demonstration(i) == second.demonstration(i)
    assert first.demonstration(0) != first.demonstration(1)


def test_prompts_and_demonstrations_can_be_tokenized(task: Arithmetic):
    for text in (*task.demonstration(3), task.eval_prompt(3).text):
        assert task.tokenizer.decode(task.tokenizer.encode(text)) == text


@pytest.mark.parametrize("index", [-1, 2048])
def test_there_is_no_held_out_prompt_outside_the_split(task: Arithmetic, index: int):
    with pytest.raises(IndexError, match=rf"held-out prompt {index} of 2048"):
        task.eval_prompt(index)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_terms": 1}, "task.num_terms=1: must be from 2 to 5"),
        ({"num_terms": 6}, "task.num_terms=6: must be from 2 to 5"),
        ({"wrong_share": -0.1}, r"task.wrong_share=-0.1: must be from 0 to 1"),
        ({"wrong_share": 1.1}, r"task.wrong_share=1.1: must be from 0 to 1"),
        ({"wrong_share": float("nan")}, "task.wrong_share=nan: must be from 0 to 1"),
        ({"digits": 2}, "task.digits is not an option of task 'arithmetic'"),
    ],
)
def test_a_bad_option_is_refused_by_name(options: dict, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        make_task("arithmetic", **options)
