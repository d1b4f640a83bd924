"""What must not matter to an objective: padding, order, place in a row, and devices."""

import dataclasses
import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from policy_cases import (
    LOGPS,
    Case,
    compiled_together,
    gradient_of,
    loss_of,
    make_case,
    value_metrics_gradient,
)

from asympo_jax import objectives

CASE = make_case()
every_objective = pytest.mark.parametrize("name", objectives.names())
paddings = st.lists(
    st.sampled_from([np.nan, np.inf, -np.inf, 1e4, -1e4]),
    min_size=len(LOGPS),
    max_size=len(LOGPS),
)


def assert_close(found: Any, expected: Any):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected
    )


@every_objective
@hypothesis.settings(max_examples=8)
@hypothesis.given(values=paddings)
@hypothesis.example(values=[np.nan] * len(LOGPS))
@hypothesis.example(values=[1e4] * len(LOGPS))
def test_padding_reaches_neither_value_nor_gradient_nor_metrics(name, values):
    clean = value_metrics_gradient(name, CASE.padded_with(0.0))
    dirty = value_metrics_gradient(name, CASE.padded_with(*values))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert (clean[2][~CASE.mask_BT] == 0).all()


@pytest.mark.parametrize("aggregation", ["response_mean", "token_mean", "constant"])
@pytest.mark.parametrize("padding", [np.nan, np.inf, -np.inf, 1e4, -1e4])
def test_padding_does_not_reach_the_reference_term(aggregation, padding):
    options = {"aggregation": aggregation, "kl_coefficient": 0.5}
    clean = value_metrics_gradient("reinforce", CASE.padded_with(0.0), **options)
    dirty = value_metrics_gradient("reinforce", CASE.padded_with(padding), **options)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@every_objective
def test_a_batch_without_tokens_has_loss_and_gradient_zero(name):
    empty = dataclasses.replace(CASE, mask_BT=np.zeros_like(CASE.mask_BT))
    loss, metrics, gradient_BT = value_metrics_gradient(name, empty.padded_with(np.nan))
    assert loss == 0
    assert (gradient_BT == 0).all()
    known = {n: value for n, value in metrics.items() if not n.startswith("nll/")}
    assert all(np.isfinite(value) for value in known.values())


@pytest.mark.parametrize("name", ["asympo", "gpg", "dr_grpo", "m2po"])  # every aggregation, scope
def test_rows_without_tokens_change_nothing(name):
    padded = CASE.changed(lambda x: np.concatenate([x, np.zeros_like(x[:3])]))
    loss, metrics, gradient_BT = value_metrics_gradient(name, padded)
    assert_close((loss, metrics, gradient_BT[:12]), value_metrics_gradient(name, CASE))


@every_objective
def test_ratios_beyond_the_range_of_floats_stay_finite(name):
    case = make_case()
    for others in LOGPS[1:]:
        case.arrays[others][case.mask_BT] = -1e4
        case.arrays[others][0] = 0.0
    case.logp_BT[0] = -1e4
    outcome = value_metrics_gradient(name, case)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outcome))


@every_objective
@hypothesis.settings(max_examples=5)
@hypothesis.given(random=st.randoms(use_true_random=False))
def test_the_order_of_groups_and_of_their_responses_moves_the_gradient_only(name, random):
    groups = [list(range(g * 3, g * 3 + 3)) for g in range(4)]
    random.shuffle(groups)
    for group in groups:
        random.shuffle(group)
    order = np.array(groups).reshape(-1)
    loss, metrics, gradient_BT = value_metrics_gradient(name, CASE)
    moved = value_metrics_gradient(name, CASE.rows(order))
    assert_close(moved, (loss, metrics, gradient_BT[order]))


def shifted(case: Case, first_B: np.ndarray) -> tuple[Case, np.ndarray]:
    """The responses with their first tokens at other positions, and where each token came from."""
    position_T = np.arange(case.mask_BT.shape[1])[None]
    source_BT = (position_T - first_B[:, None] + case.mask_BT.argmax(axis=1)[:, None]) % 8
    moved = case.changed(lambda x: np.take_along_axis(x, source_BT, axis=1), "mask_BT", *LOGPS)
    return moved, source_BT


