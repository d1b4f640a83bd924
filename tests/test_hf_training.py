"""From a Hugging Face directory through an asynchronous run to a Hugging Face directory."""

import dataclasses
import json
import pathlib
import runpy
import shutil
import sys
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import parity_cases
import pytest
from parity_cases import CASES
from tiny_runs import cut_back

from asympo_jax import models
from asympo_jax.config import default_config, resolve
from asympo_jax.experiment import build_parts
from asympo_jax.runtime.snapshots import parameters_sha256
from asympo_jax.tasks.gsm8k_prepare import main as prepare_gsm8k
from asympo_jax.tiny_models import write_tiny
from asympo_jax.training import prepare


def problem(name: str, n: int) -> dict[str, str]:
    question = f"{name} has {n} pears and buys {n + 1} more. How many pears is that?"
    return {"question": question, "answer": f"{n} + {n + 1} = {2 * n + 1}\n#### {2 * n + 1}"}


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory) -> pathlib.Path:
    """Prepared records of made-up problems."""
    raw = tmp_path_factory.mktemp("raw")
    for split, name in (("train", "Ann"), ("test", "Bo")):
        lines = [json.dumps(problem(name, n)) for n in range(9)]
        (raw / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    directory = tmp_path_factory.mktemp("gsm8k")
    assert not prepare_gsm8k([f"--raw={raw}", f"--data_dir={directory}"])
    return directory


def fields(hf_dir: pathlib.Path, gsm8k: pathlib.Path) -> dict[str, object]:
    """Of a few asynchronous updates on GSM8K; the shape of the model is the directory's."""
    names = ("num_layers", "width", "num_heads", "num_kv_heads", "head_width", "mlp_width")
    defaults = default_config().model
    return {
        **{f"model__{name}": defaults[name] for name in names},
        "model__hf_dir": hf_dir,
        "task__name": "gsm8k",
        "task__data_dir": gsm8k,
        "task__tokenizer_dir": hf_dir,
        "task__max_prompt_tokens": 256,
        "sampler__max_prompt_tokens": 256,
        "sampler__max_response_tokens": 8,
        "learner__micro_batch": 4,
        # Random models answer nothing right; so that there is something to learn, any does.
        "reward__function": "tasks_for_tests:length_of_text",
        "num_updates": 3,
        "lag": 1,
        "checkpoint__every_updates": 2,
        "sampler__params_dtype": "bfloat16",
    }


@pytest.fixture(scope="module")
def trained(runner, gsm8k, tmp_path_factory):
    """(Directory, finished run, exported directory); samplers get bfloat16."""
    folder = tmp_path_factory.mktemp("qwen3")
    write_tiny(folder / "hf", "qwen3")
    run = runner.train(folder / "run", **fields(folder / "hf", gsm8k))
    assert run.code == 0, run.stderr
    command = [sys.executable, "-m", "asympo_jax.export", f"--workdir={folder / 'run'}"]
    done = runner.finish(folder / "run", [*command, f"--out={folder / 'out'}"])
    assert done.code == 0, done.stderr
    return folder / "hf", run, folder / "out"


def test_a_run_goes_on_from_the_parameters_of_the_directory(trained):
    hf_dir, run, out = trained
    before, after = models.load(hf_dir), models.load(out)
    assert after.config == before.config
    assert parameters_sha256(after.params) == run.sha != parameters_sha256(before.params)
    # Three updates at rate 3e-4: near, and not the same anywhere.
    for name in ("embedding", "final_norm"):
        old, new = (np.concatenate([np.ravel(x) for x in leaves(m, name)]) for m in (before, after))
        assert 0 < np.abs(new - old).max() < 2e-3


def leaves(model: models.Model, name: str) -> list[np.ndarray]:
    part = model.params[name]
    return [np.asarray(x) for x in part.values()] if isinstance(part, dict) else [np.asarray(part)]


def test_what_is_exported_has_the_tokenizer_of_where_the_run_came_from(trained):
    hf_dir, _, out = trained
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (hf_dir / name).read_bytes()


def test_a_run_of_a_directory_is_resumed_from_its_checkpoint_alone(
    trained, runner, gsm8k, tmp_path
):
    hf_dir, run, _ = trained
    cut_back(run, tmp_path / "run", update=2)
    resumed = runner.train(tmp_path / "run", **fields(hf_dir, gsm8k))
    assert "carries on from the checkpoint of update 2" in resumed.stderr
    assert resumed.sha == run.sha


def test_samplers_get_bfloat16_if_that_is_asked_for(trained):
    _, run, _ = trained
    # The snapshots that a resumed run would sample with, as samplers had them.
    snapshots = run.workdir / "checkpoints" / "2" / "snapshots"
    found = ocp.StandardCheckpointer().metadata(snapshots).item_metadata.tree
    assert set(found) == {"1", "2"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {"bfloat16"}


def config_of(hf_dir: object, gsm8k: pathlib.Path, **changes: object):
    config = default_config()
    given = {**fields(pathlib.Path("x"), gsm8k), "model__hf_dir": hf_dir, "warmup__num_steps": 0}
    given |= {"task__tokenizer_dir": hf_dir, "eval__num_prompts": 8, "prompts_per_update": 4}
    for name, value in (given | changes).items():
        section, _, field = name.partition("__")
        target: Any = config[section] if field else config
        with target.unlocked():
            target[field or section] = str(value) if isinstance(value, pathlib.Path) else value
    return config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model__width": 32}, "model.width=32 with model.hf_dir="),
        ({"model__qk_norm": True}, "model.qk_norm=True with model.hf_dir="),
        ({"warmup__num_steps": 5}, "warmup.num_steps=5 with model.hf_dir="),
    ],
)
def test_what_a_loaded_model_leaves_without_effect_is_refused(gsm8k, change, words):
    with pytest.raises(ValueError) as refused:
        resolve(config_of("hf", gsm8k, **change))
    assert str(refused.value).startswith(words)


