"""The data of a task stay what a run was started with: in later attempts and in all processes."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from asympo_jax import training
from asympo_jax.config import default_config, resolve
from asympo_jax.tasks import prompts_sha256
from asympo_jax.tasks.arithmetic import Arithmetic
from asympo_jax.types import Prompt


class Listed(Arithmetic):
    """Prompts of lists."""

    def __init__(self, train, held_out=("9+9=",)):
        super().__init__()
        self.train, self.held_out, self.asked = train, held_out, 0
        self.num_train, self.num_eval = len(train), len(held_out)

    def train_prompt(self, index):
        self.asked += 1
        return Prompt(index, self.train[index], "2")

    def eval_prompt(self, index):
        return Prompt(index, self.held_out[index], "2")


TEXTS = [f"{i}+{i + 1}=" for i in range(40)]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ([*TEXTS[:-1], "1+1="], ["9+9="]),
        ([*TEXTS[1:], TEXTS[0]], ["9+9="]),
        (TEXTS[:-1], ["9+9="]),
        ([*TEXTS, "1+1="], ["9+9="]),
        (TEXTS, ["9+8="]),
        (TEXTS, ["9+9=", "9+9="]),
        (TEXTS[:-1], [TEXTS[-1], "9+9="]),
    ],
)
def test_prompts_that_are_others_have_another_hash(train, held_out):
    same = prompts_sha256(Listed(TEXTS))
    assert prompts_sha256(Listed(list(TEXTS))) == same
    assert prompts_sha256(Listed(train, held_out)) != same


def test_a_right_answer_that_is_another_has_another_hash():
    class Mistaken(Listed):
        def train_prompt(self, index):
            return Prompt(index, self.train[index], "3")

    assert prompts_sha256(Mistaken(TEXTS)) != prompts_sha256(Listed(TEXTS))


def test_of_many_prompts_few_are_made_and_the_ends_are_among_them():
    class Long(Listed):
        changed = -1

        def train_prompt(self, index):
            self.asked += 1
            return Prompt(index, "1+1=" if index == self.changed else "2+2=", "2")

    task, found = Long(TEXTS), set()
    task.num_train = 10**9
    for task.changed in (-1, 0, 10**9 - 1):
        task.asked = 0
        found.add(prompts_sha256(task))
        assert task.asked <= 64
    assert len(found) == 3


MISTAKEN: Any = [(0, "1+1=", ("2", "3")), (np.int64(0), "1+1=", "2")]


@pytest.mark.parametrize("prompt", [*(Prompt(*fields) for fields in MISTAKEN), "1+1="])
def test_a_prompt_that_would_be_another_in_a_grading_process_is_refused(prompt):
    class Wrong(Listed):
        def train_prompt(self, index):
            return prompt

    with pytest.raises(
        ValueError, match=r"prompt 0 of the task is .* must be a Prompt of an index"
    ):
        prompts_sha256(Wrong(TEXTS))


def prepared(workdir: pathlib.Path, **fields) -> None:
    """Makes a workdir ready, as each attempt at its run does."""
    config: Any = default_config()
    config.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    training.prepare(resolve(config), workdir).lock.close()


def test_a_run_is_not_carried_on_with_other_prompts(tmp_path, monkeypatch):
    prepared(tmp_path)
    before = (tmp_path / "task.json").read_text()
    (tmp_path / "metrics.jsonl").touch()  # it has begun
    prepared(tmp_path, num_updates=201)
    train_prompt = Arithmetic.train_prompt

    def changed(self, index):
        return train_prompt(self, (index + 1) % self.num_train)

    monkeypatch.setattr(Arithmetic, "train_prompt", changed)
    with pytest.raises(ValueError, match=r"task\.name='arithmetic': its prompts .*another workdir"):
        prepared(tmp_path)
    assert (tmp_path / "task.json").read_text() == before
    assert json.loads((tmp_path / "config.json").read_text())["num_updates"] == 201
    (tmp_path / "metrics.jsonl").unlink()
    prepared(tmp_path)  # nothing was trained, so nothing is mixed
    assert (tmp_path / "task.json").read_text() != before


def test_a_workdir_of_before_prompts_were_hashed_is_carried_on_and_bound(tmp_path):
    prepared(tmp_path)
    before = (tmp_path / "task.json").read_text()
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "task.json").unlink()
    prepared(tmp_path)
    assert (tmp_path / "task.json").read_text() == before


def test_a_sampler_that_would_ask_other_prompts_ends_the_run_in_a_sentence(runner, tmp_path):
    run = runner.train(tmp_path, task__name="tasks_for_tests:OtherPromptsInSampler")
    assert run.code == 1
    assert "sampler 0: ValueError: task.name='tasks_for_tests:Other" in run.error
    assert "its prompts here are not the learner's" in run.error
    assert len(run.metrics) == 1, "nothing was trained on"
