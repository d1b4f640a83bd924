"""The learner on a mesh of eight devices: what lies where, and the same updates as on one device.

Numbers of the two are close and not the same: a sum over the width, the rows or the vocabulary is
made of parts that are added in another order, and float32 rounds each addition.
"""

import dataclasses
import functools
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_cases import FAMILIES, params_of
from step_cases import ONE_LAYER, STEP, example_batch
from tiny_runs import Finished

from asympo_jax import learning, models, objectives, states, workdirs
from asympo_jax.config import default_config, resolve
from asympo_jax.experiment import build_parts
from asympo_jax.learning.train_step import Packed
from asympo_jax.models import LoraConfig, MeshShape, ModelConfig
from asympo_jax.runtime.snapshots import parameters_sha256
from asympo_jax.types import Batch

SHAPES = {"8x1x1": MeshShape(data=8), "1x8x1": MeshShape(fsdp=8), "2x2x2": MeshShape(2, 2, 2)}
VOCABULARY = 106  # no other axis is as long, nor as long as half of it
MODEL = dataclasses.replace(ONE_LAYER, vocab_size=VOCABULARY)
SGD = optax.sgd(1.0)
every_mesh = pytest.mark.parametrize("mesh", SHAPES)


def batch_of_sixteen() -> Batch:
    """Four groups of four, so that eight devices cut through groups; two micro-batches of rows."""
    batch = example_batch()
    rows = {n: np.concatenate([x, x]) for n, x in vars(batch).items() if n != "reward_PG"}
    return Batch(**rows, reward_PG=np.concatenate([batch.reward_PG, -batch.reward_PG[::-1]]))


BATCH = batch_of_sixteen()
STEP_OF_EIGHT = dataclasses.replace(STEP, micro_batch=8)


def on(shape: MeshShape) -> tuple[ModelConfig, learning.StepConfig]:
    """The decoder and the step on a mesh."""
    model = dataclasses.replace(MODEL, mesh=shape.make())
    return model, dataclasses.replace(STEP_OF_EIGHT, row_shards=shape.num_row_shards)


# ------------------------------------------------------------------------------------- updates


NAMES = objectives.names()
# With these something of the batch is masked or clipped.
_LIMITS: dict[str, dict[str, Any]] = {
    "m2po": {"limit": 3.0},
    "gspo": {"clip_low": 0.3, "clip_high": 0.3},
}
OBJECTIVES = {name: objectives.make(name, **_LIMITS.get(name, {})) for name in NAMES}


def chosen(number: Any) -> objectives.Objective:
    """The objective of a number as one program for all: a token weight is what tells them apart.

    Weights of every objective are computed as those of a whole batch may be, and other means over
    tokens become part of the weight.
    """

    def weight(name: str, batch: objectives.PolicyBatch) -> jax.Array:
        objective, totals = OBJECTIVES[name], batch.totals
        weight_BT = jnp.broadcast_to(objective.weight(batch), batch.mask_BT.shape)
        length_B1 = batch.mask_BT.sum(axis=1, keepdims=True).astype(weight_BT.dtype)
        match objective.aggregation:
            case "token_mean":
                return weight_BT * length_B1 * (totals.num_responses / totals.num_tokens)
            case "constant":
                return weight_BT * length_B1 / objective.constant
        return weight_BT

    weights = [functools.partial(weight, name) for name in NAMES]
    advantages = [OBJECTIVES[name].advantage for name in NAMES]
    return objectives.Objective(
        "chosen",
        lambda batch: jax.lax.switch(number, weights, batch),
        advantage=lambda advantage_B: jax.lax.switch(number, advantages, advantage_B),
        needs=("behaviour", "proximal"),
        scope="batch",
    )


@functools.cache
def updated(mesh: str) -> list[Any]:
    """Parameters and metrics after an update under each objective."""
    shape = SHAPES.get(mesh, MeshShape())
    model, config = on(shape)

    def update(number: Any, params: Any, proximal: Any, packed: Any) -> Any:
        # At update 1 the proximal parameters are not renewed.
        state = learning.TrainState(params, SGD.init(params), jnp.int32(1), proximal=proximal)
        step = learning.make_train_step(model, chosen(number), SGD, config)
        state, metrics = step.on_packed(state, packed)
        return state.params, metrics

    params, proximal = (models.placed(model.mesh, params_of(MODEL, seed)) for seed in (0, 1))
    packed = learning.pack(config.packing, BATCH)
    if model.mesh is not None:
        packed = learning.spread(model.mesh, packed)
    compiled = jax.jit(update)
    numbers = map(jnp.int32, range(len(NAMES)))
    found = [compiled(number, params, proximal, packed) for number in numbers]
    return jax.tree.map(np.asarray, found)


