"""The task `math` reads any file of problems and answers, and asks with a template."""

import json

import pytest
from hf_directories import write_directory

from asympo_jax.config import default_config, resolve
from asympo_jax.experiment import build_parts
from asympo_jax.tasks.math import Math

TRAIN = [
    {"problem": "What is half of 1?", "answer": "$\\frac{1}{2}$"},
    {"problem": "How many legs has a cat?", "answer": 4},
    {"problem": "Held out?", "answer": "yes"},
    {"problem": "Nobody knows.", "answer": None},
    {"problem": "Solve x - 1 = 2.", "solution": "So $x = \\boxed{3}$."},
    {"problem": "Two and two?", "answer": "They are\n#### 4"},
]
EVAL = [{"problem": "Held out?", "answer": "yes"}, {"problem": "A braid {problem}?", "answer": "7"}]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def options(tmp_path):
    return {
        "tokenizer_dir": str(write_directory(tmp_path / "model")),
        "train_data": write_rows(tmp_path / "train.jsonl", TRAIN),
        "eval_data": write_rows(tmp_path / "eval.jsonl", EVAL),
    }


def test_problems_have_answers_and_none_is_in_both_splits(options):
    task = Math(template="Q: {problem} \\boxed{}", **options)
    prompts = [task.train_prompt(i) for i in range(task.num_train)]
    assert [p.answer for p in prompts] == ["\\frac{1}{2}", "4", "3", "4"]
    assert prompts[0].text == "Q: What is half of 1? \\boxed{}"
    assert task.eval_prompt(1).text == "Q: A braid {problem}? \\boxed{}"
    assert (task.num_eval, task.num_train_left_out, task.num_eval_left_out) == (2, 2, 0)
    assert task.reward(prompts[0], "\\boxed{\\frac{1}{2}}") == 1.0
    for index in (-1, 4):
        with pytest.raises(IndexError):
            task.train_prompt(index)


def test_prompts_that_are_too_long_are_left_out(options, tmp_path):
    write_rows(tmp_path / "train.jsonl", [*TRAIN, {"problem": "1?", "answer": "1"}])
    task = Math(template="{problem}", **options)
    lengths = [
        len(task.tokenizer.encode_prompt(task.eval_prompt(i).text)) for i in range(task.num_eval)
    ]
    assert lengths[0] < lengths[1]
    shorter = Math(template="{problem}", max_prompt_tokens=lengths[0], **options)
    assert (shorter.num_eval, shorter.num_eval_left_out) == (1, 1)
    assert shorter.train_prompt(0).text == "1?"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"train_data": ""}, "task.train_data is not set"),
        ({"train_data": "/nowhere.jsonl"}, "task.train_data='/nowhere.jsonl' cannot be read"),
        ({"train_data": "tfds:gsm8k"}, "must have the form tfds:NAME:SPLIT"),
        ({"problem_field": "question"}, "line 1: has no text in field 'question'"),
        ({"template": "?"}, r"task.template='\?': must hold \{problem\}"),
        ({"tokenizer_dir": ""}, "task.tokenizer_dir is not set"),
        ({"max_prompt_tokens": 1}, "task.max_prompt_tokens=1: leaves none"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        Math(**{**options, **change})


def test_a_line_that_is_not_json_is_named(options, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"problem": "a", "answer": "b"}\n{')
    with pytest.raises(ValueError, match=r"train.jsonl' line 2 is not JSON"):
        Math(**options)


def test_its_rewards_are_computed_in_a_pool_and_nowhere_else(options):
    config = default_config()
    config.task.name = "math"
    config.task.update(options)
    config.eval.num_prompts = 1
    config.prompts_per_update = 2
    config.warmup.num_steps = 0
    config.sampler.max_prompt_tokens = 200
    parts = build_parts(resolve(config))
    assert parts.grader.pool is not None
    assert parts.correct is not None
    config.reward.num_processes = 0
    with pytest.raises(ValueError, match=r"reward\.num_processes=0: task 'math'"):
        build_parts(resolve(config))


def test_answers_that_no_response_could_match_are_left_out(options, tmp_path):
    answers = ["5", 1e20, 0.00001, float("nan"), float("inf"), "\\boxed{}", "\\boxed{5", "7" * 500]
    rows = [{"problem": f"Number {i}?", "answer": answer} for i, answer in enumerate(answers)]
    write_rows(tmp_path / "train.jsonl", rows)
    task = Math(template="{problem}", **options)
    found = [task.train_prompt(i).answer for i in range(task.num_train)]
    assert found == ["5", "1" + "0" * 20, "0.00001"]
    assert task.num_train_left_out == len(answers) - 3


def test_half_a_character_is_refused_with_its_line(options, tmp_path):
    write_rows(tmp_path / "train.jsonl", [TRAIN[0], {"problem": "\ud800?", "answer": "1"}])
    with pytest.raises(ValueError, match="line 2: field 'problem' has half a character"):
        Math(template="{problem}", **options)


def test_a_prompt_may_not_be_longer_than_the_samplers_room(options):
    config = default_config()
    config.task.name, config.warmup.num_steps, config.eval.num_prompts = "math", 0, 2
    config.prompts_per_update = 2
    for name, value in {**options, "max_prompt_tokens": 200}.items():
        config.task[name] = value
    with pytest.raises(
        ValueError, match=r"task\.max_prompt_tokens=200: must be at most sampler\.max_"
    ):
        build_parts(resolve(config))
