"""Objectives by name: their options, what they need, and what is refused."""

import dataclasses
import functools
import inspect
import sys
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from policy_cases import LOGPS, make_case, value_metrics_gradient

from asympo_jax import objectives
from asympo_jax.objectives import policy_loss, weights

CASE = make_case()
ARRAYS = {name: jnp.asarray(CASE.arrays[name]) for name in ("logp_BT", "mask_BT", "advantage_B")}
OTHERS = {name: jnp.asarray(CASE.arrays[name]) for name in LOGPS[1:]}
BEHAVIOUR = ("behaviour",)
INFINITE = float("inf")


@pytest.fixture
def as_for_users(monkeypatch):
    """Without the tests' type checks, which refuse wrong values before the package could."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_every_objective_has_the_aggregation_the_advantage_and_the_needs_of_its_paper():
    table = {
        name: (o.aggregation, o.center, o.scale, o.needs, o.scope)
        for name in objectives.names()
        for o in [objectives.make(name)]
    }
    assert table == {
        "reinforce": ("response_mean", "mean", "std", (), "response"),
        "gpg": ("token_mean", "mean", "none", (), "response"),
        "spo": ("response_mean", "mean", "std", (), "response"),
        "asympo": ("response_mean", "mean", "std", (), "response"),
        "asymre": ("token_mean", "mean", "none", (), "response"),
        "w_reinforce": ("token_mean", "mean", "std", (), "response"),
        "grpo": ("response_mean", "mean", "std", BEHAVIOUR, "response"),
        "dr_grpo": ("constant", "mean", "none", BEHAVIOUR, "response"),
        "dapo": ("token_mean", "mean", "std", BEHAVIOUR, "response"),
        "gspo": ("response_mean", "mean", "std", BEHAVIOUR, "response"),
        "cispo": ("token_mean", "mean", "std", BEHAVIOUR, "response"),
        "tis": ("response_mean", "mean", "std", BEHAVIOUR, "response"),
        "topr": ("response_mean", "mean", "std", BEHAVIOUR, "response"),
        "aspo": ("token_mean", "mean", "std", BEHAVIOUR, "response"),
        "m2po": ("token_mean", "mean", "std", BEHAVIOUR, "batch"),
        "decoupled_ppo": (
            "token_mean",
            "mean",
            "std",
            ("behaviour", "proximal"),
            "response",
        ),
    }


def defaults_of(function: Any) -> dict[str, float]:
    """Default values of all parameters after the first."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def test_every_objective_has_its_documented_options_and_defaults():
    found = {}
    for name in objectives.names():
        objective = objectives.make(name)
        found[name] = defaults_of(objective.weight) | defaults_of(objective.advantage)
        # What is reported is of the same clips.
        assert defaults_of(objective.report).items() <= found[name].items()
    assert found == {
        "reinforce": {},
        "gpg": {},
        "spo": {"alpha": 0.25},
        "asympo": {"floor": 1e-3},
        "asymre": {"delta": -0.1},
        "w_reinforce": {"positive_scale": 0.1},
        "grpo": {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": INFINITE},
        "dr_grpo": {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": INFINITE},
        "dapo": {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0},
        "gspo": {"clip_low": 3e-4, "clip_high": 4e-4},
        "cispo": {"clip_high": 4.0},
        "tis": {"cap": 2.0},
        "topr": {},
        "aspo": {"clip_low": 0.2, "clip_high": 0.2, "cap": 3.0},
        "m2po": {"limit": 0.04},
        "decoupled_ppo": {"clip_low": 0.2, "clip_high": 0.2, "cap": 5.0},
    }


def test_the_form_of_the_loss_has_its_documented_defaults():
    for name in objectives.names():
        objective = objectives.make(name)
        assert objective.constant == 1.0
        assert objective.kl_coefficient == 0.0
        assert "reference" not in objective.needs
        assert objectives.make(name, kl_coefficient=0.1).needs == (*objective.needs, "reference")


ASPO = ["clip_low", "clip_high", "cap"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("asimpo", {}, "objective.name='asimpo' (did you mean 'asympo'?): must be one of ['rein"),
        ("spo", {"beta": 1}, "objective.beta is not an option of objective.name='spo', which has"),
        ("gpg", {"alpha": 1}, "objective.alpha is not an option of objective.name='gpg', which"),
        ("topr", {"cap": 1.0}, "objective.cap is not an option of objective.name='topr', which"),
        ("aspo", {"dual_clip": 3.0}, f"of objective.name='aspo', which has {ASPO}"),
        ("reinforce", {"delta": 0.1}, "objective.delta is not an option"),
        ("asympo", {"floor": 0.0}, "objective.floor=0.0: must be positive and finite"),
        ("asympo", {"floor": INFINITE}, "objective.floor=inf: must be positive and finite"),
        ("spo", {"alpha": 1.5}, "objective.alpha=1.5: must be from 0 to 1"),
        ("asymre", {"delta": -INFINITE}, "objective.delta=-inf: must be finite"),
        (
            "w_reinforce",
            {"positive_scale": -1.0},
            "positive_scale=-1.0: must be finite and not negative",
        ),
        ("grpo", {"clip_low": -0.1}, "objective.clip_low=-0.1: must be from 0 to 1"),
        ("gspo", {"clip_low": 1.1}, "objective.clip_low=1.1: must be from 0 to 1"),
        ("cispo", {"clip_high": -0.1}, "objective.clip_high=-0.1: must not be negative"),
        ("dapo", {"dual_clip": 0.5}, "objective.dual_clip=0.5: must be at least 1"),
        ("tis", {"cap": 0.0}, "objective.cap=0.0: must be positive"),
        ("m2po", {"limit": 0.0}, "objective.limit=0.0: must be positive"),
        (
            "grpo",
            {"aggregation": "sum"},
            "objective.aggregation='sum': must be one of "
            "['response_mean', 'token_mean', 'constant']",
        ),
        ("dr_grpo", {"constant": 0.0}, "objective.constant=0.0: must be positive and finite"),
        ("dr_grpo", {"constant": INFINITE}, "objective.constant=inf: must be positive and finite"),
        (
            "dr_grpo",
            {"constant": float("nan")},
            "objective.constant=nan: must be positive and finite",
        ),
        (
            "grpo",
            {"kl_coefficient": -0.1},
            "objective.kl_coefficient=-0.1: must be finite and not negative",
        ),
        ("grpo", {"kl_coefficient": INFINITE}, "objective.kl_coefficient=inf: must be finite"),
        ("no_such_module:x", {}, "objective.name='no_such_module:x': cannot be imported"),
        ("no_such_module:x", {}, "; its folder must be the current one or on PYTHONPATH"),
        ("my_objectives:absent", {}, "my_objectives.py has no 'absent'"),
        ("my_objectives:mind", {}, "my_objectives.py has no 'mind' (did you mean 'mine'?)"),
        (":x", {}, "objective.name=':x': cannot be imported"),
        ("my_objectives:scaled", {}, "must be an asympo_jax.objectives.Objective"),
        ("my_objectives:mine", {"floor": 1}, "objective.floor is not an option"),
        ("dr_grpo", {"constant": -1.0}, "objective.constant=-1.0: must be positive and finite"),
        ("grpo", {"constant": 7.0}, "objective.constant=7.0: goes with objective.aggregation="),
    ],
)
def test_what_cannot_be_made_is_refused_with_what_can(
    name, options, message, my_module, as_for_users
):
    with pytest.raises(ValueError) as error:
        objectives.make(name, **options)
    assert message in str(error.value)


NEEDS = [
    *((name, {}, need) for name in objectives.names() for need in objectives.make(name).needs),
    *((name, {"kl_coefficient": 0.1}, "reference") for name in objectives.names()),
]


@pytest.mark.parametrize(("name", "options", "need"), NEEDS, ids=str)
def test_an_objective_whose_log_probs_are_missing_is_refused_by_name(name, options, need):
    missing = f"{need}_logp_BT"
    there = {key: x for key, x in OTHERS.items() if key != missing}
    with pytest.raises(ValueError) as error:
        policy_loss(objectives.make(name, **options), **ARRAYS, **there, group_size=3)
    assert str(error.value) == f"objective '{name}' needs {need} log-probs: {missing} is None"


@pytest.mark.parametrize("need", ["proximal", "reference"])
def test_missing_log_probs_of_a_users_objective_are_refused_by_name(need):
    objective = objectives.Objective("mine", weights.reinforce, needs=(need,))
    with pytest.raises(ValueError, match=f"'mine' needs {need} log-probs: {need}_logp_BT is None"):
        policy_loss(objective, **ARRAYS, group_size=3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group_size": 5}, "group_size=5: must divide the number of responses, 12"),
        ({"group_size": 0}, "group_size=0: must divide"),
        ({"advantage_B": jnp.zeros((4, 3))}, "advantage_B: shape (4, 3), must be (12,)"),
        ({"mask_BT": jnp.ones((1, 8), bool)}, "mask_BT: shape (1, 8), must be that of logp_BT"),
        ({"behaviour_logp_BT": jnp.zeros(8)}, "behaviour_logp_BT: shape (8,), must be"),
        ({"proximal_logp_BT": jnp.zeros((12, 1))}, "proximal_logp_BT: shape (12, 1), must be"),
        ({"reference_logp_BT": jnp.zeros(())}, "reference_logp_BT: shape (), must be"),
    ],
)
def test_wrong_shapes_are_refused_instead_of_broadcast(wrong, message, as_for_users):
    with pytest.raises(ValueError) as error:
        policy_loss(objectives.make("reinforce"), **{**ARRAYS, "group_size": 3, **wrong})
    assert message in str(error.value)


