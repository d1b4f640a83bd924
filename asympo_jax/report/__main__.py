"""Compares runs, finished or not.

    python -m asympo_jax.report runs/spo runs/quickstart/asympo --out=runs/report

Prints a row a run and writes `report.html`, a page that opens anywhere, `curves.png`, `report.json`
and `trace.json`, for Perfetto, for one run into its own `report/`, for several into the `report/`
of the folder that holds them all. Of a sweep, DIR is its workdir or the results in it; table, page
and pictures then average over seeds and are written into the `report/` of the results, the table as
`table.md`, too. It only reads files, so it needs no device and disturbs no run at work.

Exit codes: 0 done · 2 wrong input.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from asympo_jax.printable import visible
from asympo_jax.report import figures, grid, study, study_figures, study_page, study_table
from asympo_jax.report.details import Details, load_details
from asympo_jax.report.page import render
from asympo_jax.report.records import load_run
from asympo_jax.report.table import FOOTNOTE, Row, format_table, make_row
from asympo_jax.report.times import chrome_trace


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the runs, prints the table, writes the files; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=globals().get("PROGRAM", "python -m asympo_jax.report"),  # `asympo` gives its own
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directories",
        metavar="DIR",
        nargs="+",
        help="directory of a run, of several, or of a sweep",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where to write; default: report/ in or beside the runs"
    )
    parsed = parser.parse_args(arguments)
    given = [pathlib.Path(path) for path in parsed.directories]
    try:
        found = [path for path in map(study.find, given) if path is not None]
        if found:
            return _report_study(given, found[0], parsed.out)
        return _report_runs(given, parsed.out)
    except ValueError as error:
        sys.stderr.write(f"error: {visible(' '.join(str(error).split()))}\n")
        return 2


def _report_runs(given: Sequence[pathlib.Path], out_given: str | None) -> int:
    """The report of single runs."""
    directories = list(dict.fromkeys(run for path in given for run in _runs_in(path)))
    names, home = _names(directories)
    out = pathlib.Path(out_given) if out_given else home / "report"
    runs = [load_run(*pair) for pair in zip(directories, names, strict=True)]
    rows = [make_row(run) for run in runs]
    details = [load_details(*pair) for pair in zip(directories, runs, strict=True)]
    files = _write(rows, details, out)
    table = visible(format_table(rows), kept="\n")  # names may be of a run that somebody sent
    sys.stdout.write(
        f"{table}\n{FOOTNOTE}written: {out / files[0]} and {', '.join(files[1:])} beside it\n"
    )
    return 0


def _report_study(
    given: Sequence[pathlib.Path], directory: pathlib.Path, out_given: str | None
) -> int:
    """The report of a sweep."""
    if len(given) > 1:
        raise ValueError(f"{directory}: is a sweep, and a sweep is reported alone")
    out = pathlib.Path(out_given) if out_given else directory / "report"
    loaded = study.load_study(directory)
    table = grid.make_grid(loaded, grid.table_field(loaded))
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text(study_table.format_markdown(table))
        data = json.dumps(study_table.as_data(table), indent=2)
        (out / "report.json").write_text(data + "\n")
        drawn = study_figures.draw(grid.make_grid(loaded, grid.picture_field(loaded)), out)
        pictures = {name: (out / name).read_bytes() for name in drawn}
        page = study_page.render(table, pictures, directory, out)
        (out / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror})") from error
    files = ", ".join(["report.html", "table.md", "report.json", *drawn])
    sys.stdout.write(f"{study_table.format_text(table)}\nwritten into {out}: {files}\n")
    return 0


def _runs_in(directory: pathlib.Path) -> list[pathlib.Path]:
    """The directory itself, or if it is no run's, those of the runs directly in it."""
    if (directory / "metrics.jsonl").exists():
        return [directory]
    return sorted(path.parent for path in directory.glob("*/metrics.jsonl")) or [directory]


def _names(directories: Sequence[pathlib.Path]) -> tuple[list[str], pathlib.Path]:
    """Names that tell the runs apart, and the folder that holds what is written about them."""
    if len(directories) == 1:
        return [directories[0].resolve().name], directories[0]
    paths = [directory.resolve() for directory in directories]
    return [_ending(path, paths) for path in paths], pathlib.Path(os.path.commonpath(paths))


def _ending(path: pathlib.Path, paths: Sequence[pathlib.Path]) -> str:
    """The last parts of a path, as few as no other one of `paths` ends in."""
    for num in range(1, len(path.parts)):
        ending = path.parts[-num:]
        if [other.parts[-num:] for other in paths].count(ending) == 1:
            return "/".join(ending)
    return str(path)


def _write(rows: Sequence[Row], details: Sequence[Details], out: pathlib.Path) -> list[str]:
    """Writes the page, the picture, the numbers and the trace; returns the names of the files."""
    data = {"runs": [dataclasses.asdict(row) for row in rows]}
    timed = [(one.run.name, one.spans) for one in details if one.spans]
    trace = "trace.json" if timed else None
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(json.dumps(data, indent=2) + "\n")
        figures.draw([one.run for one in details], out / "curves.png")
        if trace:
            (out / trace).write_text(json.dumps(chrome_trace(timed)) + "\n")
        (out / "report.html").write_text(render(rows, details, trace), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror})") from error
    return ["report.html", "curves.png", "report.json", *([trace] if trace else [])]


if __name__ == "__main__":
    sys.exit(main())
