"""Comparison of final answers that are LaTeX, such as those of MATH.

Decisions. Only one span of a response counts: the last box, or what follows the last `####`,
whichever comes later; nothing is searched for elsewhere. Equal texts are equal and two plain
numbers are compared exactly. All else goes to math-verify, which reads both sides as LaTeX alone:
its other grammar would hand the text of a model to Python's `eval`. math-verify measures its time
with SIGALRM, so it works only in a main thread, and no alarm ends a loop in C: grade responses of a
model in a pool of processes.
"""

import functools
import itertools
import logging
import re
import signal
from typing import Any

from asympo_jax.tasks import grading
from asympo_jax.types import Prompt

# Longer spans are no answer; the longest answer of MATH has about 160 characters.
MAX_CHARACTERS = 400
_MAX_WORDS = 8  # `\boxed` without a box that are stepped over
_MAX_DEPTH = 8  # reading takes time that is exponential in it; answers of MATH have 2
_TIMEOUT_S = 5  # of reading a side and of one comparison; whole seconds, as alarms are

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([0-9a-zA-Z])(?![a-zA-Z]))")
_BASE = re.compile(r"[0-9A-Za-z]\s*_\s*\{?\s*([0-9]+)\s*\}?\s*\Z")
_DOLLAR = re.compile(r"(?<!\\)\$")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def final_span(text: str) -> str | None:
    r"""What is in the last box; without a box, what follows the last `####`; None without either.

    A box is `\boxed{…}` or `\fbox{…}` with balanced braces, or `\boxed 5`; the bare word is none,
    and `####` after a box is taken for a heading. An unterminated box counts as an empty answer,
    and so does a span of more than 400 characters.
    """
    # Bounded work: boxes are looked for from the end, and only the last one is read.
    end = len(text)
    for _ in range(_MAX_WORDS):
        start = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
        if start < 0:
            return grading.final_answer(text, MAX_CHARACTERS)
        match = _BOX.match(text, start, start + MAX_CHARACTERS)
        if match is not None:
            return _boxed(text, match)
        end = start
    return None


def _boxed(text: str, match: re.Match[str]) -> str | None:
    """What is in the box that begins with a match; None if it does not end in time."""
    if match[1] is not None:
        return match[1]
    depth = 1
    for brace in _BRACE.finditer(text, match.end(), match.end() + MAX_CHARACTERS + 1):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[match.end() : brace.start()].strip()
    return None


def grade_latex(text: str, answer: str) -> float:
    """1 if the final span of `text` has the value of `answer`, else 0.

    Args:
        text: a response; any text, of any size.
        answer: what is right, as LaTeX without dollar signs around it.

    Raises:
        TimeoutError: the comparison took too long; neither right nor wrong is known.
        ValueError: not called in a main thread.
    """
    span = final_span(text)
    return float(bool(span) and _is_equal(answer, span))


def vote(text: str) -> str | None:
    """The final span of `text` as one of few spellings; None where it has none or an empty one.

    Plain numbers are in lowest terms, in other spans white space is one blank.
    """
    span = final_span(text)
    number = None if span is None else grading.parse_number(span)
    return str(number) if number is not None else " ".join((span or "").split()) or None


def grade_prompt(prompt: Prompt, text: str) -> float:
    """`grade_latex` as a reward, for `reward.function` of a task of one's own."""
    return grade_latex(text, prompt.answer)


def _is_equal(answer: str, span: str) -> bool:
    """Whether two pieces of LaTeX have one value."""
    if span == answer.strip():
        return True
    left, right = grading.parse_number(answer), grading.parse_number(span)
    if left is not None and right is not None:
        return left == right
    if _depth(span) > _MAX_DEPTH or _contradicts(answer, span):
        return False
    return is_verified(answer, span)


def _contradicts(answer: str, span: str) -> bool:
    """Whether a span cannot be right, though math-verify may read the answer in a part of it.

    That is one with a dollar sign, which would end the formula, with another base than the
    answer's, or with unequal numbers between equal signs, such as `6 = 5`.
    """
    base, wanted = _BASE.search(span), _BASE.search(answer)
    if base is not None and base[1] != (wanted[1] if wanted is not None else None):
        return True
    numbers = {grading.parse_number(side) for side in span.split("=")} - {None}
    return len(numbers) > 1 or _DOLLAR.search(span) is not None


def _depth(latex: str) -> int:
    """How deep brackets of any kind are nested, closed or not."""
    steps = ((c in "{([") - (c in "])}") for c in latex)
    return max(itertools.accumulate(steps), default=0)


def is_verified(answer: str, span: str) -> bool:
    """Whether math-verify finds `span` equal to `answer`.

    Raises:
        TimeoutError: it took too long.
        MemoryError: it took too much memory.
        ValueError: not called in a main thread.
    """
    from math_verify.errors import TimeoutException

    # Refuses another thread now; below, the library's refusal would pass for a wrong answer.
    signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGALRM) or signal.SIG_DFL)
    try:
        # The gold side comes first: the comparison is not symmetric.
        sides = itertools.product(_parsed(answer.strip()), _parsed(span.strip()))
        return any(_are_equal(gold, found) for gold, found in sides)
    except TimeoutException as error:
        raise TimeoutError(f"comparing {span[:80]!r} with {answer[:80]!r}") from error


def _are_equal(gold: Any, found: Any) -> bool:
    """Whether math-verify finds one reading equal to another.

    What says nothing about them is raised and never False: a timeout, too little memory.
    """
    import math_verify

    try:
        return math_verify.verify(gold, found, timeout_seconds=_TIMEOUT_S, raise_on_error=True)
    except MemoryError:
        raise
    except Exception:  # Of any kind: sympy was not made for such formulas. A timeout is no such.
        return False


@functools.lru_cache(maxsize=1024)
def _parsed(latex: str) -> list[Any]:
    """What math-verify reads in a piece of LaTeX; the responses of a group have few answers."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify.parse(
        f"${latex}$",
        [math_verify.LatexExtractionConfig()],
        parsing_timeout=_TIMEOUT_S,
        raise_on_error=True,
    )
