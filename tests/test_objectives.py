"""The one loss has the gradients of the textbook surrogates, and nothing else reaches it."""

import dataclasses
import functools
import inspect
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policy_cases import Case, make_case, value_metrics_gradient

from asympo_jax import objectives
from asympo_jax.objectives import PolicyBatch, batch_totals, policy_loss, token_weight, weights

CASE = make_case()
VARIANTS = [
    ("reinforce", {}),
    ("gpg", {}),
    ("spo", {"alpha": 0.25}),
    ("asympo", {"floor": 1e-3}),
    ("grpo", {"clip_low": 0.2, "clip_high": 0.3}),
    ("grpo", {"dual_clip": 3.0}),
]
every_objective = pytest.mark.parametrize("name", objectives.names())


def textbook_loss(name: str, case: Case, logp_BT: jax.Array, **options: float) -> jax.Array:
    """The surrogate as its paper writes it, one response after the other; its gradient counts."""
    per_response = []
    num_tokens = 0
    for logp_T, mask_T, advantage, behaviour_T in zip(
        logp_BT, case.mask_BT, case.advantage_B, case.behaviour_logp_BT, strict=True
    ):
        positions = np.flatnonzero(mask_T)
        num_tokens += len(positions)
        logp, behaviour = logp_T[positions], behaviour_T[positions]
        match name:
            case "reinforce":
                per_response.append(-advantage * jnp.mean(logp))
            case "gpg":
                per_response.append(-advantage * jnp.sum(logp))
            case "spo":
                scale = 1.0 if advantage >= 0 else options["alpha"]
                per_response.append(-scale * advantage * jnp.mean(logp))
            case "asympo":
                per_response.append(advantage * jnp.log(jnp.mean(-logp)))
            case "grpo":
                ratio = jnp.exp(logp - behaviour)
                low, high = 1 - options.get("clip_low", 0.2), 1 + options.get("clip_high", 0.2)
                clipped = jnp.clip(ratio, low, high)
                surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
                if "dual_clip" in options and advantage < 0:
                    surrogate = jnp.maximum(surrogate, options["dual_clip"] * advantage)
                per_response.append(-jnp.mean(surrogate))
    if name == "gpg":
        num_responses = len(per_response)
        flat = np.all(case.advantage_B.reshape(-1, case.group_size) == 0, axis=1)
        num_with_signal = num_responses - int(flat.sum()) * case.group_size
        total = jnp.stack(per_response).sum()
        return total / num_tokens * (num_responses / num_with_signal)
    return jnp.mean(jnp.stack(per_response))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_the_gradient_is_that_of_the_textbook_surrogate(name, options):
    with jax.enable_x64(True):
        case = make_case(dtype=np.float64)
        expected_BT = jax.jit(jax.grad(lambda x: textbook_loss(name, case, x, **options)))(
            case.logp_BT
        )
        loss, _, gradient_BT = value_metrics_gradient(name, case, **options)
    assert loss.dtype == gradient_BT.dtype == np.float64
    assert (gradient_BT[case.mask_BT] != 0).sum() > 10
    np.testing.assert_allclose(gradient_BT, expected_BT, rtol=1e-10, atol=1e-15)


def test_the_case_of_these_tests_is_hard():
    ratio = np.exp(CASE.logp_BT - CASE.behaviour_logp_BT)[CASE.mask_BT]
    assert ratio.min() < 0.3
    assert ratio.max() > 3.0
    assert len(set(CASE.mask_BT.sum(axis=1))) > 2
    assert (CASE.advantage_B > 0).any() and (CASE.advantage_B < 0).any()
    flat_P = (CASE.advantage_B.reshape(-1, 3) == 0).all(axis=1)
    assert flat_P.tolist() == [False, True, False, False]


def test_asympo_has_value_zero_whatever_the_scales_of_its_responses():
    loss, metrics, gradient_BT = value_metrics_gradient("asympo", CASE)
    assert abs(loss) < 1e-7
    assert abs(metrics["balance/net"]) < 1e-7
    assert metrics["balance/positive"] > 0.1
    assert metrics["weight/floor_share"] == 0
    assert np.abs(gradient_BT).max() > 0.01


