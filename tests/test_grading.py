"""The grader of numbers gives credit to exactly the right value, and survives any text."""

from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import pytest

from asympo_jax.tasks import grading

SETTINGS = hypothesis.settings(deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("span", "value"),
    [
        ("18", 18),
        (" 18 ", 18),
        ("18.", 18),
        ("018", 18),
        ("18.00", 18),
        ("$18", 18),
        ("$ 18.50", Fraction(37, 2)),
        ("-$5", -5),
        ("$-5", -5),
        ("- 5", -5),
        ("+5", 5),
        ("\u22125", -5),
        ("-0", 0),
        ("5$", 5),
        ("50%", 50),
        ("50 %.", 50),
        ("1,234", 1234),
        ("1,234,567.5", Fraction(2469135, 2)),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("-2 / 4", Fraction(-1, 2)),
        ("1,000/2,000", Fraction(1, 2)),
        ("9" * 64, 10**64 - 1),
    ],
)
def test_a_number_is_read_exactly(span: str, value: Fraction | int):
    assert grading.parse_number(span) == value


@pytest.mark.parametrize(
    "span",
    [
        "",
        "-",
        "$",
        "%",
        ".",
        ",",
        "18..",
        "1.2.3",
        "1,23",
        "12,34,567",
        ",123",
        "1,,234",
        "1234,567",
        "1 234",
        "1 1/2",
        "1/0",
        "0/0",
        "1/2/3",
        "1/-2",
        "0.5/2",
        "--5",
        "5-",
        "5 dozen",
        "18 dollars",
        "18 or 19",
        "x18",
        "x = 18",
        "5+13",
        "9**9**9",
        "9" * 65,
        "1e3",
        "1e999999999",
        "0x12",
        "1_000",
        "nan",
        "inf",
        "-Infinity",
        "True",
        "__import__('os')",
        "\u0661\u0668",  # Arabic-Indic digits, of which int() makes 18
        "\uff11\uff18",  # full-width digits
        "\u00bd",
        "\u00b2",
        "18\u200b",
        "18\x00",
        "18\n19",
    ],
)
def test_whatever_is_not_one_number_is_no_number(span: str):
    assert grading.parse_number(span) is None


@pytest.mark.parametrize(
    "text",
    [
        "#### 18",
        "####18",
        "##### 18",
        "9 + 9 = 18.\n#### 18",
        "9 + 9 = 18.\n#### 18\n",
        "#### 18\r\n",
        "#### 18\nThat was easy: 19.",
        "#### 17\nNo.\n#### 18",
        "#### 17 #### 18",
        "#### $18.00.",
        "#### 36/2",
        "####" + " " * 60 + "18",
    ],
)
def test_the_last_marked_span_that_equals_the_answer_earns_1(text: str):
    assert grading.grade_number(text, "18") == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "18",
        "### 18",
        "#### ",
        "####",
        "####\n18",
        "#### 18 ####",
        "#### 18\n####",
        "#### 18\n#### 19",
        "#### 1",
        "#### 180",
        "#### -18",
        "#### 18.0000001",
        "#### 17.9999999999999999999999999999",
        "#### 18 19",
        "#### 18, 19",
        "#### 18 or 19",
        "#### 18 dollars",
        "#### 18e0",
        "####" + " " * 100 + "18",
        "####" + " " * 63 + "180",
        "####18" + " " * 100,
        "#### \ud83d18",
    ],
)
def test_every_other_text_earns_0(text: str):
    assert grading.grade_number(text, "18") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "#### " + "9" * 10_000_000,
        "#### " + "1/" * 5_000_000,
        "#### " + "1,111" * 2_000_000,
        "####" * 2_500_000,
        "#" * 10_000_000,
        "#### " + " " * 10_000_000 + "18",
        "\n" * 10_000_000,
        "#### 1\n" * 1_400_000 + "#### 19",
    ],
    ids=["digits", "slashes", "commas", "marks", "hashes", "spaces", "newlines", "lines"],
)
def test_ten_megabytes_of_hostile_text_are_just_wrong(text: str):
    assert grading.grade_number(text, "18") == 0.0


def test_a_text_of_ten_megabytes_can_be_right():
    assert grading.grade_number("9 + 9\n" * 1_700_000 + "#### 18", "18") == 1.0


@SETTINGS
@hypothesis.given(st.text(), st.sampled_from(["18", "-3", "1,000", "0.25"]))
def test_no_text_raises(text: str, answer: str):
    assert grading.grade_number(text, answer) in (0.0, 1.0)
    assert grading.grade_number(f"#### {text}", answer) in (0.0, 1.0)


@pytest.mark.parametrize("answer", ["", "eighteen", "#### 18", "nan"])
def test_an_answer_that_is_no_number_is_an_error_and_not_a_wrong_response(answer: str):
    with pytest.raises(ValueError, match="answer must be a number"):
        grading.grade_number("#### 18", answer)


@SETTINGS
@hypothesis.given(
    st.integers(-(10**18), 10**18),
    st.sampled_from(["{}", "{:,}", "{}.", "{:,}.00", "{}%", "{} %.", "${}", "$ {:,}.", "{}/1"]),
)
def test_every_way_to_write_an_integer_is_that_integer(value: int, form: str):
    written = form.format(value)
    assert grading.parse_number(written) == value
    assert grading.grade_number(f"So it is.\n#### {written}\n", str(value)) == 1.0
    assert grading.grade_number(f"So it is.\n#### {written}\n", str(value + 1)) == 0.0


@SETTINGS
@hypothesis.given(st.decimals(-(10**9), 10**9, places=4))
def test_a_decimal_and_its_fraction_are_one_answer(value):
    exact = Fraction(value)
    assert grading.parse_number(f"{value:f}") == exact
    assert grading.parse_number(f"{value:,f}") == exact
    assert grading.grade_number(f"#### {exact.numerator}/{exact.denominator}", f"{value:f}") == 1.0


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("#### 0.50", "1/2"),
        ("#### 1/2\n", "1/2"),
        ("#### $1,000.", "1000"),
        ("12", None),
        ("#### five", None),
        ("####", None),
    ],
)
def test_equal_numbers_vote_together_and_what_is_no_number_does_not_vote(text, key):
    assert grading.vote(text) == key
