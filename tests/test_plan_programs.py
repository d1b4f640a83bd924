"""The programs of a plan: lowered for other platforms, and compiled for TPUs that are not there."""

import importlib.util
import json
import re
import sys
from typing import Any

import jax
import pytest
from plan_cases import config_of, subject_of
from tiny_runs import TINY

from asympo_jax.models import MeshShape
from asympo_jax.plan import compiled, memory, topology
from asympo_jax.plan.programs import traced_decode, traced_step
from asympo_jax.plan.topology import slice_named

MESH = {"learner__data": 2, "learner__fsdp": 2, "learner__tensor": 2, "model__num_kv_heads": 2}


@pytest.mark.parametrize("fields", [{}, {"lora__rank": 2, "model__dtype": "bfloat16"}])
def test_the_learners_step_lowers_for_cuda(fields):
    traced = traced_step(subject_of(**fields), None)
    assert "stablehlo" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_the_learners_step_on_a_mesh_lowers_for_cuda():
    mesh = MeshShape(2, 2, 2).make()
    lowered = traced_step(subject_of(**MESH), mesh).lower(lowering_platforms=("cuda",))
    assert "mhlo.num_partitions = 8" in lowered.as_text()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_decode_segment_lowers_for_cuda(dtype):
    traced = traced_decode(subject_of(sampler__params_dtype=dtype))
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_a_decode_segment_is_split_over_the_devices_of_a_copy():
    subject = subject_of(
        sampler__devices=2, sampler__tensor=2, model__num_kv_heads=2, eval__process=True
    )
    split, whole = (
        compiled.memory_of(subject, lambda s, d=devices: traced_decode(s, d)).arguments
        for devices in (jax.devices()[:2], ())
    )
    assert 0.5 * whole <= split < 0.6 * whole


@pytest.mark.parametrize(
    ("name", "num_chips", "accelerator_type"),
    [
        ("v5e:4x4", 16, "v5litepod-16"),
        ("v5e:1x1", 1, "v5litepod-1"),
        ("v5p:2x2x1", 4, "v5p-8"),
        ("v6e:2x4", 8, "v6e-8"),
    ],
)
def test_a_slice_has_its_chips_and_the_name_of_cloud_tools(name, num_chips, accelerator_type):
    found = slice_named(name)
    assert (found.name, found.num_chips) == (name, num_chips)
    assert found.num_hosts == (num_chips // 4 if num_chips > 8 else 1)
    assert found.accelerator_type == accelerator_type


@pytest.mark.parametrize(
    "name",
    ["", "v5e", "v5e:16", "v5e:4x4x4", "v5p:4x4", "v4:2x2x1", "v6e:3x3", "v5e:1x4", "v5e:0x0"],
)
def test_a_slice_that_there_is_not_is_refused(name):
    with pytest.raises(ValueError, match=f"^--topology={re.escape(name)}: must be v5e:AxB"):
        slice_named(name)


def test_a_learner_of_one_device_is_planned_on_all_chips():
    config = config_of(learner__micro_batch=2)
    (note,) = topology.spread_over(config, slice_named("v5e:2x4"))
    assert (config.learner.fsdp, config.learner.micro_batch) == (8, 8)
    assert "--config.learner.fsdp=8 --config.learner.micro_batch=8" in note
    assert topology.spread_over(config, slice_named("v5e:2x4")) == []
    with pytest.raises(ValueError, match=r"learner\.fsdp=8.* must be 1, or 16"):
        topology.spread_over(config, slice_named("v5e:4x4"))


@pytest.mark.parametrize("traced", [lambda s: traced_step(s, None), traced_decode])
def test_programs_of_few_layers_say_what_all_of_them_take(traced):
    subject = subject_of(model__num_layers=6)
    found, whole = (of(subject, traced) for of in (compiled.extrapolated, compiled.memory_of))
    assert (found.arguments, found.aliased) == (whole.arguments, whole.aliased)
    assert found.together == pytest.approx(whole.together, rel=0.1)


def test_without_the_compiler_its_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match=r"pip install 'asympo_jax\[tpu\]'"):
        topology.check_compiler()


# ------------------------------------------------------------------------------- with the compiler


@pytest.fixture(scope="module")
def plan(runner, tmp_path_factory):
    """What the plan of a tiny run on a slice says, by section and name."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler of the extra [tpu]")

    def planned(name: str, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        given = {**TINY, **{name.replace("__", "."): value for name, value in fields.items()}}
        command = [sys.executable, "-m", "asympo_jax.plan", f"--topology={name}", "--json"]
        command += [f"--config.{name}={value}" for name, value in given.items()]
        done = runner.finish_afresh(tmp_path_factory.mktemp("plan"), command)
        assert done.code == 0, done.stderr
        sections: dict[str, dict[str, Any]] = {}
        for line in json.loads(done.stdout)["lines"]:
            sections.setdefault(line["section"], {})[line["name"]] = line["value"]
        (step,) = (found for title, found in sections.items() if title.startswith("learner's step"))
        (segment,) = (found for title, found in sections.items() if "decode segment" in title)
        return step, segment

    return planned


def test_the_tpu_compiler_counts_the_bytes_of_the_state_and_of_the_cache(plan):
    step, segment = plan("v5e:2x2")
    subject = subject_of(learner__fsdp=4)
    sizes = memory.learner_sizes(subject)
    state = sizes["parameters"] + sizes["optimiser"]
    # Small arrays are padded to the tiles of a TPU, each of 4 KiB.
    assert state <= step["of them in the place of arguments"] <= step["arguments"]
    assert step["HBM together"] >= step["arguments"] + step["temporaries"]
    sizes = memory.sampler_sizes(subject)
    cache = sizes["keys and values of prompts"] + sizes["keys and values of responses"]
    assert segment["arguments"] >= sizes["parameters"] + cache


def test_what_does_not_fit_into_a_chip_is_told_with_its_size_and_what_to_change(plan):
    step, _ = plan("v5e:1x1", model__num_layers=6, model__width=64, model__mlp_width=2**20)
    needed = step.get("HBM needed, at least") or step["HBM together"]
    assert needed > step["HBM of a chip"] > 15 * 2**30
    assert "learner.fsdp" in step["does not fit"]
