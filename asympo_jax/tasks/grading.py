"""Exact comparison of final answers that are numbers.

Decisions. Only what follows the last `####` counts, up to the end of its line: a response that
names several numbers gets no credit for one of them. Numbers are compared as fractions, so `0.5`,
`1/2` and `.50` are one answer and `0.5000001` is another. The grammar is a closed one and nothing
is evaluated: what does not match is wrong, never a guess and never an error.
"""

import re
from fractions import Fraction

MARK = "####"

# Longer spans are no answer. Also bounds the work on hostile text: all else is a linear search.
_MAX_CHARACTERS = 64

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    rf"\$? ?(?P<sign>[-+]?) ?\$? ?"
    rf"(?:(?P<top>{_WHOLE}) ?/ ?(?P<bottom>{_WHOLE})|(?P<decimal>{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+))"
    rf" ?[$%]?\.?"
)


def final_answer(text: str, max_characters: int = _MAX_CHARACTERS) -> str | None:
    """The span after the last `####`, to the end of that line, stripped; None where there is none.

    A span of more than `max_characters` counts as none.
    """
    mark = text.rfind(MARK)
    if mark < 0:
        return None
    start = mark + len(MARK)
    span, newline, _ = text[start : start + max_characters + 1].partition("\n")
    if not newline and len(span) > max_characters:
        return None
    return span.strip()


def parse_number(span: str) -> Fraction | None:
    """The exact value of a span that is one number and nothing else; None for any other.

    Read: an optional sign (`-`, `+` or U+2212), ASCII digits, commas between groups of three, a
    decimal part, or a fraction of two whole numbers. Dropped: `$` before or after, `%` after (in
    these problems `50%` is the answer 50), one final period. Refused: other units and words (`5
    dozen` is not 5), exponents, mixed numbers, other digits than ASCII, NaN and infinities, a
    denominator of 0, more than 64 characters.
    """
    if len(span) > _MAX_CHARACTERS:
        return None
    match = _NUMBER.fullmatch(span.strip().replace("\u2212", "-"))
    if match is None:
        return None
    if match["decimal"] is not None:
        value = Fraction(match["decimal"].replace(",", ""))
    else:
        bottom = int(match["bottom"].replace(",", ""))
        if bottom == 0:
            return None
        value = Fraction(int(match["top"].replace(",", "")), bottom)
    return -value if match["sign"] == "-" else value


def vote(text: str) -> str | None:
    """The final answer of `text` in lowest terms, `1/2` for `0.5`; None where it is no number."""
    number = parse_number(final_answer(text) or "")
    return None if number is None else str(number)


def grade_number(text: str, answer: str) -> float:
    """1 if the final answer of `text` equals `answer` exactly, else 0.

    Args:
        text: a response; any text, of any size.
        answer: the number that is right, in the grammar of `parse_number`.

    Raises:
        ValueError: `answer` is not a number; nothing about `text` raises.
    """
    expected = parse_number(answer)
    if expected is None:
        raise ValueError(f"answer must be a number, got {answer[:80]!r}")
    span = final_answer(text)
    return float(span is not None and parse_number(span) == expected)