B, T = ARRAYS["mask_BT"].shape
OF_A_WEIGHT = f"must be [B, T] = ({B}, {T}) or [B, 1] = ({B}, 1)"


@pytest.mark.parametrize(
    ("field", "function", "message"),
    [
        ("weight", lambda batch: batch.logp_BT.mean(0), f"has shape ({T},), {OF_A_WEIGHT}"),
        ("weight", lambda batch: batch.logp_BT.mean(1), f"has shape ({B},), {OF_A_WEIGHT}"),
        ("weight", lambda batch: batch.logp_BT[:1], f"has shape (1, {T}), {OF_A_WEIGHT}"),
        ("weight", lambda batch: 1.0, f"has shape (), {OF_A_WEIGHT}"),
        ("weight", lambda batch: batch.mask_BT, "has dtype bool, must be a floating-point one"),
        ("advantage", lambda x_B: x_B[:, None], f"has shape ({B}, 1), must be [B] = ({B},)"),
    ],
)
def test_what_an_objective_returns_is_refused_unless_it_has_the_shape(
    field, function, message, as_for_users
):
    objective = objectives.Objective("mine", weights.reinforce)
    objective = dataclasses.replace(objective, **{field: function})
    with pytest.raises(ValueError) as error:
        policy_loss(objective, **ARRAYS, group_size=3)
    assert str(error.value) == f"the {field} of objective 'mine' {message}"


