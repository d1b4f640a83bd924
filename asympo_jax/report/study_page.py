"""One page of HTML about a sweep: the table, the pictures, and every run with its own page."""

import json
import os
import pathlib
import urllib.parse
from collections.abc import Iterable, Mapping

from asympo_jax.report import study_table
from asympo_jax.report.grid import Grid, name_of, text_of
from asympo_jax.report.markup import document, picture, table, text
from asympo_jax.report.study import Outcome

_OPEN_RUNS = 30  # so many are shown without being asked for
_ALTERNATIVES = {
    "curves.png": "Accuracy on held-out prompts over learner updates",
    "nll.png": "Negative log-probability of responses with positive and negative advantage",
    "balance.png": "Sum of what positive and negative responses put into the loss",
}


def render(
    grid: Grid, pictures: Mapping[str, bytes], directory: pathlib.Path, out: pathlib.Path
) -> str:
    """The page.

    Args:
        grid: of the table.
        pictures: file name -> PNG.
        directory: the results of the sweep, beside which its runs may lie.
        out: where the page will be, for addresses of other pages.
    """
    title = study_table.heading(grid)
    subtitle = text(study_table.subtitle(grid))
    columns, rows = study_table.as_rows(grid)
    notes = " · ".join(study_table.notes(grid))
    parts = [
        f"<h1>{text(title)}</h1><p class=faint>{subtitle}</p>",
        "<div class=sweep>",
        table(columns[1:], rows, corner=columns[0]),
        f"<p class=faint>{text(notes)}</p>",
        "<h2>What happened</h2>",
        *(
            picture(content, _ALTERNATIVES.get(name, f"Final accuracy by {name_of(grid.field)}"))
            for name, content in pictures.items()
        ),
        *_runs(grid, directory.absolute().parent, out.absolute()),
        "</div>",
    ]
    return document(title, parts)


def _runs(grid: Grid, workdir: pathlib.Path, out: pathlib.Path) -> Iterable[str]:
    """Every run that ended, and the address of its page where it has one."""
    study = grid.study
    head = "".join(
        f"<th scope=col>{text(name_of(name))}</th>" for name in (*study.axes, "accuracy")
    )
    body = []
    for key, outcome in study.outcomes.items():
        cells = "".join(f"<td>{text(text_of(value))}</td>" for value in json.loads(key))
        ending = f"{outcome.accuracy:.3f}" if outcome.accuracy is not None else outcome.failure
        address = _address(outcome, workdir, out)
        words = text(ending) if address is None else f'<a href="{text(address)}">{text(ending)}</a>'
        body.append(f"<tr>{cells}<td class=text>{words}</td></tr>")
    yield (
        f"<h2>Every run</h2><details{' open' if len(body) <= _OPEN_RUNS else ''}>"
        f"<summary>{len(body)} runs</summary>"
        "<p class=faint>The accuracy of a run is a link to its page where python -m "
        "asympo_jax.report made one in the run's directory.</p>"
        f"<div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div></details>"
    )


def _address(outcome: Outcome, workdir: pathlib.Path, out: pathlib.Path) -> str | None:
    """Of the page of a run, relative to this one; None where there is none."""
    if outcome.directory is None:
        return None
    page = workdir / outcome.directory / "report" / "report.html"
    # Whatever the results say, also what is no name of a file.
    return urllib.parse.quote(os.path.relpath(page, out)) if os.path.isfile(page) else None