def assert_same_update(found: Any, expected: Any) -> None:
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), found, expected
    )


@every_mesh
@pytest.mark.parametrize("name", NAMES)
def test_an_update_on_eight_devices_is_that_on_one(name, mesh):
    expected = updated("1x1x1")[NAMES.index(name)]
    moves = jax.tree.map(lambda x, y: np.abs(x - y).max(), expected[0], params_of(MODEL))
    assert max(jax.tree.leaves(moves)) > 1e-2
    assert_same_update(updated(mesh)[NAMES.index(name)], expected)


@pytest.mark.parametrize("mesh", ["1x8x1", "2x2x2"])
def test_log_probs_and_their_gradient_are_those_of_one_device_where_one_chunk_holds_all(mesh):
    rng = np.random.default_rng(0)
    hidden_BTD, head_VD, weight_BT = (
        rng.normal(size=shape).astype(np.float32) for shape in ((8, 3, 4), (6, 4), (8, 3))
    )
    target_BT = jnp.asarray(rng.integers(0, 6, (8, 3)), jnp.int32)

    def value(hidden_BTD: Any, head_VD: Any, mesh: Any) -> Any:
        logp_BT, entropy_BT = models.target_logp(hidden_BTD, head_VD, target_BT, 0.7, 0, mesh)
        return (logp_BT * weight_BT).sum(), (logp_BT, entropy_BT)

    gradient = jax.jit(jax.grad(value, (0, 1), has_aux=True), static_argnums=2)
    found = gradient(hidden_BTD, head_VD, SHAPES[mesh].make())
    expected = gradient(hidden_BTD, head_VD, None)
    assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(assert_close, found, expected)


# --------------------------------------------------------------------------------- what lies where


ADAM = learning.make_optimizer(learning.OptimizerConfig(1e-3))
ASYMPO = objectives.make("asympo", kl_coefficient=0.1)


def new_state(mesh: str) -> learning.TrainState:
    """A state with a reference, on a mesh, whose parameters were there before it was made."""
    devices = SHAPES.get(mesh, MeshShape()).make()
    params = jax.tree.map(jnp.copy, params_of(MODEL))
    params = models.placed(devices, params)
    return models.placed(devices, learning.state_from_params(params, ADAM, ASYMPO.needs))


@functools.cache
def step_of_asympo(mesh: str) -> Packed:
    """The step of `asympo` with Adam."""
    model, config = on(SHAPES.get(mesh, MeshShape()))
    return learning.make_train_step(model, ASYMPO, ADAM, config)


@functools.cache
def compiled_step() -> Any:
    """That step on 2x2x2, compiled."""
    return step_of_asympo("2x2x2").lower(new_state("2x2x2"), BATCH).compile()


def test_weights_of_each_micro_batch_lead_to_the_same_gradient_as_on_one_device():
    _, config = on(SHAPES["2x2x2"])
    packed = learning.pack(config.packing, BATCH)
    devices = SHAPES["2x2x2"].make()
    assert devices is not None
    found, expected = (
        (optax.tree.get(state.opt_state, "mu"), {**metrics, "update/norm": 0.0, "params/norm": 0.0})
        for state, metrics in (
            compiled_step()(new_state("2x2x2"), learning.spread(devices, packed)),
            step_of_asympo("1x1x1")(new_state("1x1x1"), BATCH),
        )
    )
    assert_same_update(found, expected)


