"""`asympo` and its verbs: what they are called, what they say of themselves, where a run goes."""

import functools
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from floors import ROOMS_OF_FLOOR
from tiny_runs import TINY

import asympo_jax
from asympo_jax import __main__ as asympo
from asympo_jax import run_names, workdirs
from asympo_jax.config import default_config, resolve

PACKAGE = pathlib.Path(asympo_jax.__file__).parent
TESTS = pathlib.Path(__file__).parent
# Programs that `train` starts itself.
ROLES = {"sample", "evaluate_snapshots"}


def program_of(room: str) -> pathlib.Path:
    """The file that `python -m` runs."""
    module = PACKAGE / f"{room}.py"
    return module if module.exists() else PACKAGE / room / "__main__.py"


def test_every_command_line_of_the_package_is_a_verb():
    programs = {
        room for room in ROOMS_OF_FLOOR[5] if "command.run(main" in program_of(room).read_text()
    }
    by_argparse = {"inspect", "report"}
    assert set(asympo.VERBS) == programs - ROLES | by_argparse


def test_the_list_of_verbs_needs_no_library():
    program = (
        "import sys; sys.argv = ['asympo', '--help']\n"
        "from asympo_jax.__main__ import main; main()\n"
        "sys.exit(sorted({'jax', 'numpy', 'absl'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {verb} " in done.stdout for verb in asympo.VERBS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "there is no verb 'trian' (did you mean 'train'?)"),
        (["frobnicate"], "there is no verb 'frobnicate';"),
        ([], "a verb is missing"),
    ],
)
def test_an_unknown_verb_is_one_sentence_with_the_nearest(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["asympo", *arguments])
    assert asympo.main() == 2
    stderr = capsys.readouterr().err
    assert words in stderr and len(stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", asympo.VERBS)
def test_the_help_of_a_verb_has_an_example_all_flags_in_words_and_the_exit_codes(
    runner, tmp_path, verb
):
    done = runner.finish(tmp_path, [sys.executable, "-m", "asympo_jax", verb, "--help"])
    assert done.code == 0 and done.stderr == ""
    assert f"    python -m asympo_jax.{verb} " in done.stdout
    assert "Exit codes: 0 done" in done.stdout
    flags = re.findall(r"^  --\S+[^\n]*(?:\n {10,}[^\n]*)*", done.stdout, re.M)
    assert flags, done.stdout
    for flag in flags:
        name, *words = flag.split()
        assert len(words) > 1, f"{name} is not explained"
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("option", "word"), [([], "must be an asympo_jax.objectives.Objective"), (["-P"], "No module")]
)
def test_the_installed_command_finds_modules_as_python_m_does(tmp_path, option, word):
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())
    module, function = project["project"]["scripts"]["asympo"].split(":")
    script = tmp_path / "bin" / "asympo"
    script.parent.mkdir()
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    (tmp_path / "of_my_own.py").write_text("nothing = 3\n")
    flags = ["--config.objective.name=of_my_own:nothing", f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, *option, str(script), "train", *flags]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and word in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["asympo_jax", "inspect"], "asympo inspect"),
        (["asympo_jax.inspect"], "python -m asympo_jax.inspect"),
    ],
)
def test_a_verb_speaks_of_itself_as_it_was_called(words, name):
    command = [sys.executable, "-m", *words, "DIR", "--max_rewrad=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: {name} ")
    assert done.stderr.splitlines()[-1].startswith(f"{name}: error: ")


def test_a_run_without_a_workdir_is_found_again_by_the_same_command(runner, tmp_path):
    given = {**TINY, "num_updates": 1, "runtime.name": "sync"}
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "asympo_jax", "train", *flags]
    first, again = (
        runner.finish(tmp_path, command, functools.partial(os.chdir, tmp_path)) for _ in range(2)
    )
    (path,) = (tmp_path / "runs").glob("Digits-asympo-lag2-seed0-*")
    assert (path / "result.json").exists()
    assert first.code == again.code == 0, first.stderr + again.stderr
    assert first.stderr.startswith(f"run: runs/{path.name}\ntraining begins; ")
    assert f"run: runs/{path.name}, already complete\n" in again.stderr


@pytest.mark.parametrize(
    ("field", "value", "is_same"),
    [
        ("num_updates", 300, True),
        ("checkpoint.every_updates", 7, True),
        ("sampler.count", 2, True),
        ("seed", 1, False),
        ("optimizer.learning_rate", 1e-3, False),
        ("model.width", 32, False),
    ],
)
def test_the_directory_of_a_run_is_another_where_the_old_one_would_be_refused(
    field, value, is_same
):
    config = default_config()
    before = run_names.default_workdir(resolve(config))
    config.update_from_flattened_dict({field: value})
    resolved = resolve(config)
    assert (run_names.default_workdir(resolved) == before) is is_same
    changed = workdirs.fixed_fields(resolved.source) != workdirs.fixed_fields(
        default_config().to_dict()
    )
    assert changed is not is_same
