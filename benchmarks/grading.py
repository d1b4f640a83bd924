"""How fast and how well answers are graded: gold solutions, and answers of other problems.

    python benchmarks/grading.py --data=DIR

DIR holds gsm8k/test.jsonl of https://github.com/openai/grade-school-math and math/math500.jsonl,
MATH-500 with `problem`, `solution` and `answer`. Gold: each published solution is graded against
its own answer. Shuffled: each answer, in a box or after `####`, is graded against the answer of
another problem; pairs of one value are left out by a rule of this script alone. `cold` is the first
pass of a process, in which the grammar's tables and sympy are made; before the other one the caches
of what was read and computed are emptied again. `math-verify` are the same pairs given to
math-verify alone, without the comparisons of texts and numbers that come first. `pool` are the gold
solutions through a pool of one process. Checks a second are of one core: of CPU time, and of wall
time for the pool.
Prints a table and, as its last line, JSON.
"""

import argparse
import json
import pathlib
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib import metadata

from asympo_jax.runtime.reward_pool import RewardPool, RewardSource
from asympo_jax.tasks import grading, math_grading
from asympo_jax.types import GradingFailure, Prompt

Pair = tuple[str, str]  # a response or a span, and the answer that is right


def main() -> int:
    """Grades everything and prints; 1 if a gold solution is wrong or a shuffled answer right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=pathlib.Path, help="folder of the files")
    parser.add_argument("--limit", type=int, default=None, help="problems of each (all)")
    options = parser.parse_args()
    words = _rows(options.data / "gsm8k/test.jsonl", options.limit)
    gsm8k_gold = [(r["answer"], grading.final_answer(r["answer"]) or "") for r in words]
    wrong, gsm8k_left_out = shuffled([answer for _, answer in gsm8k_gold])
    gsm8k_off = [(f"#### {span}", answer) for span, answer in wrong]
    formulas = _rows(options.data / "math/math500.jsonl", options.limit)
    math_gold = [(row["solution"], row["answer"]) for row in formulas]
    others, math_left_out = shuffled([answer for _, answer in math_gold])
    math_off = [(f"\\boxed{{{span}}}", answer) for span, answer in others]
    spans = [(math_grading.final_span(text) or "", answer) for text, answer in math_gold]
    math_grading.is_verified("1", "2")  # imports
    found = {
        "gsm8k gold": measure(grading.grade_number, gsm8k_gold),
        "gsm8k shuffled": measure(grading.grade_number, gsm8k_off),
        "math gold": measure(math_grading.grade_latex, math_gold),
        "math shuffled, cold": measure(math_grading.grade_latex, math_off),
        "math shuffled": measure_again(math_grading.grade_latex, math_off),
        "math-verify gold": measure(_verified, spans),
        "math-verify shuffled": measure(_verified, others),
        "math gold, pool": measure_pool(math_gold),
    }
    print(f"pairs of one value left out: {gsm8k_left_out} of GSM8K, {math_left_out} of MATH-500")
    print(f"{'':22}{'checks':>8}{'right':>10}{'timeouts':>10}{'a second':>12}")
    for name, row in found.items():
        print(
            f"{name:22}{row['checks']:>8}{100 * row['right'] / row['checks']:>8.1f} %"
            f"{row['timeouts']:>10}{row['per_s']:>12.0f}"
        )
    is_exact = all(
        row["right"] == (row["checks"] if "gold" in name else 0)
        for name, row in found.items()
        if not name.startswith("math-verify")
    )
    print(json.dumps({"benchmark": "grading", "exact": is_exact, **found, "machine": _machine()}))
    return 0 if is_exact else 1


def shuffled(answers: list[str]) -> tuple[list[Pair], int]:
    """Each answer with that of a problem half the list away: (wrong, right), and how many are left.

    Left out are pairs of one value, by `normal_form`, which has nothing of the graders in it.
    """
    half = len(answers) // 2
    pairs = list(zip(answers[half:] + answers[:half], answers, strict=True))
    kept = [pair for pair in pairs if normal_form(pair[0]) != normal_form(pair[1])]
    return kept, len(pairs) - len(kept)


def normal_form(answer: str) -> str | Fraction:
    """An answer without spelling: a fraction where it is a number, else its text.

    Dropped are what is before `=`, words and units, dollars, percent, degrees, and all spaces.
    """
    answer = answer.rpartition("=")[2].replace("dfrac", "frac").replace("tfrac", "frac")
    answer = re.sub(r"\\text\{[^}]*\}(?=.)|(?<=[0-9])\\text\{[^}]*\}", "", answer)
    answer = re.sub(r"\\left|\\right|\\[!,;$% ]|\^\{?\\circ\}?|[$%\s]", "", answer)
    number = re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2", answer)
    try:
        return Fraction(number.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return answer


def measure(grade: Callable[[str, str], float], pairs: Sequence[Pair]) -> dict[str, float]:
    """Counts and speed of a grader."""
    right = timeouts = 0
    start = time.process_time()
    for text, answer in pairs:
        try:
            right += grade(text, answer) == 1.0
        except TimeoutError:
            timeouts += 1
    seconds = time.process_time() - start
    return {
        "checks": len(pairs),
        "right": right,
        "timeouts": timeouts,
        "per_s": round(len(pairs) / seconds, 1),
    }


def measure_again(grade: Callable[[str, str], float], pairs: Sequence[Pair]) -> dict[str, float]:
    """`measure`, as if none of the pairs had been seen, though others like them."""
    from sympy.core.cache import clear_cache

    math_grading._parsed.cache_clear()
    clear_cache()
    return measure(grade, pairs)


def measure_pool(pairs: Sequence[Pair]) -> dict[str, float]:
    """Counts and speed of a pool of one process, its start excluded."""
    source = RewardSource("arithmetic", {}, "asympo_jax.tasks.math_grading:grade_prompt")
    pool = RewardPool(source, num_processes=1, deadline_s=30.0)
    asked = [(Prompt(i, "", answer), text) for i, (text, answer) in enumerate(pairs)]
    pool.grade("reward", asked[:1])
    start = time.monotonic()
    graded = pool.grade("reward", asked)
    seconds = time.monotonic() - start
    pool.close()
    return {
        "checks": len(pairs),
        "right": sum(one.value == 1.0 for one in graded),
        "timeouts": sum(one.failure == GradingFailure.TIMEOUT for one in graded),
        "per_s": round(len(pairs) / seconds, 1),
    }


def _verified(span: str, answer: str) -> float:
    """1 where math-verify alone finds the two equal."""
    return float(math_grading.is_verified(answer, span))


def _rows(path: pathlib.Path, limit: int | None) -> list[dict]:
    """The rows of a file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][:limit]


def _machine() -> dict[str, str]:
    """Versions and processor."""
    packages = ("math-verify", "sympy")
    versions = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "processor": platform.machine(), **versions}


if __name__ == "__main__":
    sys.exit(main())
