"""The plan of a run, held against what a run makes."""

import json
import multiprocessing
import os
import re
import shlex
import sys
from typing import Any

import jax
import numpy as np
import pytest
from plan_cases import config_of, state_of, step_of, subject_of

from asympo_jax.defaults import default_config
from asympo_jax.models import PRESETS, counts
from asympo_jax.plan import estimate, fitting, memory
from asympo_jax.plan.programs import longest_batch
from asympo_jax.plan.subject import make_subject
from asympo_jax.runtime import wire
from asympo_jax.runtime.leases import Lease
from asympo_jax.runtime.local import LocalClient
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.sampling import draw_params
from asympo_jax.sampling.lanes import Fixed, Requests, prefill
from asympo_jax.types import Group

LORA = {"lora__rank": 3, "lora__targets": "query,down"}
MESH = {"learner__data": 2, "learner__fsdp": 2, "learner__tensor": 2, "model__num_kv_heads": 2}


def held(tree: Any) -> int:
    """Bytes of the arrays of a tree on their first device."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


KEPT = {"objective__name": "grpo", "objective__kl_coefficient": 0.1}


@pytest.mark.parametrize(
    "fields",
    [{}, LORA, MESH, {**MESH, **LORA}, KEPT],
    ids=["plain", "lora", "mesh", "lora_on_a_mesh", "kept"],
)  # fmt: skip
def test_each_device_holds_the_bytes_that_were_planned(fields):
    subject = subject_of(**fields)
    state, sizes = state_of(subject), memory.learner_sizes(subject)
    assert sizes["parameters"] == held((state.params, state.base))
    assert sizes["optimiser"] == held(state.opt_state)
    assert sizes["gradient"] == held(state.params)
    assert sizes["proximal and reference parameters"] == held((state.proximal, state.reference))
    assert ("objective__name" in fields) == (state.reference is not None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("fields", [{}, LORA], ids=["plain", "lora"])
def test_a_snapshot_has_the_bytes_that_were_planned(fields, dtype, tmp_path):
    subject = subject_of(sampler__params_dtype=dtype, **fields)
    state = state_of(subject)
    store = SnapshotStore(tmp_path, "run", subject.config.sampler.params_dtype)
    store.write_base(state.base)
    store.write(0, state.params)
    sent, all_of_it = (
        sum(np.asarray(x).nbytes for x in jax.tree.leaves(tree))
        for tree in (store.read(0), store.read_policy(0))
    )
    assert memory.bytes_of(memory.snapshot(subject)) == sent
    assert memory.sampler_sizes(subject)["parameters"] == all_of_it
    assert held(store.copied(state.params)) == sent


def test_one_device_of_each_host_holds_the_copies_whole_unless_all_hosts_write():
    fields: dict[str, Any] = {"learner__fsdp": 2, "learner__micro_batch": 0}
    parts, whole = (make_subject(config_of(**fields), num_hosts) for num_hosts in (1, 2))
    copies = "copies for snapshots, 2"
    all_of_it = 2 * memory.bytes_of(memory.snapshot(whole))
    assert memory.learner_sizes(whole)[copies] == all_of_it
    assert memory.learner_sizes(parts)[copies] < 0.7 * all_of_it
    fields["runtime__snapshot_dir"] = "/of/all/hosts"
    shared = make_subject(config_of(**fields), num_hosts=2)
    assert memory.learner_sizes(shared) == memory.learner_sizes(parts)
    enough = sum(memory.learner_sizes(shared).values())
    words = fitting.sentences(whole, enough)[0]
    assert "does not fit" in words and "; --config.runtime.snapshot_dir=DIR, which all" in words


def test_a_published_shape_that_the_devices_of_a_sampler_cannot_share_is_refused():
    config: Any = default_config()
    config.model.preset, config.warmup.num_steps = "qwen3_1p7b", 0
    config.sampler.devices = config.sampler.tensor = 3
    with pytest.raises(ValueError, match=r"sampler\.tensor=3: must divide the decoder's"):
        make_subject(config)


def test_a_sampler_holds_the_keys_and_values_that_were_planned():
    subject = subject_of(sampler__lanes=2, sampler__max_response_tokens=40, sampler__segment=8)
    model, engine = subject.model, subject.engine
    fixed = Fixed(model, engine.group_size, engine.max_response_tokens, engine.stop_ids, False)
    requests = Requests(
        np.zeros((2, engine.max_prompt_tokens), np.int32), np.ones(2, np.int32),
        np.zeros((2, engine.group_size, 2), np.uint32), np.ones((2, engine.group_size), np.int32),
    )  # fmt: skip
    lanes = jax.eval_shape(
        lambda params: prefill(fixed, 40, params, draw_params(1.0, 0, 1.0, 0.0), requests),
        memory.policy(subject),
    )
    sizes = memory.sampler_sizes(subject)
    assert sizes["keys and values of prompts"] == memory.bytes_of(lanes.prompt)
    assert sizes["keys and values of responses"] == 2 * memory.bytes_of(lanes.own)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("qwen3_1p7b", 1_720_574_976),
        ("qwen3_4b", 4_022_468_096),
        ("llama3p2_3b", 3_212_749_824),
        ("qwen2_1p5b", 1_777_088_000),
    ],
)
def test_published_shapes_have_the_published_number_of_parameters(name, number):
    assert counts.num_parameters(PRESETS[name]) == number


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("qwen4", "model.preset='qwen4': must be one of ['llama3p2_3b', "),
        ("qwen3_4b", " with model.preset='qwen3_4b': it says the shape, leave model."),
    ],
)
def test_a_preset_that_there_is_not_or_that_is_contradicted_is_refused(preset, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        subject_of(model__preset=preset)


def test_samplers_that_cannot_share_a_published_shape_are_refused_as_by_a_run():
    config: Any = default_config()
    config.model.preset, config.sampler.tensor, config.sampler.devices = "qwen3_1p7b", 3, 3
    with pytest.raises(ValueError, match=r"sampler\.tensor=3: must divide the decoder's"):
        make_subject(config)


def test_xla_counts_the_flops_of_an_update_alike():
    fields = {"learner__micro_batch": 0, "model__width": 64, "model__mlp_width": 192}
    subject = subject_of(**fields, sampler__max_response_tokens=24)
    step = step_of(subject)
    cost = step.lower(state_of(subject), longest_batch(subject)).compile().cost_analysis()
    assert cost is not None
    # XLA adds norms, softmax, the optimiser, and the masked half of attention.
    assert 1.0 < cost["flops"] / estimate.update_flops(subject) < 1.5


def test_more_passes_and_fewer_weights_change_the_flops_of_an_update():
    plain = estimate.update_flops(subject_of())
    assert estimate.update_flops(subject_of(learner__remat="full")) == plain * 4 / 3
    assert estimate.update_flops(subject_of(**LORA)) == plain * 2 / 3
    sampled = 16 * estimate.response_flops(subject_of())
    assert sampled == pytest.approx(plain / 3)


@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_lease_is_handed_in_with_no_more_bytes_than_planned(is_recorded):
    subject = subject_of(
        sampler__prompts_per_lease=2,
        sampler__record_behaviour_logp=is_recorded,
        reward__num_processes=1,
    )
    engine, (near, far) = subject.engine, multiprocessing.Pipe()
    shape = (engine.group_size, engine.max_response_tokens)
    group = Group(
        ticket=7, version=3,
        prompt_S=np.zeros(engine.max_prompt_tokens, np.int32),
        response_GT=np.zeros(shape, np.int32),
        length_G=np.ones(shape[0], np.int32),
        stop_G=np.zeros(shape[0], np.int8),
        reward_G=np.zeros(shape[0], np.float32),
        behaviour_logp_GT=np.zeros(shape, np.float32) if is_recorded else None,
        failure_G=np.zeros(shape[0], np.int8),
    )  # fmt: skip
    far.send_bytes(wire.encode({"type": "accepted"}))
    client = LocalClient(os.dup(near.fileno()), os.dup(near.fileno()))
    client.submit(Lease(3, 0, 3, "0123456789ab"), [group, group], 1.5)
    assert len(far.recv_bytes()) == estimate.frame_bytes(subject)


def value_of(lines: list[estimate.Line], name: str) -> Any:
    """What a plan says of one thing."""
    (found,) = (line.value for line in lines if line.name == name)
    return found


def test_the_plan_tells_the_bounds_of_lag_leases_and_queue():
    fields = {"lag": 3, "refresh_every_updates": 2, "sampler__prompts_per_lease": 2}
    lines = estimate.lines_of(subject_of(**fields, queue__capacity=10))
    assert value_of(lines, "lag, at most") == 4
    assert value_of(lines, "leases out, at most") == 5
    assert value_of(lines, "groups waiting or on their way, at most") == 10


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({"model__num_layers": 8}, 0.5),
        ({"sampler__max_response_tokens": 256}, 0.9),
        ({"sampler__max_response_tokens": 256}, 0.15),
    ],
)
def test_what_does_not_fit_fits_after_the_change_that_the_plan_names(fields, share):
    fields |= {"prompts_per_update": 8, "sampler__lanes": 8, "learner__micro_batch": 8}
    subject = subject_of(**fields)
    whole = sum(memory.learner_sizes(subject).values())
    before, _ = fitting.sentences(subject, round(share * whole))
    assert "the learner does not fit" in before
    changed = dict(re.findall(r"--config\.(learner\.\w+)=(\w+)", before))
    assert changed
    named = {
        name.replace(".", "__"): int(value) if value.isdigit() else value
        for name, value in changed.items()
    }
    after, _ = fitting.sentences(subject_of(**{**fields, **named}), round(share * whole))
    assert "the learner fits" in after


def test_a_sampler_that_does_not_fit_needs_fewer_lanes():
    fields = {"sampler__max_response_tokens": 256}
    subject = subject_of(**fields)
    available = round(0.6 * sum(memory.sampler_sizes(subject).values()))
    _, before = fitting.sentences(subject, available)
    assert "--config.sampler.lanes=2 would" in before
    _, after = fitting.sentences(subject_of(**fields, sampler__lanes=2), available)
    assert "the sampler fits" in after
    _, never = fitting.sentences(subject, 100)
    assert "nor does it with one lane" in never


@pytest.mark.parametrize("text", ["16", "GiB", "-1GiB", "16gib", "0GiB", "16 TB"])
def test_a_memory_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=f"--device_memory={re.escape(text)}: must be a positive"):
        fitting.device_memory(text)


def test_a_config_whose_model_is_not_there_is_planned_with_the_published_shape(runner, tmp_path):
    arguments = shlex.split("--config=configs/math_qwen3_1p7b.py --device_memory=16GiB --json")
    # Any device that were touched would be one of a platform that there is not.
    runner.environment["JAX_PLATFORMS"] = "none"
    command = [sys.executable, "-m", "asympo_jax.plan", *arguments]
    done = runner.finish_afresh(tmp_path, command)
    assert done.code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["config"]["model"]["preset"] == "qwen3_1p7b"
    assert plan["config"]["learner"]["remat"] == "full"
    lines = [estimate.Line(**line) for line in plan["lines"]]
    assert value_of(lines, "parameters, all") == 1_720_574_976
    assert "--config.learner.fsdp=" in plan["notes"][0]
    assert "--config.sampler.lanes=" in plan["notes"][1]
