"""Browsing the samples of a run, from the outside: what is chosen, printed and refused."""

import json
import math
import subprocess
import sys

import pytest

from asympo_jax import workdirs
from asympo_jax.inspect import main

HOSTILE = "a\x1b[2J\r\x9b31m\u202e\u2028b\nupdate 99 · reward 1"


def sample(response, reward: object = 1.0, ticket=0, tokens=3, lag=0, prompt="1+1="):
    return {
        "ticket": ticket, "version": 0, "lag": lag, "prompt": prompt, "response": response,
        "reward": reward, "tokens": tokens, "stop": "stop_token",
    }  # fmt: skip


def write(run, update, *samples):
    (run / "rollouts").mkdir(exist_ok=True)
    text = "".join(json.dumps(one) + "\n" for one in samples)
    (run / "rollouts" / f"update_{update:08d}.jsonl").write_text(text)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path, 1, sample("first", 0.0, tokens=9), sample("second", 0.5, ticket=1, lag=2))
    write(tmp_path, 25, sample("third", 1.0, prompt="7*9="), sample("fourth", None, tokens=1))
    return tmp_path


def inspect(capsys, *arguments):
    """What is printed."""
    assert main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def chosen(capsys, *arguments):
    """The responses in the order in which they are printed."""
    lines = inspect(capsys, *arguments, "--json").splitlines()
    return [json.loads(line)["response"] for line in lines]


def test_a_folder_of_runs_is_refused_with_their_names(tmp_path, capsys):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    words = f"{tmp_path}: is not the directory of a run, no config.json; the runs in it are "
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {words}'a', 'b'\n"
    with pytest.raises(ValueError, match=r"; the runs in it are 'a', 'b'$"):
        workdirs.read_config(tmp_path)
    for number in range(9):
        (tmp_path / f"c{number}").mkdir()
        (tmp_path / f"c{number}" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r" 'c5' and 3 more$"):
        workdirs.read_config(tmp_path)


@pytest.mark.parametrize(
    ("flags", "responses"),
    [
        ([], ["third", "fourth", "first", "second"]),
        (["--sort=update"], ["first", "second", "third", "fourth"]),
        (["--sort=reward"], ["first", "second", "third", "fourth"]),
        (["--sort=-reward"], ["third", "second", "first", "fourth"]),
        (["--sort=-tokens", "--num=1"], ["first"]),
        (["--sort=lag", "--num=0"], ["first", "third", "fourth", "second"]),
        (["--min_reward=0.5"], ["third", "second"]),
        (["--max_reward=0.5"], ["first", "second"]),
        (["--min_tokens=3", "--max_tokens=3"], ["third", "second"]),
        (["--min_lag=1"], ["second"]),
        (["--max_lag=0", "--update=1"], ["first"]),
        (["--update=25"], ["third", "fourth"]),
        (["--update=2:"], ["third", "fourth"]),
        (["--update=:24"], ["first", "second"]),
        (["--prompt=7*"], ["third"]),
        (["--min_lag=9"], []),
    ],
)
def test_flags_choose_and_order_samples(run, capsys, flags, responses):
    assert chosen(capsys, run, *flags) == responses


def test_nothing_that_a_model_wrote_reaches_the_terminal_as_a_command(run, capsys):
    write(run, 30, sample(HOSTILE, prompt=HOSTILE))
    for flags in ([], ["--json"]):
        text = inspect(capsys, run, "--update=30", *flags)
        assert not [one for one in text if not one.isprintable() and one != "\n"]
    assert "\\x1b[2J\\r\\x9b31m\\u202e\\u2028b" in inspect(capsys, run, "--update=30")
    (line,) = inspect(capsys, run, "--update=30", "--json").splitlines()
    assert json.loads(line)["response"] == HOSTILE


def test_a_line_of_an_answer_cannot_pass_for_the_head_of_another(run, capsys):
    write(run, 30, sample(HOSTILE))
    lines = inspect(capsys, run, "--update=30").splitlines()
    assert [line for line in lines if line.startswith("update ")] == [lines[0]]
    assert "    update 99 · reward 1" in lines


def test_the_footer_says_how_many_there_are(run, capsys):
    with (run / "rollouts" / "update_00000025.jsonl").open("a") as file:
        file.write('{"ticket": 3, "resp')
    text = inspect(capsys, run, "--max_reward=0.5", "--num=1")
    assert text.splitlines()[-1] == "1 of 2 samples that fit, of 4; 1 lines cannot be read"
    assert "reward not known" in inspect(capsys, run)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--min_lag=9"], "none of 4 samples fits --min_lag=9; they have reward 0 to 1"),
        (["--prompt=x"], "fits --prompt='x'"),
        (["--update=7"], "no samples of --update=7; there are files of 2 updates, 1 to 25"),
    ],
)
def test_an_empty_result_is_a_sentence_on_what_there_is(run, capsys, flags, words):
    text = inspect(capsys, run, *flags)
    assert words in text and text.count("\n") == 1
    assert inspect(capsys, run, *flags, "--json") == ""


def test_a_run_that_has_written_no_samples_yet_says_when_it_does(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert "log.rollouts_every_updates" in inspect(capsys, tmp_path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--update=x"], "--update=x: must be a number"),
        (["--update=9:3"], "--update=9:3: the first must be at most the last"),
        (["--num=-1"], "--num=-1: must be 0, for all, or positive"),
        (["--min_lag=3", "--max_lag=2"], "--min_lag=3: must be at most --max_lag=2"),
        ([f"--min_reward={math.nan}"], "--min_reward=nan: must be a finite number"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(run, capsys, flags, words):
    assert main([str(run), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and words in captured.err


def test_a_directory_that_is_none_of_a_run_is_refused(tmp_path, capsys):
    for path, words in ((tmp_path, "no config.json"), (tmp_path / "none", "not a directory")):
        assert main([str(path)]) == 2
        assert words in capsys.readouterr().err


def test_the_command_ends_quietly_when_nobody_reads_on_and_loads_no_jax(run):
    write(run, 40, *(sample("x" * 1000, ticket=i) for i in range(500)))
    program = (
        "import sys; from asympo_jax.inspect import main; code = main(sys.argv[1:]);"
        "sys.exit(code or 'jax' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(run), "--num=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
