"""For mkdocs: what a page links to in the repository beside docs/ is named by its path.

The pages are read in the repository, too, where such links lead somewhere; a site has no such file.
"""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page's text; a link out of docs/ becomes its words, and its path if they are no name."""
    return _OUTSIDE.sub(_named, markdown)


def _named(match: re.Match[str]) -> str:
    """The words of one link."""
    words, path = match.groups()
    return words if words.startswith("`") else f"{words} (`{path}`)"
