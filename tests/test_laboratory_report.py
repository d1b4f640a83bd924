"""The report of a sweep, from the outside: what it prints, writes and refuses."""

import itertools
import json
import math
import subprocess
import sys
import urllib.parse

import matplotlib.image
import pytest
from pages import Page

from asympo_jax import objectives
from asympo_jax.report import captions
from asympo_jax.report.__main__ import main

BASE = {
    "objective": {"name": "asympo"},
    "task": {"name": "arithmetic"},
    "lag": 16,
    "num_updates": 20,
    "prompts_per_update": 32,
    "group_size": 8,
}
UPDATES = [0, 10, 20]


def outcome(values, accuracies=(0.5, 0.6, 0.8), rate=3e-4):
    return {
        "values": values,
        "learning_rate": rate,
        "num_updates": 20,
        "failure": None,
        "update": UPDATES,
        "eval/accuracy": list(accuracies),
        "nll/positive": [None, 0.05, 0.04],
        "nll/negative": [None, 0.3, 0.35],
        "balance/net": [None, -0.02, -0.03],
    }


def failed(values, cause="the loss of update 17 is not finite", diverged=True):
    """A run that broke off after its evaluation at update 10."""
    run = outcome(values) | {"failure": cause, "diverged": diverged}
    return {name: x[:2] if isinstance(x, list) else x for name, x in run.items()}


def write_sweep(directory, axes, make=outcome):
    """Results of a sweep; `make` gives the outcome of some values, None if there is none."""
    directory.mkdir(parents=True, exist_ok=True)
    nested, by_objective = {}, {}
    for field, values in axes.items():
        section, _, name = field.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = values
    about = {"axes": nested, "settings": {}, "base": BASE}
    (directory / "laboratory.json").write_text(json.dumps(about))
    for chosen in itertools.product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        run = make(values)
        if run is not None:
            by_objective.setdefault(values.get("objective.name", "asympo"), []).append(run)
    for name, runs in by_objective.items():
        data = {"objective": name, "runs": runs}
        (directory / f"{name.replace(':', '.')}.json").write_text(json.dumps(data))
    return directory


def axes(names=("reinforce", "asympo", "grpo"), lags=(0, 16), seeds=(0, 1, 2)):
    return {"lag": list(lags), "objective.name": list(names), "seed": list(seeds)}


def by_seed(*finals, best=0.0):
    """Runs whose final accuracy depends on the seed; None for one that is not there."""

    def make(values):
        final = finals[values["seed"]]
        return None if final is None else outcome(values, (0.1, best, final))

    return make


def report(directory, *arguments):
    assert main([str(directory), *arguments]) == 0
    return json.loads((directory / "report" / "report.json").read_text())


def cell(directory, row=0, column=0):
    return report(directory)["rows"][row]["cells"][column]


