"""LoRA: adapters in the learner's step, in snapshots and in whole runs."""

import dataclasses
import json
import pathlib
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors
import safetensors.numpy
from lora_cases import LORA, TOKENS, adapters_of, base_of, by_path, copied, leaf_names
from model_cases import LLAMA, full_logits, params_of
from step_cases import (
    ONE_LAYER,
    STEP,
    assert_close,
    copied_params,
    example_batch,
)
from tiny_runs import Finished, cut_back

from asympo_jax import experiment, learning, models, objectives, states, workdirs
from asympo_jax.config import resolve
from asympo_jax.learning.train_step import make_sign_gradients
from asympo_jax.models import LoraConfig
from asympo_jax.runtime.snapshots import SnapshotRefused, SnapshotStore, read_params, write_params
from asympo_jax.runtime.tensor_files import read_files


def new_state(optimizer: Any, name: str = "asympo", **options: Any) -> learning.TrainState:
    """A state whose adapters and base are its own."""
    base = models.frozen_base(ONE_LAYER, copied_params(model=ONE_LAYER), LORA)
    needs = objectives.make(name, **options).needs
    return learning.state_from_params(copied(adapters_of(ONE_LAYER)), optimizer, needs, base)


def test_updates_move_every_adapter_and_leave_the_base_where_it_is():
    optimizer = optax.adam(1e-2)
    state = first = new_state(optimizer)
    before, adapters = copied(first.base), copied(first.params)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(first.base)]
    step = learning.make_train_step(ONE_LAYER, objectives.make("asympo"), optimizer, STEP)
    state, _ = step(state, example_batch())
    state, metrics = step(state, example_batch())
    jax.tree.map(np.testing.assert_array_equal, state.base, before)
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.base)] == buffers
    moved = jax.tree.map(lambda x, y: not np.array_equal(x, y), state.params, adapters)
    assert all(jax.tree.leaves(moved))
    assert leaf_names(state.params) == {"lora_a", "lora_b"}
    assert len(jax.tree.leaves(state.opt_state)) == 2 * len(jax.tree.leaves(state.params)) + 1
    assert metrics["params/norm"] == pytest.approx(float(optax.tree.norm(state.params)), rel=1e-5)


def test_the_step_holds_no_second_copy_of_the_base():
    config = dataclasses.replace(ONE_LAYER, vocab_size=4000, width=128)
    base = models.frozen_base(config, params_of(config), LORA)
    state = learning.state_from_params(adapters_of(config), optax.sgd(1.0), base=base)
    rows = dataclasses.replace(STEP, micro_batch=1)
    step: Any = learning.make_train_step(config, objectives.make("asympo"), optax.sgd(1.0), rows)
    memory = step.lower(state, example_batch()).compile().memory_analysis()
    num_bytes = sum(x.nbytes for x in jax.tree.leaves(base))
    assert memory.alias_size_in_bytes > num_bytes
    assert memory.temp_size_in_bytes < num_bytes / 2


@pytest.mark.parametrize("name", ["m2po", "decoupled_ppo"])
def test_no_split_into_micro_batches_changes_an_update_of_adapters(name):
    optimizer = optax.sgd(1.0)
    options: dict[str, Any] = {"limit": 3.0} if name == "m2po" else {}
    after = {}
    for micro_batch in (0, 2):
        config = dataclasses.replace(STEP, micro_batch=micro_batch)
        step = learning.make_train_step(
            ONE_LAYER, objectives.make(name, **options), optimizer, config
        )
        state = new_state(optimizer, name, **options)
        after[micro_batch] = step(state, example_batch())[0].params
    assert_close(after[2], after[0])
    moves = jax.tree.map(lambda x, y: np.abs(x - y).max(), after[0], adapters_of(ONE_LAYER))
    assert max(jax.tree.leaves(moves)) > 1e-2


def test_the_halves_by_sign_make_up_the_gradient_of_the_adapters():
    optimizer, objective = optax.sgd(1.0), objectives.make("reinforce")
    state = new_state(optimizer, "reinforce")
    by_sign = make_sign_gradients(ONE_LAYER, objective, STEP)
    halves = by_sign(state, example_batch())
    positive, negative, cosine = (
        float(halves[f"grad/{k}"]) for k in ("positive", "negative", "cosine")
    )
    step = learning.make_train_step(ONE_LAYER, objective, optimizer, STEP)
    _, metrics = step(state, example_batch())
    whole = positive**2 + negative**2 + 2 * positive * negative * cosine
    assert float(metrics["grad/norm"]) ** 2 == pytest.approx(whole, rel=1e-3)
    assert min(positive, negative) > 0.01


