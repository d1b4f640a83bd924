"""The launch scripts, with stand-ins for Python and df on a PATH that holds nothing else."""

import shutil
from pathlib import Path

import pytest
from launch_cases import Clone, assert_fails_with


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_help_prints_the_usage_and_does_nothing(clone: Clone, script: str):
    result = clone.run(script, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: bash launch/{script}")
    assert not (clone.root / ".venv").exists()


def test_without_python_one_sentence_says_so(clone: Clone):
    assert_fails_with(clone.run("quickstart.sh"), "needs Python 3.11 or newer: found none")


def test_an_old_python_is_named_with_its_place(clone: Clone):
    path = clone.add_python("python3", "3.9")
    assert_fails_with(clone.run("quickstart.sh"), "3.11 or newer", f"found 3.9 at {path}")


def test_an_old_python_of_the_callers_choice_is_refused(clone: Clone):
    clone.add_python("python3.12", "3.12")
    old = clone.add_python("old", "3.10")
    result = clone.run("quickstart.sh", PYTHON=str(old))
    assert_fails_with(result, f"PYTHON={old}", f"found 3.10 at {old}")


def test_a_python_without_venv_is_passed_over(clone: Clone):
    clone.add_python("python3.12", "3.12", venv_status=1)
    assert_fails_with(clone.run("quickstart.sh"), "3.12 at", "has no venv module")
    clone.add_python("python3.11", "3.11")
    result = clone.run("quickstart.sh")
    assert result.returncode == 0
    assert "Making an environment of Python 3.11" in result.stdout


def test_too_little_disk_is_refused_before_anything_is_made(clone: Clone):
    clone.add_python("python3", "3.12")
    clone.add_tool("df", "#!/bin/sh\necho Filesystem\necho a disk 9000000 7000000 1024000 90% /\n")
    assert_fails_with(clone.run("quickstart.sh"), "2 GB of free disk space", "has 1000 MB")
    assert not (clone.root / ".venv").exists()


def test_a_workdir_that_cannot_be_written_is_refused_before_anything_is_made(clone: Clone):
    clone.add_python("python3", "3.12")
    (clone.root / "file").write_text("")
    assert_fails_with(clone.run("quickstart.sh", "file/run"), "a clone/file/run cannot be written")
    assert not (clone.root / ".venv").exists()


@pytest.mark.parametrize(
    ("pip_says", "reason"),
    [
        ("Failed to establish a new connection", "no network"),
        ("[Errno 28] No space left on device", "no space left on the disk"),
        ("No matching distribution found for jax", "pip failed"),
    ],
)
def test_a_failed_install_names_reason_and_log_and_is_repeated(
    clone: Clone, pip_says: str, reason: str
):
    clone.add_python("python3", "3.12", pip=f"echo '{pip_says}'; exit 3")
    log = clone.root / ".venv/install.log"
    for _ in range(2):
        result = clone.run("test.sh")
        assert_fails_with(result, f"({reason})", str(log))
        assert log.read_text() == f"{pip_says}\n"
        assert len(clone.calls_with("-m pip install")) == 1
    assert clone.calls_with("-m venv") == []


def test_a_killed_install_is_repaired_in_a_new_environment(clone: Clone):
    clone.add_python("python3", "3.12", pip='touch "${0%/*}/half"; kill -9 $PPID')
    assert clone.run("quickstart.sh").returncode == -9
    half = clone.root / ".venv/bin/half"
    assert half.exists()
    clone.add_python("python3", "3.12")
    result = clone.run("quickstart.sh")
    assert result.returncode == 0
    assert not half.exists()


def test_an_install_is_repeated_only_when_something_changed(clone: Clone):
    clone.add_python("python3", "3.12")
    install = f"--editable {clone.root}"
    assert clone.run("quickstart.sh").returncode == 0
    assert clone.calls_with(install) == [clone.calls_with("pip install")[0]]
    clone.run("quickstart.sh")
    assert clone.calls_with(install) == []
    clone.run("test.sh")
    assert clone.calls_with(install)[0].endswith("[test]")
    clone.run("quickstart.sh")
    assert clone.calls_with(install) == []
    (clone.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    clone.run("quickstart.sh")
    assert len(clone.calls_with(install)) == 1


def test_a_folder_of_the_user_is_never_cleared(clone: Clone):
    clone.add_python("python3", "3.12")
    (clone.root / "mine").mkdir()
    (clone.root / "mine/thesis").write_text("all of it")
    result = clone.run("quickstart.sh", ASYMPO_VENV="mine")
    assert_fails_with(result, "mine exists and is no working Python environment")
    assert (clone.root / "mine/thesis").exists()


def test_an_environment_of_the_user_outlives_a_killed_install(clone: Clone):
    python = clone.add_python("python3", "3.12", pip="kill -9 $PPID")
    (clone.root / "mine/bin").mkdir(parents=True)
    shutil.copy(python, clone.root / "mine/bin/python")
    (clone.root / "mine/thesis").write_text("all of it")
    assert clone.run("quickstart.sh", ASYMPO_VENV="mine").returncode == -9
    shutil.copy(clone.add_python("python3", "3.12"), clone.root / "mine/bin/python")
    assert clone.run("quickstart.sh", ASYMPO_VENV="mine").returncode == 0
    assert len(clone.calls_with("--force-reinstall")) == 1
    assert (clone.root / "mine/thesis").exists()


def test_quickstart_trains_both_objectives_and_draws_them(clone: Clone, tmp_path: Path):
    clone.add_python("python3", "3.12")
    result = clone.run("quickstart.sh", "my run", "--config.num_updates=2", cwd=tmp_path)
    assert result.returncode == 0
    run = tmp_path / "my run"
    assert clone.calls_with("-m asympo_jax") == [
        f"-m asympo_jax.train --config=configs/arithmetic.py --workdir={run}/{name} "
        f"--config.objective.name={name} --config.lag=16 --config.order=ticket "
        f"--config.warmup.dir={clone.root}/runs/warmup --config.num_updates=2"
        for name in ("asympo", "reinforce")
    ] + [f"-m asympo_jax.report {run}/asympo {run}/reinforce --out={run}/report"]
    assert result.stdout.splitlines()[-1].endswith(f"{run}/report/curves.png")


def test_quickstart_runs_in_the_repository_by_default(clone: Clone, tmp_path: Path):
    clone.add_python("python3", "3.12")
    clone.run("quickstart.sh", "--config.seed=1", cwd=tmp_path)
    trained = clone.calls_with("asympo_jax.train")
    assert len(trained) == 2
    for call in trained:
        assert f"--workdir={clone.root}/runs/quickstart/" in call
        assert call.endswith("--config.seed=1")


def test_a_failed_training_ends_quickstart_with_its_stage(clone: Clone):
    clone.add_python("python3", "3.12", train="exit 7")
    assert_fails_with(clone.run("quickstart.sh"), "exit status 7", "Training with ASymPO")
    assert len(clone.calls_with("-m asympo_jax")) == 1


@pytest.mark.parametrize("code", [75, 130, 143])
def test_a_training_that_was_stopped_ends_quickstart_with_its_code_and_no_failure(
    clone: Clone, code: int
):
    clone.add_python("python3", "3.12", train=f"exit {code}")
    result = clone.run("quickstart.sh")
    assert_fails_with(result, "Stopped in this", "ASymPO", "same command carries on", code=code)
    assert len(clone.calls_with("-m asympo_jax")) == 1


def test_a_failed_check_does_not_hide_the_others(clone: Clone):
    python = clone.add_python("python3", "3.12")
    text = python.read_text().replace(
        "esac", '  "-m ruff check") exit 1 ;;\n  "-m pytest "*) exit $(($# - 8)) ;;\nesac'
    )
    clone.add_tool("python3", text)
    result = clone.run("test.sh", "-k", "floors and not slow")
    assert_fails_with(result, "Failed: lint.")
    assert clone.calls_with("-m pytest") == [
        "-m pytest -n 2 --dist worksteal -k floors and not slow"
    ]
    assert "tests: passed" in result.stdout
