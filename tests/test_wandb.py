"""Metrics to Weights & Biases, with a stand-in for the package."""

import importlib.machinery
import json
import sys
import types

import pytest
from test_config import with_fields

from asympo_jax.config import resolve
from asympo_jax.loops import make_writer
from asympo_jax.runtime.metrics import MetricsWriter
from asympo_jax.runtime.wandb_log import WandbLog


class StandIn(types.ModuleType):
    """The package: notes what it is given, and raises where it is told to."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.begun, self.logged, self.axes, self.num_finished = [], [], [], 0
        self.breaks: set[str] = set()

    def _break(self, name):
        if name in self.breaks:
            raise RuntimeError(f"no {name}")

    def init(self, **given):
        self.begun.append(given)
        self._break("init")
        return self

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, values):
        self._break("log")
        self.logged.append(values)

    def finish(self):
        self.num_finished += 1
        self._break("finish")


@pytest.fixture
def wandb(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


@pytest.fixture
def told():
    return []


@pytest.fixture
def writer(tmp_path, told):
    run = tmp_path / "spo"
    run.mkdir()
    return MetricsWriter(run, 0, False, told.append, WandbLog("project", run, {"seed": 3}))


def lines(tmp_path):
    return [json.loads(t) for t in (tmp_path / "spo" / "metrics.jsonl").read_text().splitlines()]


def test_metrics_arrive_with_the_update_as_their_axis_also_those_that_come_late(wandb, writer):
    writer.write(1, {"loss": 0.5})
    writer.write(0, {"eval/accuracy": 0.25})
    writer.close()
    assert wandb.logged == [{"update": 1, "loss": 0.5}, {"update": 0, "eval/accuracy": 0.25}]
    assert wandb.axes == [("*", "update")]
    (begun,) = wandb.begun
    assert (begun["project"], begun["name"], begun["config"]) == ("project", "spo", {"seed": 3})
    assert wandb.num_finished == 1


def test_a_run_that_cannot_be_begun_there_is_told_once_and_not_tried_again(
    wandb, writer, told, tmp_path
):
    wandb.breaks = {"init"}
    for update in (1, 2, 3):
        writer.write(update, {"loss": 0.5})
    writer.close()
    assert len(wandb.begun) == len(told) == 1
    assert "RuntimeError: no init" in told[0] and "training goes on" in told[0]
    assert writer.metrics() == {"log/failures": 1}
    assert [line["update"] for line in lines(tmp_path)] == [1, 2, 3]


def test_metrics_that_are_not_taken_are_counted_and_told_once(wandb, writer, told, tmp_path):
    wandb.breaks = {"log", "finish"}
    writer.write(1, {"loss": 0.5})
    writer.write(2, {"loss": 0.5})
    wandb.breaks = {"finish"}
    writer.write(3, {"loss": 0.5})
    writer.close()
    assert [one["update"] for one in wandb.logged] == [3]
    assert len(told) == 1 and writer.metrics() == {"log/failures": 2}
    assert [line["update"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_run_sends_its_metrics_only_where_a_project_is_named(wandb, tmp_path):
    for project in (None, "mine"):
        config = resolve(with_fields(log__wandb_project=project, log__tensorboard=False))
        writer = make_writer(config, tmp_path, 0)
        writer.write(1, {"loss": 0.5})
        writer.close()
    (begun,) = wandb.begun
    assert begun["project"] == "mine" and begun["config"]["log"]["wandb_project"] == "mine"


@pytest.mark.parametrize("project", ["", "a/b", "x" * 129])
def test_a_project_that_has_no_such_name_is_refused(wandb, project):
    with pytest.raises(ValueError, match=r"log.wandb_project='.*': must have from 1 to 128"):
        resolve(with_fields(log__wandb_project=project))


def test_a_project_is_refused_where_the_package_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"log.wandb_project='mine'.*asympo_jax\[wandb\]"):
        resolve(with_fields(log__wandb_project="mine"))
