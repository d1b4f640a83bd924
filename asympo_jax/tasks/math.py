r"""Problems whose answer is a formula: MATH, MATH-500, DeepScaleR, AIME and the like.

Decisions. Any file with problems and answers will do. A response is graded by the one span that the
prompt asks for, a box, and by its value: `\frac{1}{2}` and `0.5` are one answer. The comparison
runs sympy on what a model wrote, so it belongs into a pool of processes with a deadline.
"""

import importlib.util
from collections.abc import Sequence

from asympo_jax.tasks import math_grading, prompting
from asympo_jax.tasks.base import Task
from asympo_jax.tasks.problems import Problem, Source, load_problems
from asympo_jax.types import Prompt

_TEMPLATE = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."


class Math(Task):
    """Problems with rewards 1 (the last box has the value of the answer) and 0.

    Args:
        train_data: path of a JSONL file, or `tfds:NAME:SPLIT`.
        eval_data: the same for the held-out problems.
        tokenizer_dir: Hugging Face directory of the model's tokenizer and chat template.
        template: the prompt, with `{problem}` for the problem.
        problem_field: field of a row with the problem.
        answer_field: field of a row with the answer, or with a solution that ends in a box.
        data_dir: where tensorflow-datasets looks; empty for its own default.
        max_prompt_tokens: problems whose prompt has more tokens are left out, of both.

    Attributes:
        num_train_left_out: training problems without an answer, with a prompt that is too long, or
            that are held out as well.
        num_eval_left_out: held-out problems without an answer or with a prompt that is too long.
    """

    grades_in_pool = True

    def __init__(
        self,
        train_data: str = "",
        eval_data: str = "",
        tokenizer_dir: str = "",
        template: str = _TEMPLATE,
        problem_field: str = "problem",
        answer_field: str = "answer",
        data_dir: str = "",
        max_prompt_tokens: int = 1024,
    ):
        if max_prompt_tokens < 1:
            raise ValueError(f"task.max_prompt_tokens={max_prompt_tokens}: must be at least 1")
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError(
                "task.name='math' needs the package math-verify, which is not installed: run "
                "`pip install -e '.[math]'` in the project's folder"
            )
        self._template = prompting.check_template(template, "problem")
        self._max_prompt_tokens = max_prompt_tokens
        self.tokenizer = prompting.load_tokenizer(tokenizer_dir)
        fields = (problem_field, answer_field, data_dir)
        self._eval, self.num_eval_left_out = self._load(Source("eval_data", eval_data, *fields), ())
        self._train, self.num_train_left_out = self._load(
            Source("train_data", train_data, *fields), self._eval
        )
        self.num_train, self.num_eval = len(self._train), len(self._eval)

    def train_prompt(self, index: int) -> Prompt:
        """The training prompt at `index`, in the order of the data without those left out."""
        return self._prompt(self._train, index)

    def eval_prompt(self, index: int) -> Prompt:
        """The held-out prompt at `index`, in the order of the data without those left out."""
        return self._prompt(self._eval, index)

    def reward(self, prompt: Prompt, text: str) -> float:
        """1 if the last box, or what follows the last `####`, has the value of the answer, else 0.

        Raises:
            TimeoutError: the comparison took too long.
        """
        return math_grading.grade_latex(text, prompt.answer)

    def answer(self, text: str) -> str | None:
        r"""The last box, or what follows the last `####`; a plain number in lowest terms.

        Other LaTeX is compared as text but for its white space: `\frac{1}{2}` and `0.5` are equal
        to `reward` and are two answers here, so that votes need no math-verify.
        """
        return math_grading.vote(text)

    def _load(self, source: Source, held_out: Sequence[Problem]) -> tuple[list[Problem], int]:
        """The problems of a source that are short enough and not held out, and how many are not."""
        known = {problem.text for problem in held_out}
        problems, num_without_answer = load_problems(source)
        kept = [p for p in problems if p.text not in known and self._is_short(p)]
        if not kept:
            raise ValueError(
                f"task.max_prompt_tokens={self._max_prompt_tokens}: leaves none of the "
                f"{len(problems)} problems of task.{source.option}={source.place!r} that are not "
                "held out"
            )
        return kept, len(problems) - len(kept) + num_without_answer

    def _is_short(self, problem: Problem) -> bool:
        """Whether a problem's prompt has few enough tokens."""
        text = prompting.fill(self._template, problem=problem.text)
        return len(self.tokenizer.encode_prompt(text)) <= self._max_prompt_tokens

    def _prompt(self, problems: Sequence[Problem], index: int) -> Prompt:
        """The prompt at `index`; a negative one is as wrong as one past the end."""
        if not 0 <= index < len(problems):
            raise IndexError(f"prompt {index} of {len(problems)}")
        problem = problems[index]
        text = prompting.fill(self._template, problem=problem.text)
        return Prompt(index=index, text=text, answer=problem.answer)