def test_without_the_stopped_gradient_asympo_would_learn_nothing():
    def unstopped(logp_BT):
        mask_BT, advantage_B = jnp.asarray(CASE.mask_BT), jnp.asarray(CASE.advantage_B)
        totals = batch_totals(mask_BT, advantage_B, 3)
        weight_B1 = weights.asympo(PolicyBatch(logp_BT, mask_BT, advantage_B, totals))
        term_BT = jnp.where(mask_BT, weight_B1 * advantage_B[:, None] * logp_BT, 0.0)
        return -(term_BT.sum(axis=1) / mask_BT.sum(axis=1).astype(jnp.float32)).mean()

    gradient_BT = jax.jit(jax.grad(unstopped))(jnp.asarray(CASE.logp_BT))
    np.testing.assert_allclose(gradient_BT, 0.0, atol=1e-6)


def test_a_response_below_the_floor_is_weighted_by_the_floor_and_counted():
    logp_BT = np.full((4, 2), -0.5, np.float32)
    logp_BT[1] = -1e-5
    case = Case(
        logp_BT, np.ones((4, 2), bool), np.array([1, -1, 1, -1], np.float32), logp_BT, group_size=2
    )
    loss, metrics, gradient_BT = value_metrics_gradient("asympo", case, floor=1e-3)
    # Three responses give A / 4, the one at the floor A / 4 · ℓ̄ / floor.
    np.testing.assert_allclose(loss, (1 + 1 - 1 - 1e-5 / 1e-3) / 4, rtol=1e-5)
    np.testing.assert_allclose(gradient_BT[1], 1 / 1e-3 / 2 / 4, rtol=1e-5)
    assert metrics["weight/floor_share"] == 0.25
    np.testing.assert_allclose(metrics["weight/max"], 1000, rtol=1e-5)


def test_spo_lies_between_reinforce_and_positives_only():
    _, _, reinforce_BT = value_metrics_gradient("reinforce", CASE)
    _, _, one_BT = value_metrics_gradient("spo", CASE, alpha=1.0)
    _, _, none_BT = value_metrics_gradient("spo", CASE, alpha=0.0)
    np.testing.assert_array_equal(one_BT, reinforce_BT)
    positive_B1 = CASE.advantage_B[:, None] > 0
    np.testing.assert_array_equal(none_BT, np.where(positive_B1, reinforce_BT, 0.0))


def test_gpg_makes_up_for_groups_without_signal():
    _, metrics, _ = value_metrics_gradient("gpg", CASE)
    np.testing.assert_allclose(metrics["weight/mean"], 12 / 9, rtol=1e-6)
    flat = dataclasses.replace(CASE, advantage_B=np.zeros(12, np.float32))
    loss, _, gradient_BT = value_metrics_gradient("gpg", flat)
    assert loss == 0 and (gradient_BT == 0).all()


RATIOS = np.array([0.1, 0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.9, 3.1, 50.0], np.float32)


@pytest.mark.parametrize("dual_clip", [float("inf"), 3.0])
def test_grpo_keeps_or_drops_each_ratio_as_its_table_says(dual_clip):
    behaviour_BT = np.full((2, 10), -4.0, np.float32)
    logp_BT = behaviour_BT + np.log(RATIOS)
    advantage_B = np.array([1, -1], np.float32)
    case = Case(logp_BT, np.ones((2, 10), bool), advantage_B, behaviour_BT, group_size=2)
    _, metrics, gradient_BT = value_metrics_gradient("grpo", case, dual_clip=dual_clip)
    coefficient_BT = -gradient_BT * 2 * 10 * advantage_B[:, None]
    low_kept = 8 if dual_clip == 3.0 else 10
    expected_BT = np.stack([RATIOS, RATIOS])
    expected_BT[0, 6:] = 0  # above 1.2
    expected_BT[1, :3] = 0  # below 0.8
    expected_BT[1, low_kept:] = 0
    np.testing.assert_allclose(coefficient_BT, expected_BT, rtol=1e-5)
    np.testing.assert_allclose(metrics["clip/high"], 4 / 20, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip/low"], 3 / 20, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip/cap"], (10 - low_kept) / 20, rtol=1e-6)


@every_objective
@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e4, -1e4])
def test_padding_reaches_neither_value_nor_gradient_nor_metrics(name, padding):
    clean = value_metrics_gradient(name, CASE.padded_with(0.0))
    dirty = value_metrics_gradient(name, CASE.padded_with(padding))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert (clean[2][~CASE.mask_BT] == 0).all()