def test_each_device_holds_an_eighth_of_the_state():
    state = new_state("1x8x1")
    matrices = [x for x in jax.tree.leaves(state) if x.ndim > 1]
    assert len(matrices) == 4 * 8  # parameters, two moments, a reference
    for x in jax.tree.leaves(state):
        assert len(x.sharding.device_set) == 8
        assert x.addressable_shards[0].data.size == (x.size // 8 if x.ndim > 1 else x.size)


def test_a_step_leaves_the_state_where_it_was_so_that_the_next_one_is_the_same_program():
    after, _ = compiled_step().output_shardings
    for x, found in zip(*map(jax.tree.leaves, (new_state("2x2x2"), after)), strict=True):
        assert x.sharding.is_equivalent_to(found, x.ndim)


def test_no_device_ever_holds_logits_of_the_whole_vocabulary():
    shapes = re.findall(r"f32\[([\d,]+)\]", compiled_step().as_text())
    sizes = {int(size) for shape in shapes for size in shape.split(",")}
    assert VOCABULARY // 2 in sizes
    assert VOCABULARY not in sizes


def test_no_device_gathers_hidden_states_of_the_rows_of_others():
    gathered = re.findall(r"(f32\[[\d,]+\])\S* all-gather\(", compiled_step().as_text())
    kernel, hidden_states = r"f32\[8,8\]", r"f32\[\d+,7,\d+\]"
    assert any(re.fullmatch(kernel, shape) for shape in gathered)
    assert not any(re.fullmatch(hidden_states, shape) for shape in gathered)


def test_without_a_mesh_the_step_says_nothing_of_devices():
    step = learning.make_train_step(MODEL, objectives.make("asympo"), SGD, STEP_OF_EIGHT)
    state = learning.state_from_params(params_of(MODEL), SGD)
    program = str(
        jax.make_jaxpr(step.on_packed)(state, learning.pack(STEP_OF_EIGHT.packing, BATCH))
    )
    assert not re.search("sharding_constraint|shard_map|psum", program)
    assert MeshShape().make() is None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_every_family_has_a_place_in_the_table(family):
    mesh = SHAPES["2x2x2"].make()
    assert mesh is not None
    model = FAMILIES[family]
    shapes = jax.eval_shape(functools.partial(models.init_params, model), jax.random.key(0))
    adapters = jax.eval_shape(
        lambda key: models.init_adapters(model, LoraConfig(rank=2), key), jax.random.key(0)
    )
    tree = {"params": shapes, "adapters": adapters}
    for path, place in jax.tree_util.tree_leaves_with_path(models.shardings_of(mesh, tree)):
        is_vector = path[-1].key == "scale"
        assert place.is_fully_replicated == is_vector, path
        if path[-1].key in ("kernel", "embedding", "head"):
            assert set(place.spec) >= {"fsdp", "tensor"}, path


# ------------------------------------------------------------------------------------------ runs


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("width", 6, "learner.fsdp=4: must divide the decoder's width, which is 6"),
        ("num_heads", 6, "learner.tensor=4: must divide the decoder's num_heads, which is 6"),
        ("num_kv_heads", 2, "learner.tensor=4: must divide the decoder's num_kv_heads, which is 2"),
        ("mlp_width", 6, "learner.tensor=4: must divide the decoder's mlp_width, which is 6"),
        ("vocab_size", 18, "learner.tensor=4: must divide the decoder's vocab_size, which is 18"),
    ],
)
def test_a_mesh_that_does_not_divide_the_decoder_is_refused(field, value, words):
    sizes = {"vocab_size": 8, "width": 8, "num_heads": 4, "num_kv_heads": 4, "mlp_width": 8}
    if field == "num_heads":
        sizes["num_kv_heads"] = 2
    model = ModelConfig(**{**sizes, field: value}, num_layers=1, head_width=4)
    with pytest.raises(ValueError, match=re.escape(words)):
        MeshShape(fsdp=4, tensor=4).check(model)


def test_the_decoder_of_a_config_is_checked_before_any_device_is_touched():
    config = default_config()
    config.update_from_flattened_dict({"learner.tensor": 3})
    with pytest.raises(ValueError, match=r"learner\.tensor=3: must divide the decoder's num_heads"):
        build_parts(resolve(config))


MESH_RUN = {
    "runtime__name": "sync",
    "num_updates": 2,
    "model__num_kv_heads": 2,
    "learner__platform": "cpu",
}


@pytest.fixture(scope="module")
def on_a_mesh(runner, tmp_path_factory) -> Finished:
    """A run of two updates on eight CPU devices, which the config alone asks for."""
    workdir = tmp_path_factory.mktemp("mesh")
    return runner.train(workdir, **MESH_RUN, learner__data=2, learner__fsdp=2, learner__tensor=2)


def test_a_checkpoint_is_restored_bit_for_bit_on_one_device_and_on_another_mesh(on_a_mesh):
    config = resolve(workdirs.read_config(on_a_mesh.workdir))
    parts = build_parts(config)
    for mesh, num_devices in ((None, 1), (SHAPES["1x8x1"].make(), 8)):
        state = states.load_state(config, parts, on_a_mesh.workdir, mesh=mesh)
        assert parameters_sha256(state.params) == on_a_mesh.sha
        assert {len(x.sharding.device_set) for x in jax.tree.leaves(state)} == {num_devices}


def test_a_run_goes_on_from_its_checkpoint_on_another_mesh(on_a_mesh, runner, tmp_path):
    assert on_a_mesh.result["updates"] == 2
    shutil.copytree(on_a_mesh.workdir, tmp_path / "run")
    resumed = runner.train(tmp_path / "run", **MESH_RUN | {"num_updates": 3})
    assert resumed.result["updates"] == 3
    assert [line["update"] for line in resumed.metrics] == [0, 1, 2, 3]