def test_directories_that_cannot_be_loaded_are_refused_before_anything_starts(gsm8k, tmp_path):
    write_tiny(tmp_path / "hf", "qwen3")

    def refusal() -> str:
        with pytest.raises(ValueError) as refused:
            prepare(resolve(config_of(tmp_path / "hf", gsm8k)), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return str(refused.value)

    config_path = tmp_path / "hf" / "config.json"
    original = json.loads(config_path.read_text())
    config_path.write_text(json.dumps(original | {"vocab_size": 300}))
    assert "its decoder has 300 token ids, the tokenizer of task 'gsm8k' has 482" in refusal()
    config_path.write_text(json.dumps(original | {"model_type": "gpt2"}))
    assert refusal().startswith("model.hf_dir: ") and "model_type='gpt2'" in refusal()
    config_path.write_text(json.dumps(original | {"num_hidden_layers": 3}))
    assert "tensor 'model.layers.2." in refusal() and "is missing" in refusal()


def test_a_model_may_have_more_rows_than_its_tokenizer_has_ids(gsm8k, tmp_path):
    write_tiny(tmp_path / "hf", "llama3")
    config = resolve(config_of(tmp_path / "hf", gsm8k))
    parts = build_parts(config)
    assert parts.model.vocab_size == 512
    assert parts.model.rope_scaling is not None
    known = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    assert len(known["model"]["vocab"]) < 512


REAL = {
    "aspo_qwen2_1p5b": "qwen2",
    "gsm8k_qwen3_1p7b": "qwen3",
    "math_llama3p2_3b": "llama3",
    "math_qwen3_1p7b": "qwen3",
    "math_qwen3_4b": "qwen3",
}
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def test_configs_of_real_models_resolve_and_refuse_unknown_variants():
    assert {p.stem for p in CONFIGS.glob("*.py") if "shrink" in p.read_text()} == set(REAL)
    for name in REAL:
        get_config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]
        real = resolve(get_config())
        assert real.learner.remat == "full" and real.step.micro_batch == 1
        with pytest.raises(ValueError, match="must be 'tiny' or left out"):
            get_config("small")


@pytest.mark.parametrize("name", REAL)
def test_the_tiny_variant_of_a_config_resolves_and_its_parts_are_built(name, gsm8k, tmp_path):
    write_tiny(tmp_path / "hf", REAL[name])
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]("tiny")
    given = {"model.hf_dir": tmp_path / "hf", "task.data_dir": gsm8k}
    config.update_from_flattened_dict({field: str(path) for field, path in given.items()})
    assert build_parts(resolve(config)).model.vocab_size == 512


# One of each family but that of the run above.
@pytest.mark.parametrize("name", ["aspo_qwen2_1p5b", "math_llama3p2_3b"])
def test_the_tiny_variant_of_a_config_is_trained(name, runner, gsm8k, tmp_path):
    write_tiny(tmp_path / "hf", REAL[name])
    flags = ["num_updates=1", f"model.hf_dir={tmp_path / 'hf'}", f"task.data_dir={gsm8k}"]
    flags += ["runtime.name=sync", "eval.process=False", "eval.num_prompts=4"]
    command = [sys.executable, "-m", "asympo_jax.train", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config={CONFIGS / name}.py:tiny", *(f"--config.{flag}" for flag in flags)]
    run = runner.finish(tmp_path / "run", command)
    assert run.result["updates"] == 1


# Of torch and transformers, on which nothing here depends.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("needs_torch")
@pytest.mark.parametrize("name", ["qwen2_tied", "qwen3_untied_sharded", "llama3_tied_old"])
def test_transformers_agrees_before_and_after_training(name, runner, gsm8k, tmp_path):
    hf_dir, out = tmp_path / "hf", tmp_path / "out"
    case = CASES[name]
    case = dataclasses.replace(case, options=case.options | {"vocab_size": 512})
    parity_cases.write_oracle(case, parity_cases.make_oracle(case, seed=0), hf_dir)
    write_tiny(tmp_path / "tiny", case.family.replace("llama", "llama3"))
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(tmp_path / "tiny" / file, hf_dir / file)
    run = runner.train(tmp_path / "run", **fields(hf_dir, gsm8k))
    assert run.code == 0, run.stderr
    command = [sys.executable, "-m", "asympo_jax.export", f"--workdir={tmp_path / 'run'}"]
    assert runner.finish(tmp_path / "run", [*command, f"--out={out}"]).code == 0
    logits = []
    for directory in (hf_dir, out):
        theirs = parity_cases.oracle_logits(parity_cases.load_oracle(directory))
        ours = parity_cases.our_logits(models.load(directory))
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
        logits.append(ours)
    assert np.abs(logits[1] - logits[0]).max() > 1e-3, "training changed nothing"
