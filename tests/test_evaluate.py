"""An evaluation by itself agrees with that of training, and keeps every response that it counts."""

import contextlib
import dataclasses
import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from hf_directories import write_directory
from model_cases import params_of
from tiny_runs import TINY, Finished, Runner

from asympo_jax import evaluation, evaluation_report, models
from asympo_jax.config import default_config, resolve
from asympo_jax.endings import RunFailed
from asympo_jax.evaluation import Request
from asympo_jax.evaluation_report import Chunk
from asympo_jax.models import ModelConfig
from asympo_jax.sampling import Answers
from asympo_jax.tasks.arithmetic import Arithmetic
from asympo_jax.tasks.countdown import Countdown
from asympo_jax.types import Prompt, StopReason

TINY_SHAPE: dict[str, Any] = {"num_layers": 1, "width": 16, "num_heads": 2, "num_kv_heads": 1}
TINY_SHAPE |= {"head_width": 8, "mlp_width": 16}


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory) -> pathlib.Path:
    """A random decoder with the ids of the arithmetic task."""
    return save_decoder(tmp_path_factory.mktemp("hf") / "decoder", Arithmetic().tokenizer)


def save_decoder(folder: pathlib.Path, tokenizer, **fields) -> pathlib.Path:
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **TINY_SHAPE, **fields)
    models.save(models.Model(config, params_of(config)), folder)
    return folder


def config_of(**fields) -> Any:
    """The config of tiny runs; double underscores in names stand for dots."""
    config = default_config()
    fields = {name.replace("__", "."): value for name, value in fields.items()}
    config.update_from_flattened_dict({**TINY, **fields})
    return config


def evaluate(runner: Runner, *flags: object) -> Finished:
    command = [sys.executable, "-m", "asympo_jax.evaluate", *map(str, flags)]
    return runner.finish(pathlib.Path(), command)


