"""The documentation says what the code does: blocks run, commands parse, messages exist."""

import ast
import contextlib
import importlib.util
import io
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import asympo_jax
from asympo_jax import __main__ as asympo
from asympo_jax import models, objectives
from asympo_jax.config import resolve
from asympo_jax.defaults import default_config
from asympo_jax.models import ModelConfig

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = pathlib.Path(asympo_jax.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.M | re.S)


def load(path: pathlib.Path) -> Any:
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(language: str) -> list[Any]:
    """The blocks of a language in all pages, named by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if match[2] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[3], id=f"{page.name}:{line}"))
    return found


@pytest.fixture(scope="module")
def generate():
    return load(ROOT / "docs" / "generate.py")


def test_the_pages_made_from_the_code_are_those_that_are_committed(generate):
    for page in ("config", "api"):
        made = getattr(generate, f"{page}_page")()
        assert (ROOT / "docs" / f"{page}.md").read_text() == made, "run python docs/generate.py"


def test_every_field_of_a_config_is_described_in_words(generate):
    rows = dict(re.findall(r"^\| `([\w.]+)` \| \S+ \| (.*) \|$", generate.config_page(), re.M))
    fields = set(flat(default_config()))
    assert set(rows) == fields
    assert not [field for field, words in rows.items() if len(words.split()) < 2]


def test_every_name_that_a_package_exports_is_on_the_page_of_names(generate):
    page = (ROOT / "docs" / "api.md").read_text()
    for package in ("models", "objectives", "tasks"):
        section = page.partition(f"## `asympo_jax.{package}`\n")[2].partition("\n## ")[0]
        assert set(re.findall(r"^\| `(\w+)", section, re.M)) == set(exports(package)), package


def exports(package: str) -> list[str]:
    return importlib.import_module(f"asympo_jax.{package}").__all__


def flat(config: Any, prefix: str = "") -> Iterator[str]:
    for name in config:
        value = config[name]
        if hasattr(value, "items"):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_tables_of_objectives_name_each_with_its_options_and_their_defaults(generate):
    text = (ROOT / "docs" / "objectives.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for name in objectives.names():
        assert f"`{name}`" in readme
        options = {
            option: parameter.default
            for function in generate.weights_of(name)
            for option, parameter in generate.options_of(function).items()
        }
        (row,) = (line for line in text.splitlines() if re.match(rf"\| \[?`{name}`", line))
        told = dict(re.findall(r"`(\w+)` = (-?[\w.]+)", row))
        assert {option: float(value) for option, value in told.items()} == options, name


# What the blocks leave to the reader: the arrays of his own learner.
PROVIDED = {
    "rewards_PG": np.array([[0.0, 1.0], [1.0, 1.0]], np.float32),
    "logp_BT": np.full((4, 3), -0.5, np.float32),
    "mask_BT": np.ones((4, 3), bool),
    "tokens_BT": np.ones((1, 4), np.int32),
}


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hf") / "model"
    config = ModelConfig(8, 1, 8, 2, 1, 4, 8, 1e4, 1e-6, False, False, True, "float32")
    model = models.Model(config, models.init_params(config, jax.random.key(0)))
    models.save(model, directory, stop_ids=(1,))
    return directory


@pytest.fixture
def my_tasks(tmp_path, monkeypatch):
    """The file of that name that the README has, which another page goes on from."""
    sources = [block.values[0] for block in blocks("python")]
    (source,) = (source for source in sources if "class Largest(" in source)
    (tmp_path / "my_tasks.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_tasks", None)


@pytest.mark.usefixtures("my_tasks")
@pytest.mark.parametrize("source", blocks("python"))
def test_a_block_of_python_runs(source, hf_dir, tmp_path):
    names = {name: jnp.asarray(value) for name, value in PROVIDED.items()}
    given: Any = {**names, "HF_DIR": str(hf_dir), "OUT_DIR": str(tmp_path / "out")}
    given["__name__"] = "a_page"
    exec(compile(source, "a page", "exec"), given)


def commands(source: str) -> Iterator[list[str]]:
    """The commands of the package in a block of bash, without what surrounds them."""
    for line in source.replace("\\\n", " ").splitlines():
        if not re.search(r"^asympo |^python -m asympo_jax\.|^(bash|sbatch) .*launch/.* -- ", line):
            continue
        words = shlex.split(line.partition(" | ")[0], comments=True)
        if words[0] == "asympo":
            yield words[1:]
        elif words[0] == "python":
            yield [words[2].removeprefix("asympo_jax."), *words[3:]]
        else:
            yield ["train", *words[words.index("--") + 1 :]]


def flags_of(verb: str) -> set[str]:
    """The flags that a command defines, read from its source."""
    path = PACKAGE / f"{verb}.py"
    path = path if path.exists() else PACKAGE / verb / "__main__.py"
    source = path.read_text()
    found = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
    found |= set(re.findall(r'add_argument\(\s*"--(\w+)"', source))
    if verb == "inspect":
        found |= {
            f"{side}_{field}" for side in ("min", "max") for field in ("reward", "tokens", "lag")
        }
    return found | ({"config"} if "define_config_flag" in source else set()) | {"help"}


@pytest.mark.parametrize("source", blocks("bash"))
def test_a_block_of_bash_names_verbs_flags_fields_and_files_that_exist(source):
    fields = set(flat(default_config()))
    own = re.compile(r"(objective|task)\.\w+")  # options of one's own
    for verb, *arguments in commands(source):
        if verb == "tasks.gsm8k":
            continue
        assert verb in asympo.VERBS, verb
        known = flags_of(verb)
        for argument in arguments:
            name, _, value = argument.partition("=")
            if not name.startswith("--"):
                continue
            flag, _, field = name[2:].partition(".")
            assert flag in known, f"{verb} has no flag {name}"
            assert not field or field in fields or own.fullmatch(field), f"no field {field}"
            if flag == "config" and not field and value.startswith("configs/"):
                assert (ROOT / value.partition(":")[0]).is_file(), value
    for script in re.findall(r"(?:bash|sbatch[^\n]*?) (launch/\S+)", source):
        assert (ROOT / script).is_file(), script


def test_no_training_command_is_refused_for_its_fields():
    """Nor because a config of a real model was not told where the model is."""
    sources = [block.values[0] for block in blocks("bash")]
    launching = (ROOT / "docs" / "launching.md").read_text()
    sources += re.findall(r"\| `((?:bash|sbatch) [^`]* -- [^`]*)` \|", launching)
    manifest = yaml.safe_load_all((ROOT / "launch" / "gke_jobset.yaml").read_text())
    (pod,) = re.findall(r"'args': (\[[^]]*\])", str(list(manifest)))
    given = [words for source in sources for words in commands(source) if words[0] == "train"]
    given.append(["train", *ast.literal_eval(pod)])
    num_checked = 0
    for _, first, *words in given:
        if not first.startswith("--config=configs/") or any("=my_" in word for word in words):
            continue  # of another config, or with a module of the reader's
        path, _, variant = first.removeprefix("--config=").partition(":")
        config = load(ROOT / path).get_config(*[variant] * bool(variant))
        for field, value in re.findall(r"--config\.(\S+)=(\S*)", " ".join(words)):
            *section, name = field.split(".")
            holder = config[section[0]] if section else config
            is_new = name not in holder  # an option of an objective
            kind = float if is_new else holder.get_type(name)
            with config.unlocked():
                holder[name] = value == "True" if kind is bool else kind(value)
        assert variant or not config.model.preset or config.model.hf_dir is not None, words
        resolve(config)
        num_checked += 1
    assert num_checked > 15


def templates() -> list[str]:
    """All texts in the package, what is filled in written as `…`."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_that_the_questions_quote_is_one_of_the_package():
    quoted = re.findall(r"^> `(.+)`$", (ROOT / "docs" / "faq.md").read_text(), re.M)
    assert len(quoted) > 20
    texts = templates()
    for message in quoted:
        pattern = re.compile(".*?".join(map(re.escape, message.split("…"))), re.S)
        assert any(map(pattern.search, texts)), f"no text of the package has {message!r}"