@every_objective
def test_a_batch_without_tokens_has_loss_and_gradient_zero(name):
    empty = dataclasses.replace(CASE, mask_BT=np.zeros_like(CASE.mask_BT))
    loss, metrics, gradient_BT = value_metrics_gradient(name, empty.padded_with(np.nan))
    assert loss == 0
    assert (gradient_BT == 0).all()
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", ["gpg", "asympo"])  # one of each aggregation
def test_rows_without_tokens_change_nothing(name):
    empty = np.zeros((3, 8), np.float32)
    padded = Case(
        np.concatenate([CASE.logp_BT, empty]),
        np.concatenate([CASE.mask_BT, empty.astype(bool)]),
        np.concatenate([CASE.advantage_B, np.zeros(3, np.float32)]),
        np.concatenate([CASE.behaviour_logp_BT, empty]),
        group_size=3,
    )
    loss, metrics, gradient_BT = value_metrics_gradient(name, padded)
    expected = value_metrics_gradient(name, CASE)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        (loss, metrics, gradient_BT[:12]),
        expected,
    )


@every_objective
def test_ratios_beyond_the_range_of_floats_stay_finite(name):
    case = make_case()
    case.behaviour_logp_BT[case.mask_BT] = -1e4
    case.behaviour_logp_BT[0] = 0.0
    case.logp_BT[0] = -1e4
    outcome = value_metrics_gradient(name, case)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outcome))


