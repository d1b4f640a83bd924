"""LoRA: adapters in the decoder, and the config section that asks for them."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_cases import LORA, TARGETS, TOKENS, adapters_of, base_of, by_path
from model_cases import FAMILIES, full_logits, params_of
from step_cases import (
    ONE_LAYER,
)

from asympo_jax import models
from asympo_jax.config import get_config, resolve
from asympo_jax.models import LoraConfig

every_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


@every_family
def test_a_decoder_without_adapters_computes_its_own_products_alone(config):
    tokens_BT = jnp.asarray(TOKENS)
    traced = jax.make_jaxpr(lambda params: models.logits(config, params, tokens_BT))
    # Seven projections and two products of the attention a layer, the rotation, and the head.
    assert str(traced(params_of(config))).count("dot_general[") == 9 * config.num_layers + 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_family
def test_new_adapters_change_no_bit(config, dtype):
    config = dataclasses.replace(config, dtype=dtype)
    new = models.init_adapters(config, LORA, jax.random.key(0))
    adapted = models.with_adapters(base_of(config), new)
    # One operation after the other: fusing them in other ways rounds in other ways.
    found, plain = (
        models.logits(config, params, jnp.asarray(TOKENS))
        for params in (adapted, params_of(config))
    )
    np.testing.assert_array_equal(found, plain)


@every_family
def test_merged_weights_are_the_same_decoder(config):
    adapted = models.with_adapters(base_of(config), adapters_of(config))
    merged = models.merge(adapted)
    plain = params_of(config)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, plain)
    found = full_logits(config, adapted, TOKENS)
    np.testing.assert_allclose(found, full_logits(config, merged, TOKENS), atol=1e-5, rtol=1e-5)
    assert np.abs(found - full_logits(config, plain, TOKENS)).max() > 0.1


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_alone_adapts_its_own_kernels(target):
    lora = dataclasses.replace(LORA, targets=target)
    adapted = models.with_adapters(base_of(ONE_LAYER, lora), adapters_of(ONE_LAYER, lora))
    merged, plain = by_path(models.merge(adapted)), by_path(params_of(ONE_LAYER))
    changed = {path for path in plain if not np.array_equal(merged[path], plain[path])}
    part = "mlp" if target in ("gate", "up", "down") else "attention"
    assert changed == {("layer_0", part, target, "kernel")}


def test_merging_does_not_round_what_bfloat16_weights_would_lose():
    plain = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(ONE_LAYER))
    small = jax.tree.map(lambda x: 1e-3 * x, adapters_of(ONE_LAYER))
    merged = models.merge(models.with_adapters(models.frozen_base(ONE_LAYER, plain, LORA), small))
    place = ("layer_0", "mlp", "up")
    before = by_path(plain)[(*place, "kernel")].astype(jnp.float32)
    flat = by_path(small)
    delta = LORA.scale * flat[(*place, "lora_a")] @ flat[(*place, "lora_b")]
    found = by_path(merged)[(*place, "kernel")]
    np.testing.assert_allclose(found - before, delta, atol=1e-7)


def test_gradients_of_adapters_are_the_projected_gradient_of_the_kernels():
    config = dataclasses.replace(ONE_LAYER, qkv_bias=True)
    base, adapters = base_of(config), adapters_of(config)
    target_BTV = np.random.default_rng(5).normal(size=(*TOKENS.shape, 7)).astype(np.float32)

    def loss(params: Any) -> jax.Array:
        return (models.logits(config, params, jnp.asarray(TOKENS)) * target_BTV).sum()

    adapted = models.with_adapters(base, adapters)
    found = jax.grad(lambda adapters: loss(models.with_adapters(base, adapters)))(adapters)
    by_kernel = by_path(jax.grad(loss)(models.merge(adapted)))
    flat, found = by_path(adapters), by_path(found)
    assert len(found) == 2 * len(TARGETS)
    for place in {path[:-1] for path in found}:
        a, b = flat[(*place, "lora_a")], flat[(*place, "lora_b")]
        num_in, num_out = math.prod(a.shape[:-1]), math.prod(b.shape[1:])
        kernel_io = by_kernel[(*place, "kernel")].reshape(num_in, num_out)
        a_ir, b_ro = a.reshape(num_in, -1), b.reshape(-1, num_out)
        for name, expected in (
            ("lora_a", 1.5 * kernel_io @ b_ro.T),
            ("lora_b", 1.5 * a_ir.T @ kernel_io),
        ):
            gradient = found[(*place, name)]
            np.testing.assert_allclose(
                gradient, expected.reshape(gradient.shape), rtol=1e-3, atol=1e-3
            )
            assert np.abs(gradient).max() > 0.1


def test_a_gradient_of_an_adapter_is_the_slope_of_the_loss():
    base, adapters = base_of(ONE_LAYER), adapters_of(ONE_LAYER)
    direction = jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape), x.dtype), adapters
    )

    @jax.jit
    def loss(step: jax.Array) -> jax.Array:
        moved = jax.tree.map(lambda x, d: x + step * d, adapters, direction)
        logits_BTV = models.logits(
            ONE_LAYER, models.with_adapters(base, moved), jnp.asarray(TOKENS)
        )
        return jax.nn.log_softmax(logits_BTV)[..., 0].mean()

    step = jnp.float32(1e-2)
    slope = (loss(step) - loss(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(0)), slope, rtol=1e-2)


def test_an_adapter_starts_with_variance_one_over_inputs_whatever_others_there_are():
    config = dataclasses.replace(ONE_LAYER, width=64, head_width=16)
    lora = LoraConfig(rank=32)
    adapters = by_path(models.init_adapters(config, lora, jax.random.key(1)))
    alone = models.init_adapters(
        config, dataclasses.replace(lora, targets="out,up"), jax.random.key(1)
    )
    for path, x in by_path(alone).items():
        np.testing.assert_array_equal(x, adapters[path])
    for path, x in adapters.items():
        assert x.dtype == jnp.float32
        if path[-1] == "lora_b":
            assert not x.any() and x.shape[0] == 32
        else:
            assert x.shape[-1] == 32
            num_in = math.prod(x.shape[:-1])
            assert float(x.var() * num_in) == pytest.approx(1.0, abs=0.25)
    assert not np.array_equal(
        adapters[("layer_0", "mlp", "up", "lora_a")], adapters[("layer_0", "mlp", "gate", "lora_a")]
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": -1}, "lora.rank=-1: must be from 0, no LoRA, to 1024"),
        ({"rank": 2000}, "lora.rank=2000: must be from 0, no LoRA, to 1024"),
        ({"alpha": 8.0}, "lora.alpha=8.0: is not used with lora.rank=0"),
        ({"targets": "query"}, "lora.targets='query': is not used with lora.rank=0"),
        ({"rank": 2, "alpha": 0.0}, "lora.alpha=0.0: must be positive"),
        ({"rank": 2, "alpha": math.nan}, "lora.alpha=nan: must be positive"),
        (
            {"rank": 2, "targets": "query,head"},
            "lora.targets='query,head': 'head' is no projection",
        ),
        ({"rank": 2, "targets": ""}, "lora.targets='': '' is no projection"),
    ],
)
def test_a_wrong_section_is_refused_in_a_sentence(fields, words):
    config: Any = get_config()
    for name, value in fields.items():
        config.lora[name] = value
    with pytest.raises(ValueError) as refusal:
        resolve(config)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_section_becomes_a_scale_and_targets():
    config: Any = get_config()
    assert resolve(config).lora == LoraConfig()
    config.lora.rank, config.lora.alpha, config.lora.targets = 4, 6.0, "down,query"
    lora = resolve(config).lora
    assert (lora.scale, lora.target_names) == (1.5, ("query", "down"))
    assert LoraConfig(rank=5).scale == 1.0 and LoraConfig(rank=5).target_names == TARGETS