def test_every_fault_names_tests_that_exist():
    rows = (ROOT / "docs" / "faults.md").read_text().partition("## Faults and tests")[2]
    cells = [re.split(r"(?<!\\)\|", row)[-2] for row in re.findall(r"^\|.*\|$", rows, re.M)[2:]]
    assert len(cells) > 40
    for cell in cells:
        assert "`test_" in cell or cell.strip() in ("the same", "not tested"), cell
        source = ""
        for said in re.findall(r"`([^`]+)`", cell):
            file, _, name = said.partition("::") if ".py" in said else ("", "", said)
            if file:
                source = (ROOT / "tests" / file).read_text()
            words = r"\w*".join(name.removeprefix("…").removeprefix("test_").split("…"))
            found = re.search(rf"^def test_(\w*_)?{words}\(", source, re.M)
            assert not name or found, (cell, said)


def test_the_map_in_the_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text().partition("## Map")[2].partition("```text\n")[2]
    rows = re.findall(r"^( *)(\S.*)$", text.partition("```")[0], re.M)
    for spaces, row in rows:
        place = PACKAGE if spaces else ROOT
        places = (place, place / row.split()[0], PACKAGE)
        for name in re.findall(r"(?<![\w/.])[\w/]+(?:\.py|/)(?![\w/])", row):
            assert any((root / name).exists() for root in places), row
    assert len(rows) > 20


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    out = tmp_path / "site"
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard):
        try:
            config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(out), strict=True)
            build(config)
        except Abort as abort:
            pytest.fail(f"{abort} {heard.getvalue()}")
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in out.glob("*.html")}
    assert not re.search(
        r'(src|href)="https?://[^"]*\.(js|css|woff2?)"', (out / "index.html").read_text()
    )
