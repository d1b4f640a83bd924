"""Devices: each role gets those that the config names, and what cannot be had is refused."""

import contextlib
import json
import os
import pathlib
import sys
from typing import Any

import pytest
from sampler_stand_ins import ADMISSION
from test_config import with_fields
from tiny_runs import wait_until

from asympo_jax import actors, devices
from asympo_jax.config import resolve
from asympo_jax.processes import Launcher
from asympo_jax.runtime import placement
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.snapshots import SnapshotStore

# What a test's stand-in for a sampler does: it writes down what it was given, and waits.
_PROGRAM = """
import json, os, signal, sys
given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:] if "=" in argument)
index = given.get("index", "evaluator")
with open(f"{sys.argv[1]}/.{index}", "w") as file:
    json.dump(dict(os.environ), file)
os.rename(f"{sys.argv[1]}/.{index}", f"{sys.argv[1]}/{index}")
signal.pause()
"""
TPU: dict[str, object] = {
    "learner__platform": "tpu",
    "learner__visible_devices": "0,1,2,3",
    "learner__data": 4,
    "sampler__platform": "tpu",
    "eval__platform": "cpu",
}
GPU: dict[str, object] = {
    "learner__platform": "cuda",
    "learner__visible_devices": "0",
    "sampler__platform": "cuda",
}
RAY: dict[str, Any] = {"runtime__name": "ray"}


def given_to_processes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, **fields: object
) -> dict[str, dict[str, str]]:
    """The environments of the sampler processes and the evaluator of a run, by their numbers."""
    config = resolve(with_fields(**fields))
    command = [sys.executable, "-S", "-c", _PROGRAM, str(tmp_path)]
    monkeypatch.setattr(Launcher, "_command", lambda self, program: command)
    store = SnapshotStore(tmp_path, "run-1")
    launcher = Launcher(config, tmp_path, store, "run-1", [0], "0")
    with contextlib.ExitStack() as stack:
        broker = Broker(config.pacing, 99, run_id="run-1", admission=ADMISSION)
        samplers = launcher.start_samplers(broker, 2**16)
        stack.callback(samplers.stop, 2.0)
        stack.callback(broker.close)
        names = [str(i) for i in range(config.sampler.count)]
        if config.eval.process:
            stack.callback(launcher.start_evaluator().stop)
            names.append("evaluator")
        assert wait_until(lambda: all((tmp_path / name).exists() for name in names))
    return {name: json.loads((tmp_path / name).read_text()) for name in names}


