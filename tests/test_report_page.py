"""The page of a report: what it shows, that it needs nothing else, and that it trusts no text."""

import dataclasses
import itertools
import json
import subprocess

import pytest
from pages import Page
from run_cases import metrics_line, write_run

from asympo_jax import environment
from asympo_jax.report import rollouts, times
from asympo_jax.report.__main__ import main
from asympo_jax.report.details import load_details
from asympo_jax.report.records import Run, load_run

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e&amp; \"'"
START = 1_800_000_000.0
ATTEMPT = {
    "started": "2027-01-15T08:00:00+00:00",  # that is START
    "command": ["train.py", "--workdir=<b>"],
    "commit": "c0ffee+changes",
    "python": "3.11.7",
    "versions": {"jax": "0.10.2", "optax": None},
    "devices": ["cpu", "cpu"],
    "memory_bytes": 2**33,
}


def sample(response="#2", reward: object = 1.0, version=0, ticket=0):
    return {
        "ticket": ticket, "version": version, "lag": 0, "prompt": "1+1=", "response": response,
        "reward": reward, "tokens": 2, "stop": "stop_token",
    }  # fmt: skip


def write_samples(run, update, *samples):
    folder = run / "rollouts"
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(one) + "\n" for one in samples]
    (folder / f"update_{update:08d}.jsonl").write_text("".join(lines))


def times_line(update, begin, leases=()):
    return {
        "update": update,
        "wait": [begin, begin + 1],
        "train": [begin + 1, begin + 3],
        "publish": [begin + 3, begin + 3.5],
        "leases": list(leases),
    }


def write_lines(path, *lines):
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts))


def full_run(directory, **fields):
    """A run that left everything, with text that would like to be more than text."""
    run = write_run(directory, **fields)
    write_samples(run, 1, sample(HOSTILE, 0.0))
    write_samples(run, 4, sample("the last one", version=3))
    leases = [[0, 0, 0, START, START + 2], [1, 1, 0, START, START + 3]]
    write_lines(run / "timeline.jsonl", times_line(1, START, leases), times_line(2, START + 3, []))
    write_lines(run / "environment.jsonl", ATTEMPT)
    return run


def read_page(out):
    return Page((out / "report.html").read_text())


def details(run):
    return load_details(run, load_run(run, run.name))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = full_run(tmp_path_factory.mktemp("runs") / "a")
    assert main([str(run)]) == 0
    return read_page(run / "report")


def test_a_page_fetches_nothing_and_runs_nothing(page):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "trace.json") == "trace.json"
    policies = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_a_page_fits_a_phone_and_a_dark_room(page):
    assert ("meta", "width=device-width, initial-scale=1") in [
        (tag, a["content"]) for tag, a in page.tags if a.get("name") == "viewport"
    ]
    assert "prefers-color-scheme: dark" in page.text


def test_what_a_model_wrote_is_shown_and_not_obeyed(page):
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert shown in page.text
    assert "--workdir=<b>" in page.text


def test_a_page_shows_pictures_answers_before_and_after_and_what_ran(page):
    pictures = [a["alt"] for tag, a in page.tags if tag == "img"]
    assert len(pictures) == len(set(pictures)) == 7
    assert page.text.index("drawn by the initial parameters") < page.text.index("snapshot 3")
    assert "update 4 (mean reward of all its responses 0.44), drawn by snapshot 3" in page.text
    for words in ("reward 0", "reward 1", "c0ffee+changes", "jax 0.10.2", "2 × cpu", "8 GiB"):
        assert words in page.text
    assert "optax None" not in page.text


def test_the_sentence_on_the_bottleneck_has_medians_and_says_so(tmp_path):
    names = ("time/update_s", "time/sample_s", "time/train_s", "pipeline/ideal_fraction")
    names += ("idle/learner", "idle/sampler")
    lines = [dict.fromkeys(names, value) | {"update": value} for value in (1.0, 2.0, 9.0)]
    found = dataclasses.replace(details(full_run(tmp_path / "a")), run=Run("a", {}, lines, None))
    assert "bottleneck: in the median an update took 2 s" in str(found.bottleneck())


def test_a_run_that_left_metrics_alone_has_a_page_that_says_what_is_missing(tmp_path):
    run = write_run(tmp_path / "a")
    assert main([str(run)]) == 0
    page = read_page(run / "report")
    for words in ("no timeline", "No samples were written", "did not write down what it ran on"):
        assert words in page.text
    assert not (run / "report" / "trace.json").exists()


def test_several_runs_are_columns_and_only_fields_that_differ_are_compared(tmp_path):
    other = {"objective": "spo", "lag": 64, "task": {"name": "my:Own"}}
    runs = [full_run(tmp_path / "a"), full_run(tmp_path / "b<", **other)]
    assert main([*map(str, runs)]) == 0
    page = read_page(tmp_path / "report")
    fields = page.text[page.text.index("What ran") :].partition("train.py")[0]
    assert "objective.name" in fields and "lag" in fields and "group_size" not in fields
    assert "taskarithmeticmy:Own" in page.text
    assert page.text.count("b<") >= 4
    trace = json.loads((tmp_path / "report" / "trace.json").read_text())
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert names == ["a", "b<"]