def test_kept_parameters_are_adapters_and_the_reference_is_the_policy_of_update_zero():
    optimizer = optax.sgd(0.3)
    options: dict[str, Any] = {"name": "decoupled_ppo", "kl_coefficient": 0.1}
    state = new_state(optimizer, **options)
    assert leaf_names(state.proximal) == leaf_names(state.reference) == {"lora_a", "lora_b"}
    leaves = jax.tree.leaves(state)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    first = copied(state.params)
    step = learning.make_train_step(ONE_LAYER, objectives.make(**options), optimizer, STEP)
    state, before = step(state, example_batch())
    state, after = step(state, example_batch())
    jax.tree.map(np.testing.assert_array_equal, state.reference, first)
    assert abs(before["reference/kl_k3"]) < 1e-9 < after["reference/kl_k3"]


def test_snapshots_hold_adapters_alone_and_their_base_is_read_once(tmp_path, monkeypatch):
    store = SnapshotStore(tmp_path, "run-1")
    store.write_base(base_of(LLAMA))
    for version in (0, 1):
        store.write(version, adapters_of(LLAMA))
    assert store.versions() == [0, 1]
    assert leaf_names(store.read(1)) == {"lora_a", "lora_b"}
    num_bytes = sum(x.nbytes for x in jax.tree.leaves(adapters_of(LLAMA)))
    with safetensors.safe_open(tmp_path / "v00000001.safetensors", framework="numpy") as file:
        assert sum(file.get_tensor(key).nbytes for key in file.offset_keys()) == num_bytes
    reader, read = SnapshotStore(tmp_path, "run-1"), []
    monkeypatch.setattr(
        "asympo_jax.runtime.snapshots.read_files",
        lambda paths, *more: read.extend(path.name for path in paths) or read_files(paths, *more),
    )
    expected = models.with_adapters(base_of(LLAMA), adapters_of(LLAMA))
    for version in (0, 1):
        jax.tree.map(np.testing.assert_array_equal, reader.read_policy(version), expected)
    assert sorted(read) == ["base.safetensors", "v00000000.safetensors", "v00000001.safetensors"]


def test_a_snapshot_without_its_base_is_refused_and_one_that_needs_none_is_not(tmp_path):
    store = SnapshotStore(tmp_path, "run-1")
    store.write(0, params_of(LLAMA))
    jax.tree.map(np.testing.assert_array_equal, store.read_policy(0), params_of(LLAMA))
    store.write_base(base_of(LLAMA))
    store.write(1, adapters_of(LLAMA))
    (tmp_path / "base.safetensors").unlink()
    with pytest.raises(SnapshotRefused, match=r"base.safetensors: cannot be read"):
        SnapshotStore(tmp_path, "run-1").read_policy(1)
    SnapshotStore(tmp_path, "run-2").write_base(base_of(LLAMA))
    with pytest.raises(SnapshotRefused, match="run-1"):
        SnapshotStore(tmp_path, "run-1").read_policy(1)


def test_snapshots_in_bfloat16_do_not_round_the_scale(tmp_path):
    lora = LoraConfig(rank=3, alpha=1.0)
    store = SnapshotStore(tmp_path, "run-1", "bfloat16")
    store.write_base(base_of(ONE_LAYER, lora))
    store.write(0, adapters_of(ONE_LAYER, lora))
    flat = by_path(store.read_policy(0))
    for path, x in flat.items():
        is_scale = path[-1] == "lora_scale"
        assert x.dtype == (jnp.float32 if is_scale else jnp.bfloat16)
        assert not is_scale or x == np.float32(1 / 3)
    full_logits(ONE_LAYER, store.read_policy(0), TOKENS)