def test_each_sampler_of_a_gpu_host_sees_its_own_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1 --xla_force_host_platform_device_count=8")
    fields = {**GPU, "sampler__count": 2, "sampler__visible_devices": "4,5,6,7"}
    given = given_to_processes(tmp_path, monkeypatch, sampler__devices=2, **fields)
    seen = {name: environment["CUDA_VISIBLE_DEVICES"] for name, environment in given.items()}
    assert seen == {"0": "4,5", "1": "6,7", "evaluator": "4"}
    for environment in given.values():
        assert environment["JAX_PLATFORMS"] == "cuda"
        assert environment["XLA_FLAGS"] == "--xla_one=1"
        assert environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_samplers_that_share_gpus_have_a_share_of_their_memory(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    fields = {**GPU, "sampler__count": 4, "sampler__visible_devices": "2,1"}
    given = given_to_processes(tmp_path, monkeypatch, sampler__memory_fraction=0.4, **fields)
    seen = {name: environment["CUDA_VISIBLE_DEVICES"] for name, environment in given.items()}
    assert seen == {"0": "2", "1": "2", "2": "1", "3": "1", "evaluator": "2"}
    shares = [one.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for one in given.values()]
    assert shares == ["0.4"] * 4 + [None]


def test_each_process_of_a_tpu_host_is_a_slice_of_its_own_chips(tmp_path, monkeypatch):
    fields = {**TPU, "sampler__count": 2, "sampler__visible_devices": "4,5,6,7"}
    given = given_to_processes(tmp_path, monkeypatch, sampler__devices=2, **fields)
    assert given["evaluator"]["JAX_PLATFORMS"] == "cpu"
    assert "TPU_VISIBLE_CHIPS" not in given["evaluator"]
    ports = set()
    for index, chips in ((0, "4,5"), (1, "6,7")):
        found = given[str(index)]
        assert found["TPU_VISIBLE_CHIPS"] == chips
        assert found["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,2,1"
        assert found["TPU_PROCESS_BOUNDS"] == "1,1,1"
        assert found["TPU_PROCESS_ADDRESSES"] == f"localhost:{found['TPU_PROCESS_PORT']}"
        ports.add(found["TPU_PROCESS_PORT"])
    learner = placement.devices_environment("tpu", ["0", "1", "2", "3"])
    assert learner["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,2,1"
    assert len(ports | {learner["TPU_PROCESS_PORT"]}) == 3


def test_the_learner_takes_its_devices_before_jax_starts(monkeypatch):
    """The devices must be in the environment when the backend reads it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = resolve(
        with_fields(**{**_with(GPU, visible_devices="1"), "learner__visible_devices": "3"})
    )
    seen = []

    def no_devices():
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        raise RuntimeError("none here")

    monkeypatch.setattr(placement.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(placement.jax, "local_devices", no_devices)
    with pytest.raises(placement.NoDevice, match=r"learner\.platform='cuda'"):
        devices.start_learner(config.learner)
    assert seen == ["3"]


def test_roles_whose_devices_are_not_named_are_as_they_were():
    config = resolve(with_fields(sampler__platform="cuda", learner__platform="cuda"))
    assert devices.of_samplers(config.sampler) == [()]
    assert config.eval.visible_devices == ""
    assert "CUDA_VISIBLE_DEVICES" not in placement.devices_environment("cuda", ())
    assert resolve(with_fields(sampler__platform="cuda", eval__platform="cpu")).eval.platform


def _with(fields: dict[str, object], **more: object) -> dict[str, object]:
    """Fields of a config, with others."""
    return {**fields, **{f"sampler__{name}": value for name, value in more.items()}}


WRONG = [
    (_with(GPU, visible_devices="1 2"), ["sampler.visible_devices='1 2'", "such as '2,3'"]),
    (_with(GPU, visible_devices="1,1", devices=2), ["must name each device once"]),
    (_with(GPU, count=2), ["sampler.count=2", "must name devices, which are dealt out"]),
    (
        _with(GPU, count=2, visible_devices="1,2,3"),
        ["sampler.visible_devices='1,2,3'", "a multiple of sampler.count=2 or divide it"],
    ),
    (
        _with(GPU, count=2, visible_devices="1"),
        ["sampler.memory_fraction=0.0", "at most 1 / 2, as 2 samplers share each GPU"],
    ),
    (
        _with(GPU, count=2, visible_devices="1", memory_fraction=0.6),
        ["sampler.memory_fraction=0.6", "at most 1 / 2"],
    ),
    (dict(sampler__memory_fraction=0.5), ["sampler.memory_fraction=0.5", "'cpu'", "'cuda'"]),
    (_with(GPU, visible_devices="1,2"), ["sampler.devices=1: must be 2, the devices that"]),
    (
        _with(GPU, visible_devices="0"),
        ["sampler.visible_devices='0' with learner.visible_devices='0'", "both have device 0"],
    ),
    (_with(GPU), ["sampler.visible_devices=''", "learner.platform='cuda'", "must name devices"]),
    (
        {**_with(GPU, visible_devices="1"), "eval__visible_devices": "0"},
        ["eval.visible_devices='0' with learner.visible_devices='0'"],
    ),
    (
        {**_with(GPU, visible_devices="1"), "eval__visible_devices": "2,3"},
        ["eval.visible_devices='2,3': must name 1", "sampler.tensor"],
    ),
    (
        {**_with(GPU, visible_devices="3"), "learner__visible_devices": "0,1"},
        ["learner.visible_devices='0,1'", "must divide", "learner.tensor = 1"],
    ),
    (dict(learner__visible_devices="0"), ["learner.visible_devices='0'", "not ''"]),
    (_with(TPU, visible_devices="GPU-1"), ["sampler.visible_devices='GPU-1'", "numbers"]),
    (
        _with(TPU, count=2, visible_devices="4"),
        ["a multiple of sampler.count=2: a TPU chip has one process"],
    ),
    (
        _with(TPU, visible_devices="4,5,6", devices=3),
        ["gives a process the TPU chips 4,5,6, must give it 1, 2, 4 or 8"],
    ),
    (_with(TPU, visible_devices="5,6", devices=2), ["5,6", "the first a multiple"]),
    (_with(TPU), ["sampler.visible_devices=''", "learner.platform='tpu'", "'cpu'"]),
    (dict(sampler__platform="tpu"), ["learner.visible_devices=''", "learner.platform=''"]),
    (
        {**_with(TPU, visible_devices="4"), "eval__platform": "tpu"},
        ["eval.visible_devices=''", "must name devices that no other process has"],
    ),
    (dict(sampler__devices=3, sampler__tensor=2), ["sampler.tensor=2: must divide", "devices=3"]),
    (_with(GPU, visible_devices="01"), ["sampler.visible_devices='01'", "numbers of devices"]),
    (
        dict(sampler__platform="cuda", sampler__visible_devices="1"),
        ["learner.visible_devices=''", "learner.platform=''", "no other process has"],
    ),
    (
        dict(RAY, sampler__devices=2, sampler__tensor=2, eval__process=False),
        ["eval.process=False with sampler.tensor=2", "one device, must be True"],
    ),
    (
        dict(RAY, eval__platform="cuda", eval__visible_devices="abc"),
        ["eval.visible_devices='abc'", "such as '2,3'"],
    ),
    (
        dict(RAY, learner__platform="tpu", eval__platform="tpu"),
        ["learner.visible_devices=''", "eval.platform='tpu'", "or one of the two"],
    ),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=[words[-1] for _, words in WRONG])
def test_devices_that_cannot_be_had_are_refused_before_any_is_touched(fields, words):
    with pytest.raises(ValueError) as raised:
        resolve(with_fields(**fields))
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_samplers_on_ray_have_devices_that_nobody_names():
    fields = dict(RAY, sampler__platform="tpu", sampler__count=2, learner__platform="tpu")
    assert resolve(with_fields(**fields, eval__platform="cpu")).sampler.count == 2


def test_samplers_on_ray_have_the_share_of_a_gpu_that_they_were_given():
    fields = dict(RAY, sampler__platform="cuda", sampler__memory_fraction=0.5, eval__platform="cpu")
    environment = actors.environment_of(resolve(with_fields(**fields)).sampler)
    assert environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"


def test_one_process_that_does_all_needs_no_devices_of_samplers():
    fields = {**GPU, "runtime__name": "sync", "learner__visible_devices": "2"}
    assert resolve(with_fields(**fields)).learner.visible_devices == "2"


def test_a_run_whose_samplers_share_a_copy_of_the_parameters_ends_with_the_same(runner, tmp_path):
    """Sampler and evaluator have two simulated devices each, with a half of the parameters."""
    fields = {"model__num_kv_heads": 2, "num_updates": 2}
    whole = runner.train(tmp_path / "whole", runtime__name="sync", **fields)
    fields |= {"sampler__devices": 2, "sampler__tensor": 2, "eval__process": True}
    shared = runner.train(tmp_path / "shared", **fields)
    assert shared.sha == whole.sha
    assert shared.result["eval/accuracy"] == whole.result["eval/accuracy"]
