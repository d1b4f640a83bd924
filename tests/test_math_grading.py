"""LaTeX answers are right by their value, and only in the one span that counts."""

import concurrent.futures
import signal

import pytest

from asympo_jax.tasks import math_grading


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A busy machine must not turn a right answer into a timeout."""
    monkeypatch.setattr(math_grading, "_TIMEOUT_S", 600)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("\\boxed{5}", "5"),
        ("so $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{3}}", "3"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("\\boxed 7", "7"),
        ("\\boxed7", "7"),
        ("\\fbox{x}", "x"),
        ("\\boxed {x}", "x"),
        ("\\boxed{ \\{1, 2\\} }", "\\{1, 2\\}"),
        ("\\boxed{\\text{a \\} b}}", "\\text{a \\} b}"),
        ("#### 5", "5"),
        ("\\boxed{1}\n#### 5", "1"),
        ("\\boxed{5}\n\n#### Check\nok", "5"),
        ("\\boxed{5}. I used \\boxed above", "5"),
        ("\\boxed " * 9 + "\\boxed{5}" + "\\boxed " * 9, None),
        ("#### 5\n\\boxed{1}", "1"),
        ("#### \\boxed{1}", "1"),
        ("\\boxed{}", ""),
        ("\\boxed{5", None),
        ("\\boxed{1} \\boxed{2", None),
        ("\\boxed{\\frac{1}{2}", None),
        ("\\boxed", None),
        ("\\boxed{" + "9" * 401 + "}", None),
        ("\\boxed{" + "9" * 400 + "}", "9" * 400),
        ("\\boxed{" * 2_000_000, None),
        ("{" * 5_000_000 + "}" * 5_000_000, None),
        ("5", None),
        ("", None),
    ],
)
def test_only_the_last_box_or_mark_counts(text, span):
    assert math_grading.final_span(text) == span


RIGHT = [
    ("\\frac{1}{2}", "\\frac12"),
    ("\\frac{1}{2}", "0.5"),
    ("\\frac{1}{2}", "\\dfrac{2}{4}"),
    ("\\sqrt{8}", "2\\sqrt{2}"),
    ("(1, 2)", "\\left(1, 2\\right)"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("\\{1, 2\\}", "\\{2, 1\\}"),
    ("10", "10 \\text{ cm}"),
    ("1,000", "1000"),
    ("x=5", "5"),
    ("\\pi", "\\pi"),
    ("\\text{Evelyn}", "\\text{Evelyn}"),
    ("5", "\\boxed{5}"),
    ("5", "5\\text{ cm}"),
    ("5\\text{ cm}", "5"),
    ("5", "\\mathrm{5}"),
    ("5", "+5"),
    ("5", "5."),
    ("5", "y = x = 5"),
    ("x = 5", "5"),
    ("5", "|-5|"),
    ("120", "5!"),
    ("\\$5", "5"),
    ("5", "\\$5"),
    ("50", "50\\%"),
    ("50\\%", "0.5"),
    ("0.5", "50\\%"),
    ("1000", "1{,}000"),
    ("90", "90^\\circ"),
    ("2\\frac{1}{2}", "2.5"),
    ("-\\frac{1}{2}", "\\frac{-1}{2}"),
    ("\\frac{3}{4}", "3/4"),
    ("\\frac{1}{3}", "0.3333333333"),
    ("[0, 1)", "\\left[0, 1\\right)"),
    ("x > 5", "5 < x"),
    ("1 < x < 2", "(1, 2)"),
    ("5, 6", "6, 5"),
    ("\\{1, 2\\}", "1, 2"),
    ("4210_{5}", "4210_5"),
    ("2516_8", "2516"),
    ("5", "x = 2 + 3 = 5"),
    ("\\text{(A)}", "A"),
    ("\\text{no solution}", "\\text{No solution}"),
    (
        "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
        "\\begin{pmatrix} 1 \\\\ \\frac{4}{2} \\end{pmatrix}",
    ),
]
WRONG = [
    ("2516_8", "2516_9"),
    ("10", "10_2"),
    ("5", "5_{6}"),
    ("5", "6=5"),
    ("6", "x=5=6"),
    ("6", "5$ $6"),
    ("\\frac{1}{2}", "\\frac{1}{3}"),
    ("10", "100"),
    ("(1, 2)", "(2, 1)"),
    ("\\text{Evelyn}", "\\text{Carla}"),
    ("x+1", "y+1"),
    ("5", "\\text{five}"),
    ("2", "1 + "),
    ("2", "\\frac{"),
    ("2", "$2$ or $3$"),
    ("2", "__import__('os').system('touch HACKED')"),
    ("2", "\\input{/etc/passwd}"),
    ("2", "(" * 150 + ")" * 150),
    ("2", "{" * 100 + "2" + "}" * 100),
    ("2", "\\sqrt{" * 50 + "2" + "}" * 50),
    ("2", "\\sqrt" * 60 + "2"),
    ("2", "9**9**9"),
    ("2", "1e999"),
    ("2", "NaN"),
    ("2", "\\frac{1}{0}"),
    ("\\infty", "-\\infty"),
    ("5", "\u0665"),
    ("5", "\uff15"),
    ("5", "5\u200b"),
    ("5", "\u200b5"),
    ("5", "-5"),
    ("5", "5 or 6"),
    ("6", "5 or 6"),
    ("5", "5 \\text{ or } 6"),
    ("6", "5 \\text{ or } 6"),
    ("5", "5, 6"),
    ("6", "5, 6"),
    ("5", "\\{5, 6\\}"),
    ("5", "5 \\\\ 6"),
    ("5", "5 \\pm 1"),
    ("5", "\\neq 5"),
    ("5", "\\text{not } 5"),
    ("5", "5 $ or $ 6"),
    ("6", "5 $ or $ 6"),
    ("\\frac{1}{3}", "0.333"),
    ("\\pi", "3.14"),
    ("0", "10^{-20}"),
    ("[0, 1)", "[0, 1]"),
    ("[0, 1)", "(0, 1)"),
    ("x > 5", "x \\ge 5"),
    ("(1, 2)", "1 < x < 2"),
    (
        "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
        "\\begin{pmatrix} 1 & 3 \\\\ 2 & 4 \\end{pmatrix}",
    ),
    ("9999999999999999999999999", "9999999999999999999999998"),
]
HEDGES = [
    "5 $$ 6",
    "6 $$ 5",
    "5$ $6",
    "5 \\quad 6",
    "6 \\approx 5",
    "5 \\text{ (or 6)}",
    "x=5, x=6",
]


@pytest.mark.parametrize(("answer", "span"), RIGHT)
def test_an_answer_of_the_same_value_earns_1(answer, span):
    assert math_grading.grade_latex(f"So $\\boxed{{{span}}}$.", answer) == 1.0


@pytest.mark.parametrize(("answer", "span"), WRONG)
def test_any_other_answer_earns_0(answer, span):
    assert math_grading.grade_latex(f"So \\boxed{{{span}}}.", answer) == 0.0


def test_nothing_of_a_response_is_evaluated_as_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attack = "[].__class__.__base__ + open('HACKED', 'w').write('x')"
    for text in (attack, f"\\text{{{attack}}}", "__import__('os').mkdir('HACKED')"):
        math_grading.grade_latex(f"\\boxed{{{text}}}", "2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("span", HEDGES)
def test_one_response_is_not_right_for_two_answers(span):
    grades = [math_grading.grade_latex(f"\\boxed{{{span}}}", answer) for answer in ("5", "6")]
    assert sum(grades) <= 1.0


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" + "9" * 10_000_000 + "}",
        "\\boxed{" + "\\sqrt{" * 10_000 + "2" + "}" * 10_001,
        "#### " + "9" * 10_000_000,
        "\\boxed{2" + " " * 10_000_000 + "}",
        "\\boxed{" + "{" * 9 + "2" + "}" * 9 + "}",
        "#### " + "(" * 9 + "2",
    ],
)
def test_a_huge_or_deep_answer_earns_0_and_is_not_read(monkeypatch, text):
    monkeypatch.setattr(math_grading, "is_verified", lambda *pair: pytest.fail("was read"))
    assert math_grading.grade_latex(text, "2") == 0.0


@pytest.mark.parametrize("late", ["the answer", "the span", "the comparison"])
def test_what_takes_too_long_is_neither_right_nor_wrong(monkeypatch, late):
    alarms = iter(["the answer", "the span", "the comparison"])

    def alarm(seconds):
        if seconds and next(alarms) == late:
            signal.raise_signal(signal.SIGALRM)

    before = signal.getsignal(signal.SIGALRM)
    math_grading._parsed.cache_clear()
    monkeypatch.setattr(signal, "alarm", alarm)
    try:
        with pytest.raises(TimeoutError, match="comparing"):
            math_grading.grade_latex("\\boxed{x^2}", "\\sqrt{x}")
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_grading_outside_of_the_main_thread_is_refused_and_not_wrong():
    assert math_grading.grade_latex("\\boxed{\\frac{1}{2}}", "\\frac{2}{4}") == 1.0  # and is kept
    with concurrent.futures.ThreadPoolExecutor() as threads:
        grading = threads.submit(math_grading.grade_latex, "\\boxed{\\frac{1}{2}}", "\\frac{2}{4}")
        with pytest.raises(ValueError, match="main thread"):
            grading.result()


def test_an_answer_of_a_data_set_may_be_nested_deeper_than_a_response():
    answer = "{" * 9 + "5" + "}" * 9
    assert math_grading.grade_latex("\\boxed{" + answer + "}", answer) == 1.0


def test_equal_texts_and_numbers_need_no_library(monkeypatch):
    monkeypatch.setattr(math_grading, "is_verified", lambda *pair: pytest.fail(str(pair)))
    assert math_grading.grade_latex("\\boxed{\\odd thing}", "\\odd thing") == 1.0
    assert math_grading.grade_latex("\\boxed{1,000.0}", "1000") == 1.0
    assert math_grading.grade_latex("\\boxed{3}", "2") == 0.0
    assert math_grading.grade_latex("\\boxed{}", "") == 0.0


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("so \\boxed{0.5}", "1/2"),
        ("#### 1/2", "1/2"),
        ("\\boxed{ x^2 +\n 1 }", "x^2 + 1"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),  # no number here: it votes alone
        ("\\boxed{}", None),
        ("5", None),
    ],
)
def test_equal_numbers_and_equal_texts_vote_together(text, key):
    assert math_grading.vote(text) == key


def test_too_little_memory_says_nothing_about_an_answer(monkeypatch):
    import math_verify

    def fail(*given, **more):
        raise MemoryError

    monkeypatch.setattr(math_verify, "verify", fail)
    with pytest.raises(MemoryError):
        math_grading.is_verified("x+1", "1+x")