@hypothesis.settings(max_examples=15)
@hypothesis.given(
    name=st.sampled_from(objectives.names()), random=st.randoms(use_true_random=False)
)
def test_the_order_of_groups_and_of_their_responses_moves_the_gradient_only(name, random):
    groups = [list(range(g * 3, g * 3 + 3)) for g in range(4)]
    random.shuffle(groups)
    for group in groups:
        random.shuffle(group)
    order = np.array(groups).reshape(-1)
    loss, metrics, gradient_BT = value_metrics_gradient(name, CASE)
    moved_loss, moved_metrics, moved_gradient_BT = value_metrics_gradient(name, CASE.rows(order))
    np.testing.assert_allclose(moved_gradient_BT, gradient_BT[order], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(moved_loss, loss, rtol=1e-5, atol=1e-6)
    for key, value in metrics.items():
        np.testing.assert_allclose(moved_metrics[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", ["gpg", "asympo", "grpo"])
def test_shares_of_micro_batches_that_cut_through_groups_add_up(name):
    objective = objectives.make(name)
    case = jax.tree.map(jnp.asarray, dataclasses.asdict(CASE))
    del case["group_size"]
    totals = batch_totals(case["mask_BT"], case["advantage_B"], 3)

    @jax.jit
    def share_and_gradient(rows):
        def share(logp_BT):
            batch = PolicyBatch(**{**rows, "logp_BT": logp_BT}, totals=totals)
            return objectives.aggregate_loss(objective, batch, token_weight(objective, batch))

        return jax.value_and_grad(share)(rows["logp_BT"])

    parts = []
    for start in (0, 4, 8):  # groups have 3 responses
        rows = {field: x[start : start + 4] for field, x in case.items()}
        parts.append(share_and_gradient(rows))
    loss, _, gradient_BT = value_metrics_gradient(name, CASE)
    np.testing.assert_allclose(sum(float(part[0]) for part in parts), loss, rtol=1e-5, atol=1e-6)
    whole_BT = np.concatenate([part[1] for part in parts])
    np.testing.assert_allclose(whole_BT, gradient_BT, rtol=1e-5, atol=1e-7)


def test_log_probs_in_half_precision_are_summed_in_float32():
    logp_BT = jnp.asarray(CASE.logp_BT, jnp.bfloat16)
    for behaviour_logp_BT in (jnp.asarray(CASE.behaviour_logp_BT), logp_BT):
        loss, metrics = jax.eval_shape(
            functools.partial(policy_loss, objectives.make("grpo"), group_size=3),
            **{**ARRAYS, "logp_BT": logp_BT, "behaviour_logp_BT": behaviour_logp_BT},
        )
        assert {loss.dtype, *(x.dtype for x in metrics.values())} == {jnp.dtype("float32")}


ARRAYS = {
    "logp_BT": jnp.asarray(CASE.logp_BT),
    "mask_BT": jnp.asarray(CASE.mask_BT),
    "advantage_B": jnp.asarray(CASE.advantage_B),
}


def test_missing_behaviour_log_probs_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'grpo' needs behaviour .*behaviour_logp_BT is None"):
        policy_loss(objectives.make("grpo"), **ARRAYS, group_size=3)


@pytest.mark.parametrize("need", ["proximal", "reference"])
def test_missing_log_probs_of_a_users_objective_are_refused_by_name(need):
    objective = objectives.Objective("mine", weights.reinforce, needs=(need,))
    with pytest.raises(ValueError, match=f"'mine' needs {need} log-probs: {need}_logp_BT is None"):
        policy_loss(objective, **ARRAYS, group_size=3)


# The tests' type checks refuse wrong shapes before the function could: users have none.
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group_size": 5}, "group_size=5: must divide the number of responses, 12"),
        ({"group_size": 0}, "group_size=0: must divide"),
        ({"advantage_B": jnp.zeros((4, 3))}, "advantage_B: shape (4, 3), must be (12,)"),
        ({"mask_BT": jnp.ones((1, 8), bool)}, "mask_BT: shape (1, 8), must be that of logp_BT"),
        ({"behaviour_logp_BT": jnp.zeros(8)}, "behaviour_logp_BT: shape (8,), must be"),
    ],
)
def test_wrong_shapes_are_refused_instead_of_broadcast(wrong, message):
    unchecked = policy_loss.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(ValueError) as error:
        unchecked(objectives.make("reinforce"), **{**ARRAYS, "group_size": 3, **wrong})
    assert message in str(error.value)


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


def test_every_objective_has_the_aggregation_and_the_advantage_of_its_paper():
    table = {
        name: (o.aggregation, o.center, o.scale, o.needs)
        for name in objectives.names()
        for o in [objectives.make(name)]
    }
    assert table == {
        "reinforce": ("response_mean", "mean", "std", ()),
        "gpg": ("token_mean", "mean", "none", ()),
        "spo": ("response_mean", "mean", "std", ()),
        "asympo": ("response_mean", "mean", "std", ()),
        "grpo": ("response_mean", "mean", "std", ("behaviour",)),
    }


@pytest.mark.parametrize(
    ("name", "option", "default"),
    [
        ("spo", "alpha", 0.25),
        ("asympo", "floor", 1e-3),
        ("grpo", "clip_low", 0.2),
        ("grpo", "clip_high", 0.2),
        ("grpo", "dual_clip", float("inf")),
    ],
)
def test_options_have_their_documented_defaults(name, option, default):
    objective = objectives.make(name)
    assert inspect.signature(objective.weight).parameters[option].default == default
    if option in (reported := inspect.signature(objective.report).parameters):
        assert reported[option].default == default


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("asimpo", {}, "objective.name='asimpo': must be one of ['reinforce', 'gpg', 'spo'"),
        ("spo", {"beta": 1}, "objective.beta is not an option of objective.name='spo', which has"),
        ("gpg", {"alpha": 1}, "objective.alpha is not an option of objective.name='gpg', which"),
        ("asympo", {"floor": 0.0}, "objective.floor=0.0: must be positive"),
        ("asympo", {"floor": float("inf")}, "objective.floor=inf: must be positive"),
        ("spo", {"alpha": 1.5}, "objective.alpha=1.5: must be from 0 to 1"),
        ("grpo", {"clip_low": -0.1}, "objective.clip_low=-0.1: must be from 0 to 1"),
        ("grpo", {"clip_high": -0.1}, "objective.clip_high=-0.1: must not be negative"),
        ("grpo", {"dual_clip": 0.5}, "objective.dual_clip=0.5: must be at least 1"),
        ("no_such_module:x", {}, "objective.name='no_such_module:x': cannot be imported"),
        ("my_objectives:absent", {}, "objective.name='my_objectives:absent': cannot be imported"),
        (":x", {}, "objective.name=':x': cannot be imported"),
        ("my_objectives:scaled", {}, "must be an asympo_jax.objectives.Objective"),
        ("my_objectives:mine", {"floor": 1}, "objective.floor is not an option"),
    ],
)
def test_what_cannot_be_made_is_refused_with_what_can(name, options, message, my_module):
    with pytest.raises(ValueError) as error:
        objectives.make(name, **options)
    assert message in str(error.value)


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


def test_a_users_own_objective_is_found_by_its_import_path(my_module):
    _, _, expected_BT = value_metrics_gradient("reinforce", CASE)
    _, _, gradient_BT = value_metrics_gradient("my_objectives:mine", CASE, factor=3.0)
    np.testing.assert_allclose(gradient_BT, 3 * expected_BT, rtol=1e-6)
