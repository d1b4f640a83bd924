"""GSM8K: grade-school word problems whose answer is one number (arXiv:2110.14168).

Decisions. The problems come through tensorflow-datasets as random-access records, without
TensorFlow. The tokenizer is a small byte-level BPE trained on the training split, so that a model
made from nothing can be trained. Both are made once, without a network, from the two public files:

    python -m asympo_jax.tasks.gsm8k --raw=DIR_OF_JSONL --data_dir=DIR
"""

import dataclasses
import pathlib
import re
import sys
from typing import Any

import numpy as np

from asympo_jax.tasks import grading, prompting
from asympo_jax.tasks.base import Task
from asympo_jax.tokenizers import BpeTokenizer, Tokenizer
from asympo_jax.types import Prompt

TOKENIZER_FILE = "tokenizer.json"
_PREPARE = "python -m asympo_jax.tasks.gsm8k --raw=DIR_OF_JSONL --data_dir={}"
PLAIN_TEMPLATE = "Question: {problem}\nAnswer:"
_CHAT_TEMPLATE = (
    "{problem}\n\nPlease reason step by step. End with a line that has `#### ` and the final "
    "answer as one number, such as `#### 18`."
)
_CALCULATOR = re.compile(r"<<[^<>]*>>")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem as published.

    Attributes:
        question: the word problem.
        answer: the solution of a person, with `<<…>>` for a calculator, ending in `#### 18`.
    """

    question: str
    answer: str

    def prompt(self, template: str = PLAIN_TEMPLATE) -> str:
        """What the model is asked."""
        return prompting.fill(template, problem=self.question)

    @property
    def solution(self) -> str:
        """What a person answered, without the calculator's notes; follows on `prompt`."""
        return " " + _CALCULATOR.sub("", self.answer)

    @property
    def number(self) -> str:
        """The final answer; empty where the solution has none."""
        return grading.final_answer(self.answer) or ""


class Gsm8k(Task):
    """GSM8K with rewards 1 (the number after the last `####` is exactly right) and 0.

    Responses have the form of the demonstrations: steps in words, then a line `#### 18`. The held-
    out split is the published test split.

    Args:
        data_dir: the directory that the preparing command wrote.
        max_prompt_tokens: problems whose prompt has more tokens are left out, of both splits.
        template: the prompt, with `{problem}` for the question; empty for one that suits the
            tokenizer.
        tokenizer_dir: Hugging Face directory of a model's tokenizer and chat template; empty for
            the tokenizer that the preparing command made.

    Attributes:
        num_train_left_out: training problems with a longer prompt.
        num_eval_left_out: held-out problems with a longer prompt.
    """

    def __init__(
        self,
        data_dir: str = "",
        max_prompt_tokens: int = 256,
        template: str = "",
        tokenizer_dir: str = "",
    ):
        if max_prompt_tokens < 1:
            raise ValueError(f"task.max_prompt_tokens={max_prompt_tokens}: must be at least 1")
        import_tfds()
        directory = _prepared(data_dir)
        self.tokenizer: Tokenizer = (
            prompting.load_tokenizer(tokenizer_dir)
            if tokenizer_dir
            else BpeTokenizer.from_file(directory / TOKENIZER_FILE)
        )
        fitting = _CHAT_TEMPLATE if tokenizer_dir else PLAIN_TEMPLATE
        self._template = prompting.check_template(template or fitting, "problem")
        self._train, self.num_train_left_out = self._load(directory, "train", max_prompt_tokens)
        self._eval, self.num_eval_left_out = self._load(directory, "test", max_prompt_tokens)
        self.num_train = len(self._train)
        self.num_eval = len(self._eval)

    def train_prompt(self, index: int) -> Prompt:
        """The training prompt at `index`, in the order of the data set without the left-out."""
        return self._prompt(self._train, index)

    def eval_prompt(self, index: int) -> Prompt:
        """The test prompt at `index`, in the order of the data set without the left-out."""
        return self._prompt(self._eval, index)

    def reward(self, prompt: Prompt, text: str) -> float:
        """1 if the number after the last `####` equals the answer exactly, else 0."""
        return grading.grade_number(text, prompt.answer)

    def answer(self, text: str) -> str | None:
        """The number after the last `####` in lowest terms, so that `0.5` and `1/2` are one."""
        return grading.vote(text)

    def demonstration(self, index: int) -> tuple[str, str]:
        """A training prompt and the solution of a person; every num_train indices show each once.

        Args:
            index: 0 or more, of any size. Independent of a run's seed.
        """
        epoch, position = divmod(index, self.num_train)
        order = np.random.default_rng([0x5EED, epoch]).permutation(self.num_train)
        problem = self._train[order[position]]
        return problem.prompt(self._template), problem.solution

    def _load(
        self, directory: pathlib.Path, split: str, max_prompt_tokens: int
    ) -> tuple[list[Problem], int]:
        """The problems of a split with a short enough prompt, and the number of the others."""
        every = load_problems(directory, split)
        encode = self.tokenizer.encode_prompt
        kept = [p for p in every if len(encode(p.prompt(self._template))) <= max_prompt_tokens]
        if not kept:
            raise ValueError(
                f"task.max_prompt_tokens={max_prompt_tokens}: leaves none of the {len(every)} "
                f"problems of split {split!r}; 256 keeps nearly all of the published ones"
            )
        return kept, len(every) - len(kept)

    def _prompt(self, problems: list[Problem], index: int) -> Prompt:
        """The prompt at `index`; a negative one is as wrong as one past the end."""
        if not 0 <= index < len(problems):
            raise IndexError(f"prompt {index} of {len(problems)}")
        problem = problems[index]
        return Prompt(index=index, text=problem.prompt(self._template), answer=problem.number)


