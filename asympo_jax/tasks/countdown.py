"""Countdown: combine given numbers with + − × ÷ into a target (the numbers round of the game show).

Decisions. Problems are made, not read: each follows from its index alone, and a hash of a problem's
numbers and target says whether it is held out, so that no problem is in both splits. A response is
right if the expression after its last `#`, or in its last box, uses each given number exactly once
and has the target's value. It is read by the small parser below, in fractions: nothing is
evaluated, and a division by zero is just wrong.
"""

import re
import zlib
from fractions import Fraction

import numpy as np

from asympo_jax.tasks import math_grading, prompting
from asympo_jax.tasks.base import Task
from asympo_jax.tokenizers import CharTokenizer, Tokenizer
from asympo_jax.types import Prompt

_NUM_TRAIN, _NUM_EVAL = 2**20, 2048
_HELD_OUT_OF = 16  # one problem in so many, by its hash
_MAX_CHARACTERS = 200
_PLAIN_TEMPLATE = "{numbers}={target}:"
_CHAT_TEMPLATE = (
    "Using each of the numbers {numbers} exactly once, with + - * / and parentheses, write an "
    "expression that equals {target}. Please reason step by step. End with a line that has `#### ` "
    "and the expression alone."
)
_TOKEN = re.compile(r"\s*([0-9]{1,9}|[-+*/()])")
_LATEX = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\u00d7": "*", "\u00f7": "/"}
_LATEX |= {"\u2212": "-", "\\left": "", "\\right": ""}


class Countdown(Task):
    """Made-up countdown problems with rewards 1 (a right expression) and 0.

    Args:
        num_numbers: numbers in a problem, 2 … 6.
        max_number: largest of them, 3 … 100; of ones and twos no problem is held out.
        max_target: largest target, 10 … 10000; targets are whole and positive.
        tokenizer_dir: Hugging Face directory of a model's tokenizer and chat template; empty for
            one id a character.
        template: the prompt, with `{numbers}` and `{target}`; empty for one that suits the
            tokenizer.
    """

    def __init__(
        self,
        num_numbers: int = 4,
        max_number: int = 20,
        max_target: int = 100,
        tokenizer_dir: str = "",
        template: str = "",
    ):
        for name, value, low, high in (
            ("num_numbers", num_numbers, 2, 6),
            ("max_number", max_number, 3, 100),
            ("max_target", max_target, 10, 10_000),
        ):
            if not low <= value <= high:
                raise ValueError(f"task.{name}={value}: must be from {low} to {high}")
        self.tokenizer: Tokenizer = (
            prompting.load_tokenizer(tokenizer_dir)
            if tokenizer_dir
            else CharTokenizer("0123456789+-*/()=#:; ")
        )
        fitting = _CHAT_TEMPLATE if tokenizer_dir else _PLAIN_TEMPLATE
        self._template = prompting.check_template(template or fitting, "numbers", "target")
        if not tokenizer_dir:
            self._check_alphabet(template)
        self._num_numbers = num_numbers
        self._max_number = max_number
        self._max_target = max_target
        self.num_train, self.num_eval = _NUM_TRAIN, _NUM_EVAL

    def train_prompt(self, index: int) -> Prompt:
        """The training prompt at `index`; small numbers come more than once."""
        if not 0 <= index < self.num_train:
            raise IndexError(f"training prompt {index} of {self.num_train}")
        return self._make(index, is_held_out=False)[0]

    def eval_prompt(self, index: int) -> Prompt:
        """The held-out prompt at `index`."""
        if not 0 <= index < self.num_eval:
            raise IndexError(f"held-out prompt {index} of {self.num_eval}")
        return self._make(index, is_held_out=True)[0]

    def reward(self, prompt: Prompt, text: str) -> float:
        """1 if the final expression uses each number once and has the target's value, else 0."""
        numbers, _, target = prompt.answer.partition("=")
        span = final_expression(text)
        if span is None:
            return 0.0
        expression, _, claimed = span.partition("=")
        value, used = evaluate(expression)
        is_right = value == int(target) and sorted(used) == sorted(map(int, numbers.split()))
        return float(is_right and claimed.strip() in ("", target))

    def demonstration(self, index: int) -> tuple[str, str]:
        """A training prompt and its steps, such as `3+5=8;8*7=56;#(3+5)*7`."""
        prompt, steps, expression = self._make(index % self.num_train, is_held_out=False)
        return prompt.text, "".join(f"{step};" for step in steps) + f"#{expression}"

    def _check_alphabet(self, template: str) -> None:
        """Refuses a template with characters that the tokenizer of this task does not have."""
        try:
            self.tokenizer.encode(prompting.fill(self._template, numbers="", target=""))
        except ValueError as error:
            raise ValueError(f"task.template={template!r:.200}: {error}") from error

    def _make(self, index: int, is_held_out: bool) -> tuple[Prompt, list[str], str]:
        """A problem of its split, the steps of a solution, and the solution."""
        rng = np.random.Generator(np.random.Philox(key=[0xC0DE + is_held_out, index]))
        while True:
            numbers = rng.integers(1, self._max_number + 1, self._num_numbers).tolist()
            steps, expression, target = _combine(rng, numbers)
            text = f"{' '.join(map(str, numbers))}={target}"
            kind = f"{sorted(numbers)}={target}".encode()
            if 0 < target <= self._max_target and is_held_out == (
                zlib.crc32(kind) % _HELD_OUT_OF == 0
            ):
                break
        asked = prompting.fill(
            self._template, numbers=" ".join(map(str, numbers)), target=str(target)
        )
        return Prompt(index=index, text=asked, answer=text), steps, expression


