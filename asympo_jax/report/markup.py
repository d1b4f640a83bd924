"""The parts of a page of HTML that needs nothing else: no network, no script, pictures inside.

Everything that comes from a run is escaped: prompts and answers are whatever a model wrote.
"""

import base64
import html
import pathlib
from collections.abc import Iterable, Sequence

from asympo_jax.printable import visible

_STYLE = pathlib.Path(__file__).with_name("page.css")
# Not even a script or an address that got past the escaping would be followed.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, parts: Iterable[str]) -> str:
    """The page of these parts."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{_STYLE.read_text()}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def text(value: object, kept: str = "") -> str:
    """Anything as text that is shown as it is."""
    return html.escape(visible(str(value), kept))


def picture(content: bytes, alternative: str) -> str:
    """A PNG within the page."""
    data = base64.b64encode(content).decode()
    return f'<figure><img alt="{text(alternative)}" src="data:image/png;base64,{data}"></figure>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], corner: str = "") -> str:
    """Rows of a name and its values, below the names of the columns; all are text to be escaped.

    A row of a name alone is a title of those below it.
    """
    head = "".join(f"<th scope=col>{text(name)}</th>" for name in columns)
    body = "".join(_row(row, 1 + len(columns)) for row in rows)
    return (
        f"<div class=scroll><table><thead><tr><td>{text(corner)}</td>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[str], width: int) -> str:
    """A row of a table."""
    name, *values = row
    if not values:
        return f"<tr><th scope=rowgroup colspan={width}>{text(name)}</th></tr>"
    cells = "".join(f"<td>{text(value)}</td>" for value in values)
    return f"<tr><th scope=row>{text(name)}</th>{cells}</tr>"