FIELDS: dict[str, object] = {
    "lora__rank": 2,
    "lora__alpha": 3.0,
    "lora__targets": "query,out,up",
    "num_updates": 12,
    "checkpoint__every_updates": 4,
    "optimizer__learning_rate": 0.01,
    "warmup__num_steps": 4,
    "warmup__batch_size": 8,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> pathlib.Path:
    """The directory of all runs, which so share one warm-up."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one_sampler(runner, runs) -> Finished:
    return runner.train(runs / "one", **FIELDS)


def loaded(workdir: pathlib.Path) -> tuple[experiment.Parts, learning.TrainState]:
    """The newest state of a run, as every command loads it."""
    config = resolve(workdirs.read_config(workdir))
    parts = experiment.build_parts(config)
    return parts, states.load_state(config, parts, workdir)


def test_a_sampler_and_one_process_end_with_the_same_adapters(one_sampler, runner, runs):
    alone = runner.train(runs / "alone", runtime__name="sync", **FIELDS)
    assert one_sampler.sha == alone.sha
    assert all(line["grad/norm"] > 0 for line in one_sampler.metrics[1:])


def test_a_run_that_was_cut_off_goes_on_from_its_adapters_and_ends_with_the_same_bits(
    one_sampler, runner, runs
):
    cut_back(one_sampler, runs / "cut", update=8)
    resumed = runner.train(runs / "cut", **FIELDS)
    assert "carries on from the checkpoint of update 8" in resumed.stderr
    assert resumed.sha == one_sampler.sha
    assert [line["update"] for line in resumed.metrics] == list(range(13))


def test_a_checkpoint_holds_adapters_and_no_kernel(one_sampler):
    newest = one_sampler.workdir / "checkpoints" / "12"
    for item in ("state", "snapshots"):
        names = (newest / item / "_METADATA").read_text()
        assert "lora_a" in names and "kernel" not in names and "embedding" not in names


def test_exported_weights_are_what_evaluate_evaluates(one_sampler, runner, tmp_path):
    parts, state = loaded(one_sampler.workdir)
    command = [sys.executable, "-m", "asympo_jax.evaluate", f"--workdir={one_sampler.workdir}"]
    done = runner.finish(one_sampler.workdir, [*command, "--samples=1"])
    assert done.code == 0, done.stderr
    found = json.loads((one_sampler.workdir / "evaluation.json").read_text())
    for name in ("eval/accuracy", "eval/accuracy_greedy"):
        assert found[name] == one_sampler.result[name]
    command = [sys.executable, "-m", "asympo_jax.export", f"--workdir={one_sampler.workdir}"]
    done = runner.finish(tmp_path, [*command, f"--out={tmp_path / 'hf'}"])
    assert done.code == 0, done.stderr
    exported = models.load(tmp_path / "hf")
    np.testing.assert_allclose(
        full_logits(exported.config, exported.params, TOKENS),
        full_logits(parts.model, state.policy, TOKENS),
        atol=1e-5,
    )


def test_exported_adapters_are_those_of_the_state_in_the_form_of_peft(
    one_sampler, runner, tmp_path
):
    out = tmp_path / "adapters"
    command = [sys.executable, "-m", "asympo_jax.export", f"--workdir={one_sampler.workdir}"]
    done = runner.finish(tmp_path, [*command, f"--out={out}", "--adapters"])
    assert done.code == 0, done.stderr
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 3.0)
    assert config["target_modules"] == ["o_proj", "q_proj", "up_proj"]
    tensors = safetensors.numpy.load_file(out / "adapter_model.safetensors")
    parts, state = loaded(one_sampler.workdir)
    models.save(models.Model(parts.model, models.merge(state.policy)), tmp_path / "merged")
    models.save(models.Model(parts.model, without_adapters(state)), tmp_path / "base")
    merged, base = (
        safetensors.numpy.load_file(tmp_path / name / "model.safetensors")
        for name in ("merged", "base")
    )
    assert len(tensors) == 2 * 3
    for name in tensors:
        if "lora_A" in name:
            weight = name.removeprefix("base_model.model.").replace("lora_A.", "")
            delta = 1.5 * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
            np.testing.assert_allclose(merged[weight] - base[weight], delta, atol=1e-6)
            assert np.abs(delta).max() > 1e-4


def without_adapters(state: learning.TrainState) -> Any:
    """The parameters that the adapters of a state were put on."""
    zero = jax.tree.map(jnp.zeros_like, state.params)
    return models.merge(models.with_adapters(state.base, zero))


def test_adapters_on_another_or_a_missing_base_are_refused_in_a_sentence(
    one_sampler, runner, tmp_path
):
    shutil.copytree(one_sampler.workdir, tmp_path / "run")
    (tmp_path / "warmup").mkdir()
    kept = next((one_sampler.workdir.parent / "warmup").glob("*.safetensors"))
    params, _ = read_params(kept)
    params["embedding"][0, 0] += 1e-3
    write_params(tmp_path / "warmup" / kept.name, params)
    run = runner.train(tmp_path / "run", **{**FIELDS, "num_updates": 13})
    assert run.code == 1
    words = f"its adapters were trained on a warm-up in {tmp_path / 'warmup'} with sha256"
    assert words in run.error and "Traceback" not in run.stderr
    (tmp_path / "warmup" / kept.name).unlink()
    with pytest.raises(ValueError, match="which is not there any more"):
        loaded(tmp_path / "run")
    # Whatever the file is called: the name depends on the machine.
    shutil.copy(kept, tmp_path / "warmup" / "other.safetensors")
    loaded(tmp_path / "run")


def test_adapters_of_a_run_without_any_are_not_exported(one_sampler, runner, tmp_path):
    config = json.loads((one_sampler.workdir / "config.json").read_text())
    config["lora"] = {"rank": 0, "alpha": None, "targets": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "asympo_jax.export", f"--workdir={tmp_path}"]
    done = runner.finish(tmp_path, [*command, f"--out={tmp_path / 'out'}", "--adapters"])
    assert done.code == 2 and "lora.rank=0" in done.error
    command[-1] = f"--workdir={one_sampler.workdir}"
    flags = [f"--out={tmp_path / 'out'}", "--adapters", "--dtype=bfloat16"]
    done = runner.finish(tmp_path, [*command, *flags])
    assert done.code == 2 and "leave --like, --dtype out" in done.error
