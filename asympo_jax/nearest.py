"""What a person may have meant by a name that there is not."""

import difflib
from collections.abc import Iterable


def hint(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'asympo'?)`, with the most similar of the names there are; empty if none."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