def test_a_trace_has_a_named_row_for_all_work_and_no_two_stretches_overlap(tmp_path):
    overlapping = [[0, 0, 0, START, START + 2.0], [0, 1, 0, START + 1.9, START + 4]]
    run = write_run(tmp_path / "a")
    write_lines(run / "timeline.jsonl", times_line(1, START, overlapping))
    events = times.chrome_trace([("a", times.load_times(run))])["traceEvents"]
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(rows.values()) == ["learner", "publisher", "sampler 0"]
    work = sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"])
    assert {(e["name"], e["ts"], e["dur"]) for e in work if rows[e["tid"]] == "learner"} == {
        ("wait 1", 0, 1_000_000), ("train 1", 1_000_000, 2_000_000)
    }  # fmt: skip
    for row in rows:
        own = [e for e in work if e["tid"] == row]
        assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in itertools.pairwise(own))


def test_the_picture_is_of_the_newest_attempt_and_the_trace_of_all(tmp_path):
    run = full_run(tmp_path / "a")
    write_lines(
        run / "timeline.jsonl",
        times_line(1, START - 9000),
        times_line(2, START + 1),
        times_line(3, START + 9),
    )
    found = details(run)
    assert {span.update for span in found.spans} == {1, 2, 3}
    assert {span.update for span in found.newest_spans} == {2, 3}


def test_lines_that_are_malformed_are_left_out(tmp_path):
    run = full_run(tmp_path / "a")
    bad = ["nonsense", "[]", '{"update": 5}', times_line(6, START) | {"wait": ["a", "b"]}]
    bad += [times_line(7, float("nan")), times_line(8, 1e300), times_line(9, START, [[0]])]
    write_lines(run / "timeline.jsonl", *bad, '{"update": 9, "wa', times_line(10, START))
    write_lines(run / "environment.jsonl", "nonsense", "[]", ATTEMPT)
    write_lines(
        run / "rollouts" / "update_00000004.jsonl",
        "nonsense", "[]", "{}", sample(reward="1"), sample(reward=10**400), sample() | {"lag": "1"},
        sample() | {"response": None}, sample("kept", reward=None),
    )  # fmt: skip
    assert main([str(run)]) == 0
    found = details(run)
    assert {span.update for span in found.spans} == {6, 10}
    assert {span.what for span in found.spans if span.update == 6} == {"train", "publish"}
    assert len(found.attempts) == 1
    samples, num_bad = rollouts.read(4, run / "rollouts" / "update_00000004.jsonl")
    assert ([one.response for one in samples], num_bad) == (["kept"], 7)


def test_of_each_prompt_the_best_and_the_worst_answer_are_shown_first(tmp_path):
    run = write_run(tmp_path / "a")
    samples = [sample(f"{t} {r}", r, ticket=t) for t in (0, 1) for r in (0.5, 0.0, None, 1.0)]
    write_samples(run, 3, *samples)
    ((*shown,),) = rollouts.first_and_last(run, 4)
    assert [one.response for one in shown] == ["0 1.0", "1 1.0", "0 None", "1 None"]


def test_shares_of_lags_are_over_all_updates(tmp_path):
    lines = [metrics_line(1, **{"lag/histogram": {"0": 3, "2": 1}})]
    lines += [metrics_line(2, **{"lag/histogram": {"2": 4, "x": 9}})]
    run = load_run(write_run(tmp_path / "a", lines=lines, result=False), "a")
    assert run.lags() == {0: 3 / 8, 2: 5 / 8}


def test_the_commit_is_that_of_the_clone_that_the_package_lies_in_and_of_no_other(tmp_path):
    package, elsewhere = tmp_path / "package", tmp_path / "venv" / "lib" / "package"
    for folder in (package, elsewhere):
        folder.mkdir(parents=True)
        (folder / "module.py").write_text("")
    assert environment.commit(package) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert environment.commit(package) == head.strip()
    assert environment.commit(elsewhere) is None
    (package / "module.py").write_text("changed")
    assert environment.commit(package) == f"{head.strip()}+changes"


def test_an_attempt_that_cannot_be_described_on_disk_goes_on(tmp_path):
    told = []
    environment.record(tmp_path / "gone", environment.describe(["cpu"]), told.append)
    assert len(told) == 1 and "environment.jsonl" in told[0]
    environment.record(tmp_path, environment.describe(["cpu"]), told.append)
    environment.record(tmp_path, environment.describe(["cpu"]), told.append)
    lines = [json.loads(text) for text in (tmp_path / "environment.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and len(told) == 1
    assert lines[0]["versions"]["jax"] and lines[0]["devices"] == ["cpu"]
