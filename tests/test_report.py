"""The report of runs, from the outside: what it prints, writes and refuses."""

import io
import json
import math
import subprocess
import sys

import matplotlib.image
import pytest
from run_cases import config, metrics_line, write_run

from asympo_jax.report import captions, figures
from asympo_jax.report.__main__ import main
from asympo_jax.report.records import load_run

ASYMPO_BLUE = (0x00 / 255, 0x72 / 255, 0xB2 / 255)


def load(*directories):
    return [load_run(directory, directory.name) for directory in directories]


def report_rows(out):
    return json.loads((out / "report.json").read_text())["runs"]


def table(text):
    """The cells of each row by column, from aligned text."""
    lines = text.split("\n\n")[0].splitlines()
    header, cells = lines[0], [line.split() for line in lines[1:]]
    return header, cells


def refusal(capsys, *arguments):
    """The one sentence that a wrong call prints."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_the_command_prints_a_row_a_run_and_writes_the_picture_beside_the_runs(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", objective="reinforce")]
    command = [sys.executable, "-W", "error", "-m", "asympo_jax.report", *map(str, runs)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    header, (first, second) = table(done.stdout)
    assert header.split("  ")[0] == "run"
    assert " ".join(first) == ("a asympo 16 4 0.500 → 0.800 ± 0.040 0.800 no – → – 61 s")
    assert second[:2] == ["b", "reinforce"]
    assert [row["run"] for row in report_rows(tmp_path / "report")] == ["a", "b"]
    height, width, _ = matplotlib.image.imread(tmp_path / "report" / "curves.png").shape
    assert (width, height) == (1605, 1110)


def test_a_report_of_one_run_goes_into_its_own_directory(tmp_path):
    run = write_run(tmp_path / "a")
    assert main([str(run)]) == 0
    names = sorted(path.name for path in (run / "report").iterdir())
    assert names == ["curves.png", "report.html", "report.json"]


def test_out_names_another_directory_which_is_made(tmp_path):
    run = write_run(tmp_path / "a")
    assert main([str(run), f"--out={tmp_path / 'x' / 'y'}"]) == 0
    assert (tmp_path / "x" / "y" / "curves.png").exists()
    assert not (run / "report").exists()


def test_columns_line_up_whatever_the_length_of_names(tmp_path, capsys):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "long_name", accuracies=(0.5, None))]
    main([str(run) for run in runs])
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert len({line.index("asympo") for line in lines[1:]} | {lines[0].index("objective")}) == 1
    assert len({len(line) for line in lines}) == 1


def test_the_standard_error_is_that_of_a_share_of_all_sampled_responses(tmp_path):
    main([str(write_run(tmp_path / "a"))])
    (row,) = report_rows(tmp_path / "a" / "report")
    assert row["accuracy_after_standard_error"] == pytest.approx(math.sqrt(0.8 * 0.2 / 100))
    assert row["accuracy_before_standard_error"] == pytest.approx(0.05)


def test_no_right_response_of_100_is_not_told_as_certainly_none(tmp_path, capsys):
    main([str(write_run(tmp_path / "a", accuracies=(0.5, None, 0.7, None, 0.0)))])
    assert "0.500 → 0.000 ± 0.010" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("accuracies", "collapsed"),
    [
        ((0.5, None, 0.9, None, 0.44), True),
        ((0.5, None, 0.9, None, 0.45), False),
        ((0.5, None, 0.1, None, 0.4), False),
        ((0.5, None, 0.1), True),
        ((0.5, None), None),
    ],
)
def test_a_run_collapsed_if_it_ends_below_half_of_its_best(tmp_path, accuracies, collapsed):
    main([str(write_run(tmp_path / "a", accuracies=accuracies, result=False))])
    (row,) = report_rows(tmp_path / "a" / "report")
    assert row["collapsed"] is collapsed


def test_the_last_evaluation_is_found_where_only_the_result_has_it(tmp_path):
    main([str(write_run(tmp_path / "a", accuracies=(0.5, None, 0.7, None)))])
    (row,) = report_rows(tmp_path / "a" / "report")
    assert (row["updates"], row["accuracy_after"], row["accuracy_best"]) == (3, 0.6, 0.7)


def test_a_run_at_work_is_shown_as_far_as_it_is(tmp_path, capsys):
    run = write_run(tmp_path / "a", result=False, num_updates=150)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 5, "rew')
    assert main([str(run)]) == 0
    assert "4 of 150 0.500 → 0.800 ± 0.040" in " ".join(capsys.readouterr().out.split())
    (row,) = report_rows(run / "report")
    assert (row["wall_s"], row["parameters_sha256"]) == (None, None)


def test_the_result_of_a_run_that_was_taken_up_again_is_left_out(tmp_path):
    run = write_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics_line(5)) + "\n")
    main([str(run)])
    (row,) = report_rows(run / "report")
    assert (row["updates"], row["parameters_sha256"]) == (5, None)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "lines",
    [
        [{"update": 0, "eval/accuracy": 0.5}],
        [metrics_line(1)],
        [{"update": 0, "eval/accuracy": None}, metrics_line(1, **{"nll/positive": None})],
        [metrics_line(i, **{"nll/positive": 0.0, "nll/negative": 0.0}) for i in range(1, 90)],
        [dict.fromkeys(metrics_line(0), None) | {"update": i} for i in (1, 2)],
        [{"update": 7}],
        [metrics_line(1, 0.0), metrics_line(2, 0.0)],
        [metrics_line(1, -3.0, **{"reward/mean": -2.0}), metrics_line(2, 40.0)],
    ],
    ids=[
        "only the evaluation before",
        "one update",
        "null",
        "no likelihoods",
        "all null",
        "no metrics",
        "accuracy 0",
        "no shares",
    ],
)
def test_metrics_that_are_missing_or_odd_still_give_a_report(tmp_path, lines):
    runs = [write_run(tmp_path / name, lines=lines, result=False) for name in "ab"]
    assert main([str(runs[0])]) == 0
    assert main([str(run) for run in runs]) == 0
    text = (tmp_path / "report" / "report.json").read_text()
    assert "NaN" not in text and "Infinity" not in text


@pytest.mark.filterwarnings("error")
def test_twelve_runs_with_any_names_give_a_report(tmp_path):
    names = [f"数 $\\x{{$ {i}{'long' * (i % 2) * 20}" for i in range(12)]
    runs = [write_run(tmp_path / name, objective="my:$\\x{$") for name in names]
    assert captions.labels(load(*runs)) == names
    assert main([str(run) for run in runs]) == 0


def test_a_panel_without_values_says_so(tmp_path):
    """What is drawn beyond empty axes in the middle of the upper right panel."""
    inks = []
    for name, lines in (("empty", [{"update": 0}]), ("full", [metrics_line(1), metrics_line(4)])):
        run = write_run(tmp_path / name, lines=lines, result=False)
        main([str(run)])
        image = matplotlib.image.imread(run / "report" / "curves.png")[..., :3]
        middle = image[300:400, 1050:1270]
        inks.append((middle.max(axis=-1) < 0.6).sum())
    assert inks[0] > 100 and inks[1] == 0


def test_an_objective_has_the_same_colour_alone_and_among_others(tmp_path):
    alone = write_run(tmp_path / "a")
    others = [
        write_run(tmp_path / name, objective=name) for name in ("reinforce", "spo", "grpo", "gpg")
    ]
    for runs in ([alone], [*others, alone]):
        main([*map(str, runs), f"--out={tmp_path / 'out'}"])
        image = matplotlib.image.imread(tmp_path / "out" / "curves.png")[..., :3]
        assert (abs(image - ASYMPO_BLUE).max(axis=-1) < 1e-3).sum() > 100
    main([*map(str, others), f"--out={tmp_path / 'out'}"])
    image = matplotlib.image.imread(tmp_path / "out" / "curves.png")[..., :3]
    assert not (abs(image - ASYMPO_BLUE).max(axis=-1) < 1e-3).any()


def test_labels_say_what_differs_and_nothing_else(tmp_path):
    first = write_run(tmp_path / "first")
    lag, seed = write_run(tmp_path / "lag", lag=64), write_run(tmp_path / "seed", seed=1)
    again = write_run(tmp_path / "again")
    spo = write_run(tmp_path / "spo", objective="spo")
    assert captions.labels(load(first, spo)) == ["asympo", "spo"]
    assert captions.labels(load(first, lag)) == ["asympo, lag 16", "asympo, lag 64"]
    assert captions.labels(load(first, seed)) == ["asympo, seed 0", "asympo, seed 1"]
    assert captions.labels(load(first, again)) == ["first", "again"]
    mine = write_run(tmp_path / "mine", task={"name": "my_tasks:Largest"})
    assert captions.labels(load(first, mine)) == ["asympo, arithmetic", "asympo, Largest"]


def test_labels_are_cut_only_where_that_tells_them_apart():
    alike = [f"asympo, lag {lag}, completion order" for lag in (0, 16)]
    cut = ["asympo,…completion order", "a_long_…_named, lag 1600"]
    first, second = captions.shortened(alike)
    assert "lag 0," in first and "lag 16" in second
    assert max(map(len, captions.shortened([f"{i}{'long' * 20}" for i in "ab"] * 2))) < 40
    assert captions.shortened([alike[0], "a_long_objective_that_is_named, lag 1600"]) == cut


def test_an_import_path_is_told_without_its_module_unless_two_end_alike(tmp_path):
    names = ("asympo", "mine:root", "mine:asympo", "others:asympo")
    runs = load(*(write_run(tmp_path / name, objective=name) for name in names))
    assert captions.labels(runs) == ["asympo", "root", "mine:asympo", "others:asympo"]
    assert captions.labels(runs[1:3]) == ["root", "mine:asympo"], "no name of the package's"
    assert captions.title(runs[1:3]) == "root and mine:asympo on arithmetic"


def test_runs_are_called_by_as_much_of_the_ends_of_their_paths_as_tells_them_apart(tmp_path):
    paths = ("x/deep/root", "x/quickstart/asympo", "x/own/asympo")
    main([str(write_run(tmp_path / path)) for path in paths] + [f"--out={tmp_path / 'out'}"])
    names = [row["run"] for row in report_rows(tmp_path / "out")]
    assert names == ["root", "quickstart/asympo", "own/asympo"]


def test_a_long_label_and_its_last_accuracy_are_within_the_picture(tmp_path):
    runs = load(*(write_run(tmp_path / f"{'W' * 40}{i}") for i in range(3)))
    image = matplotlib.image.imread(io.BytesIO(figures.draw_each(runs)["accuracy"]))[..., :3]
    assert image[:, -10:].min() == 1.0
    assert image[:, -40:].min() < 0.8
    assert image.shape[1] < 1400  # most of the name is left out


def test_runs_of_one_objective_differ_in_their_shade(tmp_path):
    runs = load(*(write_run(tmp_path / f"{lag}", lag=lag) for lag in (0, 64, 16)))
    colours = captions.colours(runs)
    assert len(set(colours)) == 3
    assert colours[1] == captions.colours(runs[1:2])[0]


def test_the_caption_names_the_settings(tmp_path):
    runs = load(write_run(tmp_path / "a"), write_run(tmp_path / "b", lag=64, objective="gpg"))
    assert captions.title(runs) == "asympo and gpg on arithmetic"
    assert captions.subtitle(runs) == (
        "lag 16, 64, ticket order, seed 0 · 4 updates of 32 prompts × 8 responses"
    )


def test_a_directory_that_does_not_exist_is_refused_by_name(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    message = refusal(capsys, run, tmp_path / "none")
    assert str(tmp_path / "none") in message and "not a directory" in message
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("file", ["metrics.jsonl", "config.json"])
def test_a_directory_without_the_files_of_a_run_is_refused(tmp_path, capsys, file):
    run = write_run(tmp_path / "a")
    (run / file).unlink()
    message = refusal(capsys, run)
    assert str(run) in message and f"no {file}" in message


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "config.json must hold a JSON object"),
        ("config.json", json.dumps(config(lag="many")), "no usable 'lag', got 'many'"),
        ("config.json", json.dumps(config(eval={})), "no usable 'eval.num_prompts'"),
        ("config.json", json.dumps(config(eval={"num_prompts": 0})), "'eval.num_prompts', got 0"),
        ("result.json", "nonsense", "result.json cannot be read"),
        ("result.json", "{}", "no usable 'parameters_sha256'"),
        ("metrics.jsonl", "", "metrics.jsonl is still empty"),
        ("metrics.jsonl", '{"update": 1', "metrics.jsonl is still empty"),
        ("metrics.jsonl", '{"update": 1}\nnonsense\n{"update": 2}\n', "metrics.jsonl line 2"),
        ("metrics.jsonl", '{"reward/mean": 1}\n', "metrics.jsonl line 1"),
        ("metrics.jsonl", '{"update": 1, "loss": "high"}\n', "metrics.jsonl line 1"),
        ("metrics.jsonl", b"\xff\xfe\n", "metrics.jsonl cannot be read"),
    ],
)
def test_a_malformed_file_is_refused_in_one_sentence(tmp_path, capsys, file, text, words):
    run = write_run(tmp_path / "a")
    (run / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(capsys, run)
    assert str(run) in message and words in message


def test_an_out_that_cannot_be_written_is_refused(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(capsys, run, f"--out={tmp_path / 'file'}")


def test_a_report_loads_neither_jax_nor_a_window_system(tmp_path):
    run = write_run(tmp_path / "a")
    program = (
        "import sys; from asympo_jax.report.__main__ import main; main(sys.argv[1:]);"
        "sys.exit(sum(name in sys.modules for name in ('jax', 'matplotlib.pyplot')))"
    )
    assert subprocess.run([sys.executable, "-c", program, str(run)]).returncode == 0


def test_help_needs_no_matplotlib():
    program = "import sys; import asympo_jax.report.__main__; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