def import_tfds() -> Any:
    """The library tensorflow_datasets, on first use: other tasks do without it.

    Raises:
        ValueError: it or one of the other packages that this task needs is not installed.
    """
    try:
        import array_record.python.array_record_module  # noqa: F401
        import tensorflow_datasets
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"task 'gsm8k' and tfds: sources need packages that are not installed ({error}): run "
            "`pip install -e '.[data]'` in the project's folder"
        ) from error
    return tensorflow_datasets


def load_problems(directory: pathlib.Path, split: str) -> list[Problem]:
    """All problems of a prepared split, "train" or "test", in the order of the data set.

    Raises:
        ValueError: a package is missing, the records have a format that is read only in order, or
            a solution does not end in a number.
    """
    tfds = import_tfds()
    try:
        source = tfds.data_source("gsm8k", split=split, data_dir=directory, download=False)
    except NotImplementedError as error:
        raise ValueError(
            f"task.data_dir={str(directory)!r}: has GSM8K in a format without random access; "
            f"prepare another directory with `{_PREPARE.format('DIR')}`"
        ) from error
    problems = [Problem(row["question"].decode(), row["answer"].decode()) for row in source]
    for problem in problems:
        if grading.parse_number(problem.number) is None:
            raise ValueError(
                f"task.data_dir={str(directory)!r}: a solution of split {split!r} does not end in "
                f"a number: {problem.answer[-80:]!r}"
            )
    return problems


def has_records(directory: pathlib.Path) -> bool:
    """Whether tensorflow-datasets finished writing the data set there (in gsm8k/VERSION)."""
    return any(directory.glob("gsm8k/[0-9]*/dataset_info.json"))


def _prepared(data_dir: str) -> pathlib.Path:
    """The directory with records and tokenizer, or a ValueError that says how to make it."""
    if not data_dir:
        raise ValueError(
            f"task.data_dir is not set: prepare the data with `{_PREPARE.format('DIR')}`, then set "
            "task.data_dir=DIR"
        )
    directory = pathlib.Path(data_dir).expanduser()
    if not has_records(directory) or not (directory / TOKENIZER_FILE).is_file():
        raise ValueError(
            f"task.data_dir={data_dir!r}: GSM8K is not prepared there; run "
            f"`{_PREPARE.format(data_dir)}`"
        )
    return directory


if __name__ == "__main__":
    from asympo_jax.tasks.gsm8k_prepare import main

    sys.exit(main(sys.argv[1:]))
