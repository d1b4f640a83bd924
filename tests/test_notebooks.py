"""The notebooks: what is committed is what their sources say, and every cell of them runs."""

import json
import pathlib
import sys

import pytest
from tiny_runs import Runner

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))

Cell = tuple[str, str]


def source_cells(name: str) -> list[Cell]:
    """Kind and text of the cells of a percent source."""
    _, *parts = (FOLDER / f"{name}.py").read_text().split("\n# %%")
    cells = []
    for part in parts:
        marker, _, text = part.partition("\n")
        kind = "markdown" if "[markdown]" in marker else "code"
        if kind == "markdown":
            lines = [line.removeprefix("#").removeprefix(" ") for line in text.splitlines()]
            text = "\n".join(lines)
        cells.append((kind, text.strip("\n")))
    return cells


def see_the_folder() -> None:
    """Lets the process that runs a notebook find it by its name."""
    sys.path.insert(0, str(FOLDER))


def notebook(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_the_cells_of_its_source_and_no_outputs(name):
    cells = notebook(name)["cells"]
    found = [(cell["cell_type"], "".join(cell["source"]).strip("\n")) for cell in cells]
    assert found == source_cells(name)
    outputs = [(cell["outputs"], cell["execution_count"]) for cell in cells if "outputs" in cell]
    assert outputs and all(pair == ([], None) for pair in outputs)


def test_notebooks_begin_with_a_badge_of_their_own_and_install_in_colab_alone():
    cells = {name: source_cells(name) for name in NAMES}
    for name, its in cells.items():
        kind, text = its[0]
        assert kind == "markdown" and f"/blob/main/notebooks/{name}.ipynb)" in text.split("\n")[0]
        installs = [text for kind, text in its if kind == "code" and "pip" in text]
        assert installs == [its[1][1]] and installs == [cells[NAMES[0]][1][1]]
        assert '\nif "google.colab" in sys.modules:\n' in installs[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_a_notebook_runs(name, programs, tmp_path):
    runner = Runner(programs, tmp_path)
    runner.environment |= {
        "ASYMPO_NOTEBOOK_QUICK": "1",
        "ASYMPO_NOTEBOOK_RUNS": str(tmp_path / "runs"),
        "MPLBACKEND": "agg",
    }
    done = runner.finish(tmp_path / "runs", [sys.executable, "-m", name], see_the_folder)
    assert done.code == 0, done.stdout + done.stderr