def test_the_public_signatures_are_those_of_the_design():
    parameters = inspect.signature(policy_loss).parameters
    assert list(parameters) == [
        "objective",
        "logp_BT",
        "mask_BT",
        "advantage_B",
        "group_size",
        "behaviour_logp_BT",
        "proximal_logp_BT",
        "reference_logp_BT",
    ]
    kinds = [parameter.kind for parameter in parameters.values()]
    assert (
        kinds
        == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 4 + [inspect.Parameter.KEYWORD_ONLY] * 4
    )
    assert [p.default for p in list(parameters.values())[5:]] == [None] * 3
    assert parameters["group_size"].default is inspect.Parameter.empty
    advantages = inspect.signature(objectives.group_advantages).parameters
    assert {name: p.default for name, p in advantages.items()} == {
        "rewards_PG": inspect.Parameter.empty,
        "center": "mean",
        "scale": "std",
    }


def test_log_probs_in_half_precision_are_summed_in_float32():
    logp_BT = jnp.asarray(CASE.logp_BT, jnp.bfloat16)
    for behaviour_logp_BT in (jnp.asarray(CASE.behaviour_logp_BT), logp_BT):
        loss, metrics = jax.eval_shape(
            functools.partial(policy_loss, objectives.make("grpo"), group_size=3),
            **{**ARRAYS, "logp_BT": logp_BT, "behaviour_logp_BT": behaviour_logp_BT},
        )
        assert {loss.dtype, *(x.dtype for x in metrics.values())} == {jnp.dtype("float32")}


MY_MODULE = """
import jax.numpy as jnp
from asympo_jax.objectives import Objective

def scaled(batch, factor=1.0):
    return jnp.full_like(batch.advantage_B, factor)[:, None]

mine = Objective("mine", scaled)
"""


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    (tmp_path / "my_objectives.py").write_text(MY_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_objectives", None)


def test_the_folder_is_not_blamed_where_a_module_is_there_and_fails(tmp_path, my_module):
    (tmp_path / "half_done.py").write_text("import no_such_module\n")
    with pytest.raises(ValueError) as error:
        objectives.make("half_done:mine")
    assert str(error.value).endswith("(ModuleNotFoundError: No module named 'no_such_module')")


def test_a_users_own_objective_is_found_by_its_import_path(my_module):
    _, _, expected_BT = value_metrics_gradient("reinforce", CASE)
    _, _, gradient_BT = value_metrics_gradient("my_objectives:mine", CASE, factor=3.0)
    np.testing.assert_allclose(gradient_BT, 3 * expected_BT, rtol=1e-6)


def test_a_users_own_objective_takes_another_form_of_the_loss(my_module):
    form = {"aggregation": "constant", "constant": 7.0, "kl_coefficient": 0.2}
    expected = value_metrics_gradient("reinforce", CASE, **form)
    found = value_metrics_gradient("my_objectives:mine", CASE, **form)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
