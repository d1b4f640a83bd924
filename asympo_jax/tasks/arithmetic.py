"""Left-to-right arithmetic modulo 10, every step written out.

`1+7+6+1=` is answered by `1+7=8;8+6=4;4+1=5;#5`: operators have no precedence, every result is
taken modulo 10, and the answer follows `#`. Small enough that a model of 110,000 parameters learns
it on a laptop, and long enough that one early mistake spoils everything after it.
"""

import re

import numpy as np

from asympo_jax.tasks.base import Task
from asympo_jax.tokenizers import CharTokenizer
from asympo_jax.types import Prompt

_OPERATORS = "+-*"
_NUM_EVAL = 2048


def _apply(left: int, operator: str, right: int) -> int:
    """One step, modulo 10."""
    result = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return result % 10


class Arithmetic(Task):
    """Left-to-right arithmetic modulo 10.

    Args:
        num_terms: numbers in a problem, 2 … 5.
        wrong_share: share of steps with a random result in the demonstrations, 0 … 1; so the
            warm-up ends with a policy that is half right, and there is something to learn.
    """

    def __init__(self, num_terms: int = 4, wrong_share: float = 0.18):
        if not 2 <= num_terms <= 5:
            raise ValueError(f"task.num_terms={num_terms}: must be from 2 to 5")
        if not 0.0 <= wrong_share <= 1.0:
            raise ValueError(f"task.wrong_share={wrong_share}: must be from 0 to 1")
        self.tokenizer = CharTokenizer("0123456789+-*=;#")
        self._num_terms = num_terms
        self._wrong_share = wrong_share
        num_problems = 10**num_terms * len(_OPERATORS) ** (num_terms - 1)
        # One fixed shuffle of all problems, independent of any run's seed: the held-out ones are
        # the same for everybody.
        self._order = np.random.Generator(np.random.Philox(num_terms)).permutation(num_problems)
        self.num_eval = min(_NUM_EVAL, num_problems // 4)
        self.num_train = num_problems - self.num_eval

    def train_prompt(self, index: int) -> Prompt:
        """The training prompt at `index`."""
        if not 0 <= index < self.num_train:
            raise IndexError(f"training prompt {index} of {self.num_train}")
        return self._prompt(index, int(self._order[self.num_eval + index]))

    def eval_prompt(self, index: int) -> Prompt:
        """The held-out prompt at `index`."""
        if not 0 <= index < self.num_eval:
            raise IndexError(f"held-out prompt {index} of {self.num_eval}")
        return self._prompt(index, int(self._order[index]))

    def reward(self, prompt: Prompt, text: str) -> float:
        """1 if the text ends in `#` and the right digit, else 0; the steps do not count."""
        return float(self.answer(text) == prompt.answer)

    def answer(self, text: str) -> str | None:
        """The digit that the text ends in, after `#`."""
        match = re.search(r"#([0-9])\Z", text)
        return None if match is None else match.group(1)

    def demonstration(self, index: int) -> tuple[str, str]:
        """A training prompt and its steps; a share of the steps has a random result."""
        rng = np.random.Generator(np.random.Philox(key=[0x5EED, index]))
        prompt = self.train_prompt(int(rng.integers(self.num_train)))
        terms, operators = _parse(prompt.text)
        value = terms[0]
        steps = []
        for operator, term in zip(operators, terms[1:], strict=True):
            result = _apply(value, operator, term)
            if rng.random() < self._wrong_share:
                result = int(rng.integers(10))
            steps.append(f"{value}{operator}{term}={result};")
            value = result
        return prompt.text, "".join(steps) + f"#{value}"

    def _prompt(self, index: int, problem: int) -> Prompt:
        """Decodes a problem number into its digits and operators."""
        terms, operators = [], []
        for _ in range(self._num_terms):
            problem, term = divmod(problem, 10)
            terms.append(term)
        for _ in range(self._num_terms - 1):
            problem, operator = divmod(problem, len(_OPERATORS))
            operators.append(_OPERATORS[operator])
        value = terms[0]
        for operator, term in zip(operators, terms[1:], strict=True):
            value = _apply(value, operator, term)
        body = "".join(f"{term}{op}" for term, op in zip(terms, [*operators, "="], strict=True))
        return Prompt(index=index, text=body, answer=str(value))


def _parse(text: str) -> tuple[list[int], list[str]]:
    """The digits and the operators of a prompt."""
    return [int(c) for c in text[:-1:2]], list(text[1:-1:2])
