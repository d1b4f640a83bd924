"""Untrusted text, such as a model's, so that a terminal or a browser shows it and obeys nothing."""

import unicodedata

# Control and format characters (the order of writing among them), halves of characters, and
# separators that a terminal may take for the end of a line.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str, kept: str = "") -> str:
    r"""Text with characters such as escape written out (`\x1b`), but for those in `kept`."""
    return "".join(
        one.encode("unicode_escape").decode()
        if unicodedata.category(one) in _HIDDEN and one not in kept
        else one
        for one in text
    )
