"""What tools of others read of the project: it parses, and says what the project says elsewhere."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
import yaml

import asympo_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


def test_the_workflow_runs_the_one_command_on_the_versions_of_python_that_the_project_names():
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    named = re.findall(r":: Python :: (\d\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == named
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash launch/test.sh"]


def test_the_hooks_of_commits_pin_tools_that_the_tests_bring():
    wanted = "\n".join(PROJECT["optional-dependencies"]["test"])
    for hook in read(".pre-commit-config.yaml")["repos"][0]["hooks"]:
        for pin in hook["additional_dependencies"]:
            name, _, version = pin.partition("==")
            lowest = re.search(rf"^{name}>=([\d.]+)$", wanted, re.M)
            assert lowest is not None, name
            assert numbers(version) >= numbers(lowest[1])


def numbers(version):
    return [int(part) for part in version.split(".")]


def test_the_citation_has_what_its_format_requires_and_this_version():
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["authors"] == [{"name": "The asympo_jax authors"}]
    assert citation["version"] == PROJECT["version"] == asympo_jax.__version__
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper) and paper["url"].endswith("2606.03070")


@pytest.mark.parametrize("form", ["bug", "question"])
def test_a_form_for_issues_has_what_its_format_requires(form):
    read_form = read(f".github/ISSUE_TEMPLATE/{form}.yml")
    assert {"name", "description", "body"} <= set(read_form)
    for part in read_form["body"]:
        assert part["type"] == "textarea" and part["attributes"]["label"] and part["id"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if numbers(metadata.version("setuptools"))[0] < 77:
        pytest.skip("needs setuptools 77, which the extra test brings")
    source = tmp_path_factory.mktemp("wheel") / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    kept_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "asympo_jax", source / "asympo_jax", ignore=kept_out)
    program = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    (source / "dist").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_a_wheel_has_the_whole_package_its_data_its_command_and_nothing_else(wheel):
    names = set(wheel.namelist())
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "asympo_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == package
    (entries,) = (name for name in information if name.endswith("entry_points.txt"))
    assert "asympo = asympo_jax.__main__:main" in wheel.read(entries).decode()