def refusal(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def markdown(directory):
    lines = (directory / "report" / "table.md").read_text().splitlines()
    return [[c.strip() for c in line[1:-1].split("|")] for line in lines if line.startswith("|")]


def image(directory, name):
    return matplotlib.image.imread(directory / "report" / name)[..., :3]


def test_the_command_prints_the_table_and_writes_all_pictures(tmp_path):
    write_sweep(tmp_path / "results", axes())
    command = [sys.executable, "-W", "error", "-m", "asympo_jax.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[2].split() == ["objective", "lag", "0", "lag", "16"]
    assert lines[3:5] == ["[current policy only]", "reinforce  0.800 ± 0.000  0.800 ± 0.000"]
    assert lines[6:8] == ["[with behaviour log-probs]", "grpo       0.800 ± 0.000  0.800 ± 0.000"]
    names = ["accuracy_by_lag.png", "balance.png", "curves.png", "nll.png"]
    files = sorted(path.name for path in (tmp_path / "results" / "report").iterdir())
    assert files == sorted([*names, "report.html", "report.json", "table.md"])
    for name in names:
        assert image(tmp_path / "results", name).shape[1] == 1620


def test_a_cell_is_the_mean_over_seeds_with_its_standard_error(tmp_path, capsys):
    write_sweep(tmp_path, axes(["asympo"]), by_seed(0.8, 0.9, 0.7))
    found = cell(tmp_path)
    assert found["accuracy_mean"] == pytest.approx(0.8)
    assert found["accuracy_standard_error"] == pytest.approx(0.1 / math.sqrt(3))
    runs = [(run["seed"], run["accuracy"]) for run in found["runs"]]
    assert runs == [(0, 0.8), (1, 0.9), (2, 0.7)]
    assert "0.800 ± 0.058" in capsys.readouterr().out


@pytest.mark.parametrize(("final", "collapsed"), [(0.44, 1), (0.45, 0)])
def test_a_run_collapsed_if_it_ends_below_half_of_its_best(tmp_path, final, collapsed):
    write_sweep(tmp_path, axes(["asympo"]), by_seed(final, 0.8, 0.8, best=0.9))
    assert cell(tmp_path)["collapsed"] == collapsed
    assert ("1/3 collapsed" in markdown(tmp_path)[2][1]) == bool(collapsed)


def test_a_run_that_diverged_counts_as_collapsed_and_enters_no_mean(tmp_path, capsys):
    def make(values):
        good = outcome(values, (0.5, 0.6, 0.7 + values["seed"] / 10))
        return failed(values) if values["seed"] == 2 or values["lag"] == 16 else good

    write_sweep(tmp_path, axes(["asympo"]), make)
    some, all_of_them = (cell(tmp_path, column=i) for i in (0, 1))
    assert (some["accuracy_mean"], some["collapsed"]) == (pytest.approx(0.75), 1)
    assert some["runs"][2] == {
        "seed": 2, "accuracy": None, "failure": "the loss of update 17 is not finite"
    }  # fmt: skip
    assert (all_of_them["accuracy_mean"], all_of_them["collapsed"]) == (None, 3)
    printed = capsys.readouterr().out
    assert "4 runs broke off, 4 of them by numbers that are not finite" in printed
    texts = ["0.750 ± 0.050 (mean of 2), 1/3 collapsed", "–, 3/3 collapsed"]
    assert markdown(tmp_path)[2][1:] == texts


def test_a_run_that_failed_for_another_reason_has_not_collapsed(tmp_path, capsys):
    def make(values):
        other = failed(values, "out of memory", diverged=False)
        return other if values["seed"] == 2 else outcome(values)

    write_sweep(tmp_path, axes(["asympo"]), make)
    found = cell(tmp_path)
    assert (found["collapsed"], found["failed"]) == (0, 1)
    assert markdown(tmp_path)[2][1] == "0.800 ± 0.000 (mean of 2), 1/3 failed"
    assert "2 runs broke off, 0 of them" in capsys.readouterr().out


def test_the_curve_of_a_run_that_failed_is_drawn_up_to_its_failure(tmp_path):
    for name, make in (
        ("failed", failed),
        ("other", lambda values: failed(values) | {"eval/accuracy": [0.5, 0.1]}),
    ):
        write_sweep(tmp_path / name, axes(["asympo"]), make)
        report(tmp_path / name)
    assert (
        image(tmp_path / "failed", "curves.png") != image(tmp_path / "other", "curves.png")
    ).any()


def test_what_all_runs_share_stands_above_the_table(tmp_path, capsys):
    its = {"lag": [0], "objective.name": ["asympo", "spo"], "order": ["ticket"]}
    write_sweep(tmp_path, its | {"num_updates": [20], "seed": [0, 1]})
    report(tmp_path)
    assert (
        capsys.readouterr()
        .out.splitlines()[0]
        .endswith("lag 0 · order ticket · 20 updates of 32 prompts × 8 responses · 2 seeds")
    )


def test_runs_that_have_not_ended_are_counted_and_dashes_stand_for_them(tmp_path, capsys):
    def make(values):
        return outcome(values) if values["seed"] < 2 and values["lag"] == 0 else None

    write_sweep(tmp_path, axes(["asympo", "grpo"]), make)
    found = cell(tmp_path)
    assert (found["runs_ended"], found["runs_wanted"]) == (2, 3)
    rows = markdown(tmp_path)
    assert rows[3] == ["asympo", "0.800 ± 0.000 (mean of 2)", "–"]
    assert "8 of 12 runs have not ended yet" in capsys.readouterr().out


def test_one_seed_has_no_standard_error(tmp_path, capsys):
    write_sweep(tmp_path, axes(["asympo"], seeds=[7]), lambda values: outcome(values, (1, 1, 0.2)))
    assert cell(tmp_path)["accuracy_standard_error"] is None
    assert markdown(tmp_path)[2] == ["asympo", "0.200, collapsed", "0.200, collapsed"]
    assert "±" not in capsys.readouterr().out


def test_markdown_groups_rows_in_the_order_of_the_axis(tmp_path):
    names = ["tis", "spo", "my:own", "asympo", "grpo"]
    write_sweep(tmp_path, axes(names))
    report(tmp_path)
    rows = markdown(tmp_path)
    assert rows[0] == ["objective", "lag 0", "lag 16"] and set(rows[1]) == {"---"}
    assert [row[0] for row in rows[2:]] == [
        "*current policy only*", "spo", "asympo", "*with behaviour log-probs*", "tis", "grpo",
        "*others*", "my:own",
    ]  # fmt: skip
    assert {len(row) for row in rows} == {3}


def test_the_learning_rate_has_a_column_where_rows_differ_by_it(tmp_path, capsys):
    def make(values):
        return outcome(values, rate=1e-4 if values["objective.name"] == "grpo" else 1e-3)

    write_sweep(tmp_path / "differ", axes(), make)
    report(tmp_path / "differ")
    rows = markdown(tmp_path / "differ")
    assert rows[0][1] == "learning rate"
    assert {row[0]: row[1] for row in rows[2:]}["grpo"] == "0.0001"
    capsys.readouterr()
    write_sweep(tmp_path / "same", axes())
    report(tmp_path / "same")
    assert "learning rate 0.0003\n" in capsys.readouterr().out
    assert markdown(tmp_path / "same")[0][1] == "lag 0"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("varied", "header", "first", "picture"),
    [
        (
            {"lag": [16], "optimizer.learning_rate": [1e-4, 1e-3]},
            ["objective", "learning rate 0.0001", "learning rate 0.001"],
            ["asympo"],
            "accuracy_by_learning_rate.png",
        ),
        (
            {"lag": [0, 16], "optimizer.learning_rate": [3e-5, 1e-4, 3e-3]},
            ["objective", "learning rate", "lag 0", "lag 16"],
            ["asympo", "3e-05"],
            "accuracy_by_learning_rate.png",
        ),
        (
            {"lag": [0], "refresh_every_updates": [1, 16]},
            ["objective", "updates between refreshes 1", "updates between refreshes 16"],
            ["asympo"],
            "accuracy_by_refresh_every_updates.png",
        ),
        (
            {"objective.alpha": [0.0, 0.1, 1.0]},
            ["objective", "alpha 0", "alpha 0.1", "alpha 1"],
            ["asympo"],
            "accuracy_by_alpha.png",
        ),
        ({"lag": [4]}, ["objective", "lag 4"], ["asympo"], None),
        ({"order": ["ticket", "completion"]}, ["objective", "order ticket", "order completion"],
         ["asympo"], "accuracy_by_order.png"),
    ],
)  # fmt: skip
def test_any_sweep_has_a_table_and_the_pictures_that_make_sense(
    tmp_path, varied, header, first, picture
):
    write_sweep(tmp_path, {"objective.name": ["asympo"], **varied, "seed": [0, 1]})
    report(tmp_path)
    rows = markdown(tmp_path)
    assert rows[0] == header
    assert rows[2][: len(first)] == first
    pictures = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert pictures == {"curves.png", *([picture] if picture else [])}


def test_an_objective_that_is_not_varied_is_that_of_the_experiment(tmp_path):
    write_sweep(tmp_path, {"lag": [0, 4], "seed": [0]})
    assert report(tmp_path)["rows"][0]["objective"] == "asympo"


def test_runs_of_values_that_are_no_longer_varied_are_left_out(tmp_path, capsys):
    write_sweep(tmp_path, axes(["asympo"], lags=[0, 4]))
    write_sweep(tmp_path, axes(["asympo"], lags=[4, 16]), lambda values: None)
    assert [c["runs_ended"] for c in report(tmp_path)["rows"][0]["cells"]] == [3, 0]
    write_sweep(tmp_path, axes(["asympo"], lags=[16, 64]), lambda values: None)
    capsys.readouterr()
    assert "no run of the sweep has ended yet" in refusal(capsys, tmp_path)


def test_other_runs_give_other_pictures(tmp_path):
    def other(values):
        metrics = {"nll/positive": [None, 0.05, 0.5], "balance/net": [None, -0.02, -3.0]}
        return outcome(values, (0.5, 0.8, 0.7)) | metrics  # the same scale of accuracies

    for directory, make in (("a", outcome), ("b", other), ("again", outcome)):
        write_sweep(tmp_path / directory, axes(), make)
        report(tmp_path / directory)
    for name in ("accuracy_by_lag.png", "curves.png", "nll.png", "balance.png"):
        first, second, again = (image(tmp_path / folder, name) for folder in ("a", "b", "again"))
        assert (first == again).all(), name
        assert (first != second).any(), name


def test_all_objectives_of_a_family_have_colours_of_their_own():
    for family in captions.FAMILIES.values():
        assert len(set(family.values())) == len(family)


def test_the_families_hold_all_objectives_and_know_who_needs_behaviour_log_probs():
    known = [name for family in captions.FAMILIES.values() for name in family]
    assert sorted(known) == sorted(objectives.names())
    for name in known:
        needs = objectives.make(name).needs
        assert captions.needs_behaviour(name) == ("behaviour" in needs)


@pytest.mark.filterwarnings("error")
def test_failures_nulls_and_missing_metrics_still_give_a_report(tmp_path):
    def make(values):
        if values["lag"] == 0:
            return failed(values)
        odd = {"nll/positive": [None, 0.0, 10**400], "balance/net": [None, None, 1e200]}
        run = outcome(values, (0, 0, 0))
        run |= odd
        del run["nll/negative"]
        return run

    write_sweep(tmp_path, axes(), make)
    assert "NaN" not in json.dumps(report(tmp_path))
    write_sweep(tmp_path / "all", axes(), failed)
    assert cell(tmp_path / "all")["collapsed"] == 3


@pytest.mark.parametrize(
    ("lags", "known", "shown"), [((4, 16, 64), 64, 16), ((4, 16, 64), 4, 4), ((64, 256), 256, 64)]
)
def test_likelihoods_are_shown_at_the_largest_lag_up_to_16_that_is_known(
    tmp_path, lags, known, shown
):
    def make(values):
        run = outcome(values)
        positive = 0.05 if values["lag"] == shown else 0.5
        return run | {"nll/positive": [None] + [positive] * 2} if values["lag"] <= known else None

    write_sweep(tmp_path / "all", axes(lags=lags), make)
    report(tmp_path / "all")
    write_sweep(tmp_path / "one", axes(lags=[shown, shown + 1000]), make)
    report(tmp_path / "one")
    assert (image(tmp_path / "all", "nll.png") == image(tmp_path / "one", "nll.png")).all()


def test_out_names_another_directory(tmp_path):
    write_sweep(tmp_path / "results", axes(["asympo"]))
    assert main([str(tmp_path), f"--out={tmp_path / 'x' / 'y'}"]) == 0
    assert (tmp_path / "x" / "y" / "table.md").exists()
    assert not (tmp_path / "results" / "report").exists()


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("laboratory.json", lambda _: "{", "laboratory.json cannot be read"),
        ("laboratory.json", lambda _: [], "laboratory.json must hold a JSON object"),
        ("laboratory.json", lambda data: data.pop("axes") and data, "no usable 'axes'"),
        ("laboratory.json", lambda data: data | {"axes": {"lag": []}}, "no usable values of 'lag'"),
        ("laboratory.json", lambda data: data | {"axes": {"objective": {"name": [3]}}},
         "no usable values of 'objective.name'"),
        ("laboratory.json", lambda data: data | {"base": BASE | {"lag": "x"}}, "'lag', got 'x'"),
        ("asympo.json", lambda _: "nonsense", "asympo.json cannot be read"),
        ("asympo.json", lambda data: data | {"objective": "spo"}, "not about the objective"),
        ("asympo.json", lambda data: data | {"runs": {}}, "no usable 'runs'"),
        ("asympo.json", lambda data: data | {"runs": [3]}, "run 1, has no usable 'values'"),
        ("asympo.json", lambda data: data | {"runs": []}, "no run of the sweep has ended yet"),
        ("asympo.json", {"values": {"lag": 0}}, "has no value of 'seed'"),
        ("asympo.json", {"learning_rate": "high"}, "'learning_rate', got 'high'"),
        ("asympo.json", {"failure": 3}, "no usable 'failure'"),
        ("asympo.json", {"update": []}, "has no evaluation"),
        ("asympo.json", {"num_updates": 30}, "ends at update 20, must at num_updates=30"),
        ("asympo.json", {"failure": "x"}, "no usable 'diverged'"),
        ("asympo.json", {"update": [0, "x", 2]}, "one without its update"),
        ("asympo.json", {"eval/accuracy": [0.5]}, "a number of 'eval/accuracy' for each update"),
        ("asympo.json", {"eval/accuracy": [0.5, None, 0.5]}, "not from 0 to 1"),
        ("asympo.json", {"eval/accuracy": [0.5, 0.5, 40.0]}, "not from 0 to 1"),
        ("asympo.json", {"nll/positive": ["low"] * 3}, "a number of 'nll/positive'"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_in_one_sentence(tmp_path, capsys, file, change, words):
    write_sweep(tmp_path, axes(["asympo"]))
    data = json.loads((tmp_path / file).read_text())
    if isinstance(change, dict):
        data["runs"][0] |= change
    else:
        data = change(data)
    (tmp_path / file).write_text(data if isinstance(data, str) else json.dumps(data))
    message = refusal(capsys, tmp_path)
    assert str(tmp_path) in message and words in message
    assert not (tmp_path / "report").exists()


def test_a_sweep_beside_other_directories_is_refused(tmp_path, capsys):
    write_sweep(tmp_path / "results", axes(["asympo"]))
    assert "is reported alone" in refusal(capsys, tmp_path, tmp_path / "none")


def test_an_out_that_cannot_be_written_is_refused(tmp_path, capsys):
    write_sweep(tmp_path, axes(["asympo"]))
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(capsys, tmp_path, f"--out={tmp_path / 'file'}")


def test_a_report_of_a_sweep_does_not_load_jax(tmp_path):
    write_sweep(tmp_path, axes(["asympo"]))
    program = (
        "import sys; from asympo_jax.report.__main__ import main; main(sys.argv[1:]);"
        "sys.exit(sum(name in sys.modules for name in ('jax', 'matplotlib.pyplot')))"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == 0


def test_the_page_has_table_pictures_and_every_run_and_needs_nothing_else(tmp_path):
    hostile = "<script>alert(1)</script><img src=x>"

    def make(values):
        return failed(values, hostile, diverged=False) if values["seed"] == 1 else outcome(values)

    results = write_sweep(tmp_path / "results", axes(lags=(0, 16), seeds=(0, 1)), make)
    report(results)
    page = Page((results / "report" / "report.html").read_text())
    assert {"script", "link", "iframe", "a"}.isdisjoint(tag for tag, _ in page.tags)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4 and len({one["alt"] for one in pictures}) == 4
    assert all(one["src"].startswith("data:image/png;base64,") for one in pictures)
    assert "current policy only" in page.text and "0.800 (mean of 1), 1/2 failed" in page.text
    assert "12 runs" in page.text and page.text.count(hostile) == 6


def test_a_run_of_a_sweep_is_a_link_where_its_page_was_made(tmp_path):
    names = {0: "lag=0,name=a%2Fb", 16: "../outside", 64: "lag=64"}
    sweep = tmp_path / "sweep"
    for name in ("lag=0,name=a%2Fb", "../outside"):
        (sweep / name / "report").mkdir(parents=True)
        (sweep / name / "report" / "report.html").write_text("")

    def make(values):
        return outcome(values) | {"run": names[values["lag"]]}

    write_sweep(sweep / "results", axes(["asympo"], list(names), [0]), make)
    assert main([str(sweep)]) == 0
    folder = sweep / "results" / "report"
    page = Page((folder / "report.html").read_text())
    (address,) = (attributes["href"] for tag, attributes in page.tags if tag == "a")
    linked = folder / urllib.parse.unquote(address)
    assert linked.resolve() == (sweep / names[0] / "report" / "report.html").resolve()
    assert main([str(sweep), f"--out={tmp_path / 'elsewhere'}"]) == 0
    elsewhere = Page((tmp_path / "elsewhere" / "report.html").read_text())
    (address,) = (attributes["href"] for tag, attributes in elsewhere.tags if tag == "a")
    assert (tmp_path / "elsewhere" / urllib.parse.unquote(address)).is_file()