def read(out: pathlib.Path) -> tuple[dict, list[dict]]:
    lines = (out / "evaluation.jsonl").read_text().splitlines()
    return json.loads((out / "evaluation.json").read_text()), [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def found(hf_dir, tmp_path_factory) -> tuple[dict, list[dict]]:
    """An evaluation of a random decoder, in chunks of five prompts."""
    out = tmp_path_factory.mktemp("out")
    asked: dict[str, Any] = {"num_prompts": 24, "samples": 4, "max_rows": 20}
    request = Request(hf_dir=hf_dir, config=config_of(), out=out, **asked)
    returned = evaluation.prepare(request).run()
    summary, problems = read(out)
    assert returned == summary
    return summary, problems


# ---------------------------------------------------------------------------- against training


def test_any_checkpoint_has_exactly_the_accuracies_that_its_run_found(runner, longer_run, tmp_path):
    workdir, results = longer_run
    for update, flags in ((6, []), (2, ["--update=2", f"--out={tmp_path}"])):
        done = evaluate(runner, f"--workdir={workdir}", *flags)
        assert done.code == 0, done.stderr
        summary, problems = read(tmp_path if flags else workdir)
        for name in ("eval/accuracy", "eval/accuracy_greedy"):
            assert summary[name] == results[update][name]
        assert summary["updates"] == update and len(problems) == 40
        assert f"{workdir} after {update} updates: 40 held-out prompts" in done.stdout
        assert "sampled   40/40 prompts" in done.stderr
    assert 0 < results[6]["eval/accuracy"] != results[2]["eval/accuracy"]


def test_an_exported_checkpoint_answers_as_the_checkpoint(runner, longer_run, tmp_path):
    workdir, _ = longer_run
    folder = tmp_path / "exported"
    command = [sys.executable, "-m", "asympo_jax.export", f"--workdir={workdir}"]
    assert runner.finish(folder, [*command, f"--out={folder}"]).code == 0
    config = workdir / "config.json"
    flags = [f"--hf_dir={folder}", f"--config={config}", "--samples=2", "--num_prompts=8"]
    done = evaluate(runner, *flags, f"--out={tmp_path / 'a'}", "--config.model.mlp_width=64")
    assert done.code == 0, done.stderr
    flags = [f"--workdir={workdir}", "--samples=2", "--num_prompts=8"]
    assert evaluate(runner, *flags, f"--out={tmp_path / 'b'}").code == 0
    assert read(tmp_path / "a")[1] == read(tmp_path / "b")[1]


# ------------------------------------------------------------------------------------- records


def test_the_summary_follows_from_the_responses(found):
    summary, problems = found
    responses = [one for problem in problems for one in problem["responses"]]
    assert [problem["index"] for problem in problems] == list(range(24))
    assert all(len(problem["responses"]) == 4 for problem in problems)
    assert summary["eval/accuracy"] == np.mean([one["correct"] for one in responses])
    assert summary["estimates"]["pass@4"]["mean"] == np.mean(
        [any(one["correct"] for one in problem["responses"]) for problem in problems]
    )
    generation = summary["generation"]
    assert generation["responses"] == 96
    assert generation["tokens"] == sum(one["num_tokens"] for one in responses)
    assert generation["truncated_share"] == np.mean([one["stop"] == "length" for one in responses])
    assert 0 < generation["truncated_share"] < 1
    assert list(summary["estimates"]) == ["greedy", "avg@4", "pass@1", "pass@2", "pass@4", "maj@4"]


def test_every_response_is_recorded_with_what_it_was_graded_by(found):
    task = config_of().task.name  # digits are right
    assert task == "tasks_for_tests:Digits"
    for problem in found[1]:
        prompt = Arithmetic().eval_prompt(problem["index"])
        assert (problem["prompt"], problem["answer"]) == (prompt.text, prompt.answer)
        for one in [problem["greedy"], *problem["responses"]]:
            assert one["correct"] == one["text"].isdigit()
            assert one["answer"] == Arithmetic().answer(one["text"])
            assert one["num_tokens"] >= len(one["text"]) + (one["stop"] == "stop_token")
    assert any(one["correct"] for problem in found[1] for one in problem["responses"])


def test_it_says_what_would_repeat_it(found, hf_dir):
    summary = found[0]
    assert summary["hf_dir"] == str(hf_dir) and "updates" not in summary
    assert summary["sampling"] == {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "max_response_tokens": 6,
        "seed": 0,
    }
    assert summary["config"]["task"]["name"] == "tasks_for_tests:Digits"
    assert set(summary["versions"]) == {"jax", "jaxlib", "numpy"}
    assert summary["device"]["platform"] == "cpu"


def test_a_response_depends_on_seed_prompt_and_place_alone(found, hf_dir, tmp_path):
    asked: dict[str, Any] = {"samples": 1, "num_prompts": 3}
    for seed in (0, 1):
        out = tmp_path / str(seed)
        request = Request(hf_dir=hf_dir, config=config_of(), out=out, seed=seed, **asked)
        summary = evaluation.prepare(request).run()
        same = [
            few["responses"] == many["responses"][:1] and few["greedy"] == many["greedy"]
            for few, many in zip(read(out)[1], found[1], strict=False)
        ]
        assert (len(same), all(same), summary["sampling"]["seed"]) == (3, seed == 0, seed)


def test_what_is_asked_for_goes_before_the_config(hf_dir, tmp_path):
    config = config_of(
        sampler__top_k=3,
        sampler__temperature=0.5,
        task__name="tasks_for_tests:WithoutDemonstrations",
        warmup__num_steps=5,  # nothing is trained
    )
    request = Request(
        hf_dir=hf_dir, config=config, out=tmp_path, num_prompts=1, temperature=1.5, top_p=0.9
    )
    prepared = evaluation.prepare(request)
    summary = prepared.run()
    assert summary["sampling"] | {"seed": None} == {
        "temperature": 1.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.0,
        "max_response_tokens": 6,
        "seed": None,
    }
    assert (config.sampler.temperature, config.sampler.top_k) == (0.5, 3)
    assert summary["estimates"]["avg@1"]["low"] is None
    assert config.model.hf_dir is None, "the config given is not changed"
    assert "of one prompt, no interval" in evaluation_report.table(summary)
    assert "temperature 1.5, top_k 3, top_p 0.9, seed 0" in evaluation_report.table(summary)


def test_temperature_0_is_greedy_alone(found, hf_dir, tmp_path):
    request = Request(
        hf_dir=hf_dir, config=config_of(), out=tmp_path, num_prompts=24, temperature=0.0
    )
    summary = evaluation.prepare(request).run()
    assert list(summary["estimates"]) == ["greedy"] and "eval/accuracy" not in summary
    assert (summary["samples_per_prompt"], summary["sampling"]["temperature"]) == (1, 0.0)
    problems = read(tmp_path)[1]
    assert [p["greedy"] for p in problems] == [p["greedy"] for p in found[1]]
    assert all(problem["responses"] == [] for problem in problems)
    assert summary["generation"]["responses"] == 24


def test_gradings_that_fail_count_as_wrong_and_are_told(hf_dir, tmp_path):
    config = config_of(task__name="tasks_for_tests:FailsOnSome", reward__num_processes=1)
    request = Request(hf_dir=hf_dir, config=config, out=tmp_path, num_prompts=8, samples=8)
    summary = evaluation.prepare(request).run()
    responses = [
        one for problem in read(tmp_path)[1] for one in [problem["greedy"], *problem["responses"]]
    ]
    late = [one for one in responses if one["text"].startswith("3")]
    fatal = [one for one in responses if one["text"].startswith("7")]
    wrong = [one for one in responses if one["text"].startswith(("9", "2"))]
    assert late and fatal and wrong
    assert not any(one["correct"] for one in late + fatal + wrong)
    assert any(one["correct"] for one in responses)
    counts = {"timeouts": len(late), "deaths": len(fatal), "errors": len(wrong)}
    assert summary["grading"] == counts
    assert (
        f"{sum(counts.values())} gradings failed and count as wrong: {len(late)} took too long, "
        f"in {len(fatal)} the process died, {len(wrong)} raised"
    ) in evaluation_report.table(summary)


def test_the_command_grades_in_a_process_and_leaves_none_behind(
    runner, hf_dir, tmp_path, monkeypatch
):
    monkeypatch.setitem(runner.environment, "LEFT_BY", str(tmp_path))
    config = config_of(task__name="tasks_for_tests:FailsOnSome", reward__num_processes=2)
    (tmp_path / "config.json").write_text(json.dumps(resolve(config).source))
    command = [sys.executable, "-m", "asympo_jax.evaluate", f"--hf_dir={hf_dir}", "--samples=8"]
    command += [f"--config={tmp_path / 'config.json'}", f"--out={tmp_path}", "--num_prompts=8"]
    done = runner.finish_afresh(tmp_path, command)
    assert done.code == 0, done.stderr
    summary, problems = read(tmp_path)
    sampled = [one for problem in problems for one in problem["responses"]]
    fails = ("3", "7", "9", "2")
    right = [one["text"].isdigit() and not one["text"].startswith(fails) for one in sampled]
    assert [one["correct"] for one in sampled] == right
    assert summary["eval/accuracy"] == np.mean(right) > 0
    assert min(summary["grading"].values()) > 0, "only a process can end or be late alone"
    assert not processes_of(f"LEFT_BY={tmp_path}")


def processes_of(variable: str) -> list[str]:
    """Processes that have a variable in their environment."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found += [path.parent.name] * (variable.encode() in path.read_bytes().split(b"\0"))
    return found


def test_nothing_is_written_unless_everything_was_graded(hf_dir, tmp_path):
    config = config_of(task__name="tasks_for_tests:RaisesInEvaluation")
    request = Request(hf_dir=hf_dir, config=config, out=tmp_path)
    with pytest.raises(RunFailed, match=r"prompt 0.*the grader fell over"):
        evaluation.prepare(request).run()
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_is_no_text_is_named(hf_dir, tmp_path):
    config = config_of(task__name="tasks_for_tests:AnswersNumbers")
    request = Request(hf_dir=hf_dir, config=config, out=tmp_path)
    with pytest.raises(RunFailed, match=r"AnswersNumbers.answer for prompt 0.* returned 7: must"):
        evaluation.prepare(request).run()


def test_a_decoder_with_its_own_tokenizer_answers_a_task_without_votes(tmp_path):
    tokenizer_dir = write_directory(tmp_path / "tokenizer")
    options = {"task__name": "countdown", "task__tokenizer_dir": str(tokenizer_dir)}
    tokenizer = Countdown(tokenizer_dir=str(tokenizer_dir)).tokenizer
    # As published decoders, it has more rows than its tokenizer has ids.
    hf_dir = tmp_path / "decoder"
    config = ModelConfig(vocab_size=tokenizer.vocab_size + 5, qk_norm=True, **TINY_SHAPE)
    models.save(models.Model(config, params_of(config)), hf_dir)
    request = Request(
        hf_dir=hf_dir,
        config=config_of(sampler__max_prompt_tokens=400, **options),
        out=tmp_path / "out",
        samples=2,
    )
    summary = evaluation.prepare(request).run()
    assert summary["estimates"]["greedy"]["mean"] == 0 and not summary["has_votes"]
    assert "maj@2" not in summary["estimates"]
    assert "no maj@2: the task names no answers to vote" in evaluation_report.table(summary)
    problem = read(tmp_path / "out")[1][0]
    assert problem["greedy"]["answer"] is None and len(problem["responses"]) == 2


# ---------------------------------------------------------------------------------- throughput


def chunk(generation_s: float, lengths: list[int]) -> Chunk:
    """One prompt that was answered with responses of these lengths; 9 is the longest."""
    stops = [StopReason.LENGTH if length == 9 else StopReason.STOP_TOKEN for length in lengths]
    answers = Answers(
        prompts=(Prompt(0, "?", "!"),),
        texts=(("!",) * len(lengths),),
        length_PK=np.array([lengths], np.int32),
        stop_PK=np.array([stops], np.int8),
    )
    return Chunk(answers, np.ones((1, len(lengths)), bool), None, generation_s)


def test_the_first_of_several_chunks_compiles_and_is_not_timed():
    greedy = [chunk(1.0, [1])] * 3
    chunks = [chunk(100.0, [9, 1]), chunk(2.0, [9, 3]), chunk(3.0, [4, 4])]
    found = evaluation_report.findings(greedy, chunks)["generation"]
    assert found["tokens_per_s"] == 20 / 5 and found["responses_per_s"] == 4 / 5
    assert (found["timed_responses"], found["has_compilation"]) == (4, False)
    assert (found["responses"], found["tokens"], found["mean_tokens"]) == (6, 30, 5.0)
    assert found["truncated_share"] == 2 / 6
    only = evaluation_report.findings(greedy[:1], chunks[:1])["generation"]
    assert only["tokens_per_s"] == 10 / 100 and only["has_compilation"]


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "give one of --workdir and --hf_dir, not neither"),
        ({"workdir": "a", "hf_dir": "b"}, "give one of --workdir and --hf_dir, not both"),
        ({"hf_dir": "b", "update": 2, "out": "c"}, "--update=2: goes with --workdir"),
        ({"hf_dir": "b"}, "--hf_dir needs --out"),
        ({"workdir": "a", "config": default_config()}, "--config goes with --hf_dir"),
        ({"workdir": "a", "temperature": 0.0, "samples": 2}, "--samples=2: must be 1"),
        ({"workdir": "a", "temperature": 0.0, "top_p": 0.5}, "not with --temperature=0"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, words):
    for name in {"workdir", "hf_dir", "out"} & fields.keys():
        fields[name] = pathlib.Path(fields[name])
    with pytest.raises(ValueError, match=words):
        Request(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": -1.0}, r"sampler\.temperature=-1\.0: must be from"),
        ({"top_p": 2.0}, r"sampler\.top_p=2\.0: must be above 0"),
        ({"num_prompts": 9999}, r"eval\.num_prompts=9999: task .* has 2048 held-out prompts"),
        ({"out": "{tmp}/file"}, "out={tmp}/file: must be a directory"),
        ({"hf_dir": "{tmp}/none"}, "{tmp}/none: is not a directory"),
        (
            {"hf_dir": "{tmp}/larger"},
            "model.hf_dir='{tmp}/larger': its decoder has 19 token ids, .* 18",
        ),
        (
            {"hf_dir": "{tmp}/smaller"},
            "hf_dir='{tmp}/smaller': its decoder has 17 token ids, .* 18",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_computed(
    hf_dir, tmp_path, fields, words
):
    (tmp_path / "file").write_text("")
    config = ModelConfig(vocab_size=18, **TINY_SHAPE)
    for name, size in (("larger", 19), ("smaller", 17)):
        other = dataclasses.replace(config, vocab_size=size)
        models.save(models.Model(other, params_of(other)), tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()  # nothing of it is read
    paths = {name: str(fields[name]).format(tmp=tmp_path) for name in {"hf_dir", "out"} & {*fields}}
    fields = {"hf_dir": hf_dir, "out": tmp_path / "out", **fields}
    fields |= {name: pathlib.Path(path) for name, path in paths.items()}
    with pytest.raises(ValueError, match=words.replace("{tmp}", str(tmp_path))):
        evaluation.prepare(Request(config=config_of(), **fields))
    assert not (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workdir={tmp}", "--config.lag=1"], "--config goes with --hf_dir"),
        (["--hf_dir=", "--out={tmp}"], "--hf_dir is empty"),
        (["--workdir={tmp}"], "workdir={tmp}: is not the directory of a run"),
    ],
)
def test_the_command_ends_with_one_sentence_and_code_2(runner, tmp_path, flags, words):
    done = evaluate(runner, *(flag.format(tmp=tmp_path) for flag in flags))
    assert done.code == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert words.format(tmp=tmp_path) in done.error
