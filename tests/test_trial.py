"""A user's own objective is tried while its config is checked, and no device is touched for it."""

import sys

import pytest

from asympo_jax import objectives
from asympo_jax.config import default_config, resolve
from asympo_jax.objectives.trial import try_out

OWN = """
import jax.numpy as jnp
from asympo_jax.objectives import Objective
from asympo_jax.objectives.weights import asympo


def power(batch, exponent=1.0):
    nll_BT = -batch.logp_BT
    return nll_BT**exponent


def off_policy(batch):
    return batch.logp_BT - batch.behaviour_logp_BT


good = Objective("good", power)
unknown = Objective("unknown", lambda batch: batch.nll_BT)
summed = Objective("summed", lambda batch: batch.logp_BT.sum(0))
undeclared = Objective("undeclared", off_policy)
declared = Objective("declared", off_policy, needs=("behaviour",))
branching = Objective("branching", lambda batch: power(batch) if batch.logp_BT.sum() > 0 else 0)
reporting = Objective("reporting", power, report=lambda batch: {"a": batch.advantage_B})
misreporting = Objective("misreporting", asympo, report=lambda batch: {"a": batch.nope})
placed = Objective("placed", lambda batch: power(batch) * jnp.linspace(1.0, 0.1, 32)[None])
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own", None)


def resolved(name, record=False, **options):
    config = default_config()
    config.objective.name, config.sampler.record_behaviour_logp = f"own:{name}", record
    with config.unlocked():
        config.update({"objective": options})
    return resolve(config).objective


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("unknown", {}, "(own.py, line 17: AttributeError: 'PolicyBatch' object has no attribu"),
        (
            "summed",
            {},
            "(own.py: the weight of objective 'summed' has shape (32,), must be [B, T] = (256",
        ),
        ("undeclared", {}, "(own.py, line 13: TypeError: "),
        ("good", {"exponent": "two"}, "(own.py, line 9: TypeError: "),
        ("branching", {}, "TracerBoolConversionError: Attempted boolean conversion of traced"),
        ("misreporting", {}, "(own.py, line 23: AttributeError: "),
        ("reporting", {}, "reports 'a' of shape (256,), must be a scalar"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(name, options, words):
    with pytest.raises(ValueError) as error:
        resolved(name, **options)
    message = str(error.value)
    assert message.startswith(f"objective.name='own:{name}': ") and words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "record", "options"),
    [
        ("good", False, {"exponent": 0.5}),
        ("declared", False, {}),
        ("placed", False, {}),
        ("undeclared", True, {}),
        ("undeclared", True, {"kl_coefficient": 0.1}),
    ],
)
def test_an_objective_that_can_be_trained_with_is_taken(name, record, options):
    assert resolved(name, record, **options).name == name


@pytest.mark.parametrize("name", objectives.names())
def test_all_objectives_of_the_package_pass_the_same_trial(name):
    try_out(name, objectives.make(name), num_responses=6, num_tokens=6, group_size=3)