def final_expression(text: str) -> str | None:
    """The span after the last `#`, to the end of its line, or in the last box if that comes later.

    LaTeX's signs are replaced by plain ones, and a final period is dropped. None where there is
    neither mark, or the span has more than 200 characters.
    """
    mark = text.rfind("#")
    if max(text.rfind("\\boxed"), text.rfind("\\fbox")) > mark:
        span = math_grading.final_span(text)
    elif mark < 0:
        span = None
    else:
        span = text[mark + 1 : mark + 2 + _MAX_CHARACTERS].partition("\n")[0]
    if span is None or len(span) > _MAX_CHARACTERS:
        return None
    for sign, plain in _LATEX.items():
        span = span.replace(sign, plain)
    return span.strip(" $`.")


def evaluate(expression: str) -> tuple[Fraction | None, list[int]]:
    """The exact value of an expression and the numbers in it; None for one that has no value.

    Read: whole numbers, + - * /, a sign in front, parentheses; nothing else.
    """
    tokens, position = [], 0
    expression = expression.rstrip()
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            return None, []
        tokens.append(match[1])
        position = match.end()
    if len(tokens) > _MAX_CHARACTERS:
        return None, []
    numbers = [int(token) for token in tokens if token.isdigit()]
    try:
        value = _sum(tokens)
    except (IndexError, ZeroDivisionError, ValueError, RecursionError):
        return None, numbers
    return (None if tokens else value), numbers


def _sum(tokens: list[str]) -> Fraction:
    """Takes a sum off the front of the tokens; IndexError where they end too early."""
    value = _product(tokens)
    while tokens and tokens[0] in "+-":
        value = value + _product(tokens) if tokens.pop(0) == "+" else value - _product(tokens)
    return value


def _product(tokens: list[str]) -> Fraction:
    """Takes a product off the front of the tokens."""
    value = _factor(tokens)
    while tokens and tokens[0] in "*/":
        value = value * _factor(tokens) if tokens.pop(0) == "*" else value / _factor(tokens)
    return value


def _factor(tokens: list[str]) -> Fraction:
    """Takes a number, a signed factor or a parenthesis off the front of the tokens."""
    token = tokens.pop(0)
    if token == "-":
        return -_factor(tokens)
    if token == "(":
        value = _sum(tokens)
        if tokens.pop(0) != ")":
            raise ValueError("a parenthesis is not closed")
        return value
    return Fraction(int(token))


def _combine(rng: np.random.Generator, numbers: list[int]) -> tuple[list[str], str, int]:
    """Random steps that use up the numbers: the steps, the whole expression, its value."""
    values = [(number, str(number)) for number in numbers]
    steps = []
    while len(values) > 1:
        left, right = (values.pop(int(rng.integers(len(values)))) for _ in range(2))
        (a, left_text), (b, right_text) = left, right
        results = {"+": a + b, "-": a - b, "*": a * b}
        if b and a % b == 0:
            results["/"] = a // b
        operator = list(results)[int(rng.integers(len(results)))]
        result = results[operator]
        if result < 0:
            (a, left_text), (b, right_text), result = right, left, -result
        steps.append(f"{a}{operator}{b}={result}")
        values.append((result, f"({left_text}{operator}{right_text})"))
    value, text = values[0]
    return steps, text[1:-1], value