@every_objective
@hypothesis.settings(max_examples=5)
@hypothesis.given(data=st.data())
def test_the_place_of_a_response_in_its_row_moves_the_gradient_only(name, data):
    room_B = CASE.mask_BT.shape[1] - CASE.mask_BT.sum(axis=1)
    first_B = np.array([data.draw(st.integers(0, int(room))) for room in room_B])
    moved, source_BT = shifted(CASE.padded_with(np.nan), first_B)
    assert (moved.mask_BT.argmax(axis=1) == first_B).all()
    loss, metrics, gradient_BT = value_metrics_gradient(name, CASE)
    expected_BT = np.take_along_axis(gradient_BT, source_BT, axis=1)
    assert_close(value_metrics_gradient(name, moved), (loss, metrics, expected_BT))


def loss_and_shares(objective: Any, group_size: int, *arrays: Any) -> tuple[jax.Array, jax.Array]:
    """A loss, and the sum of what two parts of the batch have in it."""
    mask_BT, advantage_B, *logps = arrays
    batch = objectives.PolicyBatch(
        mask_BT=mask_BT,
        advantage_B=objective.advantage(advantage_B),
        totals=objectives.batch_totals(mask_BT, advantage_B, group_size),
        **dict(zip(LOGPS, logps, strict=True)),
    )
    weight_BT = objectives.token_weight(objective, batch)

    def share(rows: slice) -> jax.Array:
        part = jax.tree.map(lambda x: x[rows], dataclasses.replace(batch, totals=None))
        part = dataclasses.replace(part, totals=batch.totals)
        own = objective.scope == "response"
        part_weight_BT = objectives.token_weight(objective, part) if own else weight_BT[rows]
        return objectives.aggregate_loss(objective, part, part_weight_BT)

    return loss_of(objective, group_size, *arrays)[0], share(slice(5)) + share(slice(5, None))


@functools.cache
def losses_and_shares() -> dict[str, Any]:
    # A limit at which parts of the batch would mask other tokens than the whole.
    options = {"kl_coefficient": 0.1}
    variants = [(n, options | ({"limit": 1.5} if n == "m2po" else {})) for n in objectives.names()]
    found = compiled_together(loss_and_shares, variants, CASE.group_size)(*CASE.arrays.values())
    return {key.split()[0]: losses for key, losses in found.items()}


@every_objective
def test_the_loss_of_a_batch_is_the_sum_of_the_shares_of_its_parts(name):
    loss, shares = losses_and_shares()[name]
    np.testing.assert_allclose(shares, loss, rtol=1e-5, atol=1e-6)


SHARDED_CASE = make_case(group_size=4)  # 16 responses, so that 8 devices cut through the groups


def loss_and_gradient(*arguments: Any) -> tuple[jax.Array, jax.Array]:
    return loss_of(*arguments)[0], gradient_of(*arguments)


@functools.cache
def of_all_objectives() -> Any:
    variants = [(name, {"kl_coefficient": 0.1}) for name in objectives.names()]
    return compiled_together(loss_and_gradient, variants, 4)


@functools.cache
def on_devices(num_devices: int) -> dict[str, Any]:
    """Losses and gradients of a batch whose responses are sharded over devices."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",))
    arrays = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        for x in SHARDED_CASE.arrays.values()
    ]
    assert len(arrays[0].addressable_shards) == num_devices
    return jax.tree.map(np.asarray, of_all_objectives()(*arrays))


@every_objective
def test_the_number_of_devices_changes_neither_loss_nor_gradient(name):
    key = f"{name} {{'kl_coefficient': 0.1}}"
    loss, gradient_BT = on_devices(1)[key]
    assert np.abs(gradient_BT).max() > 1e-3
    found_loss, found_gradient_BT = on_devices(8)[key]
    np.testing.assert_allclose(found_gradient_BT, gradient_BT, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5, atol=1e-6)
