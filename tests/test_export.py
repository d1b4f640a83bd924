"""The checkpoints of a run as Hugging Face directories, by the command."""

import json
import pathlib
import sys

import pytest
from tasks_for_tests import Digits
from tiny_runs import Finished, Runner

from asympo_jax import models
from asympo_jax.runtime.snapshots import parameters_sha256


@pytest.fixture
def workdir(longer_run) -> pathlib.Path:
    """Of a run that has two checkpoints."""
    return longer_run[0]


def export(runner: Runner, workdir: pathlib.Path, *flags: str) -> Finished:
    command = [sys.executable, "-m", "asympo_jax.export", f"--workdir={workdir}", *flags]
    return runner.finish(workdir, command)


def test_any_checkpoint_is_exported_as_it_is(runner, longer_run, tmp_path):
    workdir, results = longer_run
    for flags, update in (([], 6), (["--update=2"], 2)):
        out = tmp_path / str(update)
        done = export(runner, workdir, f"--out={out}", *flags)
        assert done.code == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert first == f"{out}: {workdir} after {update} updates, float32"
        assert second.startswith("no tokenizer is in it") and not (out / "tokenizer.json").exists()
        assert parameters_sha256(models.load(out).params) == results[update]["parameters_sha256"]
    assert results[2]["parameters_sha256"] != results[6]["parameters_sha256"]


def test_the_stop_tokens_of_the_task_are_exported(runner, workdir, tmp_path):
    done = export(runner, workdir, f"--out={tmp_path / 'out'}", "--dtype=bfloat16")
    assert done.code == 0, done.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == list(Digits().tokenizer.stop_ids)
    assert (config["architectures"], config["torch_dtype"]) == (["Qwen3ForCausalLM"], "bfloat16")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--out={tmp}/out", "--update=1"],
            "update=1: workdir={workdir} has checkpoints of [2, 6]",
        ),
        (["--out={workdir}"], "{workdir}: is not empty, must be a new or an empty directory"),
        (["--out={tmp}/out", "--like={tmp}/none"], "{tmp}/none: is not a directory"),
        (["--out={tmp}/out", "--workdir={tmp}"], "{tmp}: is not the directory of a run"),
        (["--out="], "--out is empty"),
        ([], "--out is required"),
    ],
)
def test_what_cannot_be_exported_ends_with_one_sentence_and_code_2(
    runner, workdir, tmp_path, flags, words
):
    names = {"tmp": tmp_path, "workdir": workdir}
    done = export(runner, workdir, *(flag.format(**names) for flag in flags))
    assert done.code == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert words.format(**names) in done.error
    assert list(tmp_path.iterdir()) == []
