"""The samplers' copy of the parameters: in bfloat16, or with matrices in int8."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from model_cases import FAMILIES, QWEN2, QWEN3, full_logits, params_of

from asympo_jax import models
from asympo_jax.models import LoraConfig, rounded

TOKENS = np.random.default_rng(0).integers(0, 7, (4, 9))


def stepped(kernel: Any, num_in: int) -> tuple[np.ndarray, np.ndarray]:
    """A kernel in the nearest of 255 steps for each output, and half a step."""
    kernel = np.asarray(kernel)
    half = np.abs(kernel).max(axis=tuple(range(num_in))) / 127 / 2
    return np.rint(kernel / (2 * half)) * 2 * half, half


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_int8_rounds_each_matrix_to_steps_of_its_outputs_and_nothing_else(config):
    before: Any = flatten_dict(params_of(config))
    after: Any = flatten_dict(rounded(params_of(config), "int8"))
    for path, x in before.items():
        if path[-1] != "kernel":
            assert after[path] is x
            continue
        assert after[path].dtype == jnp.int8
        found = np.asarray(after[path], np.float32) * np.asarray(
            after[(*path[:-1], "kernel_scale")]
        )
        expected, half = stepped(x, 2 if path[-2] == "out" else 1)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert (np.abs(found - x) <= half * 1.0001).all() and np.abs(found - x).max() > 0


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_decoder_in_int8_computes_with_the_rounded_matrices(config):
    params = params_of(config)
    steps = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            jnp.asarray(stepped(x, 2 if path[-2].key == "out" else 1)[0], jnp.float32)
            if path[-1].key == "kernel"
            else x
        ),
        params,
    )
    found, expected, exact = (
        full_logits(config, given, TOKENS) for given in (rounded(params, "int8"), steps, params)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 1e-4 < np.abs(found - exact).mean() < 0.02 * np.abs(exact).mean()


def test_adapters_stand_beside_matrices_in_int8():
    lora = LoraConfig(rank=2)
    base = models.frozen_base(QWEN3, params_of(QWEN3), lora)
    adapters = jax.tree.map(lambda x: x + 0.1, models.init_adapters(QWEN3, lora, jax.random.key(0)))
    whole = models.with_adapters(base, adapters)
    small = models.with_adapters(rounded(base, "int8"), rounded(adapters, "int8"))
    found, exact = (full_logits(QWEN3, given, TOKENS) for given in (small, whole))
    assert 0 < np.abs(found - exact).mean() < 0.02 * np.abs(exact).mean()
    bare = full_logits(QWEN3, params_of(QWEN3), TOKENS)
    assert np.abs(bare - exact).mean() > 0.2 * np.abs(exact).mean()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_what_is_rounded_stays_as_it_is(dtype):
    once = rounded(params_of(QWEN2), dtype)
    again = rounded(once, dtype)
    jax.tree.map(np.testing.assert_array_equal, again, once)
    assert [x.dtype for x in jax.tree.leaves(again)] == [x.dtype for x in jax.tree.leaves(once)]
    if dtype != "int8":
        assert {x.dtype for x in jax.tree.leaves(once)} == {jnp.dtype(dtype)}


def test_outputs_without_weights_stay_zero():
    params = params_of(QWEN2)
    kernel = params["layer_0"]["mlp"]["up"]["kernel"].at[:, 3].set(0.0)
    small = rounded({"layer_0": {"mlp": {"up": {"kernel": kernel}}}}, "int8")
    up = small["layer_0"]["mlp"]["up"]
    assert (up["kernel"][:, 3] == 0).all() and up["kernel_scale"][3] == 0
