"""The decoder against a plain one, with and without a cache; log-probs against full logits."""

import dataclasses
import re

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import FAMILIES, LLAMA, QWEN3, full_logits, params_of

from asympo_jax import models
from asympo_jax.models import ModelConfig, token_logp
from asympo_jax.models.attention import (
    DecodeCache,
    KeyValues,
    attend_causally,
    make_attend_decoding,
)
from asympo_jax.models.rope import rotate, rotation

every_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
TOKENS = np.random.default_rng(0).integers(0, 7, (4, 9)).astype(np.int32)


def plain_logits(config: ModelConfig, params, tokens_T: np.ndarray) -> np.ndarray:
    """The decoder of the papers in float64 NumPy: one sequence, one head at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_epsilon) * scale

    def turn(x_TH):
        half = config.head_width // 2
        angle = np.arange(len(x_TH))[:, None] * config.rope_theta ** (-np.arange(half) / half)
        turned = (x_TH[:, :half] + 1j * x_TH[:, half:]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], axis=1)

    def attention(p, x_TD):
        def project(name):
            return np.einsum("td,dnh->nth", x_TD, p[name]["kernel"]) + (
                p[name]["bias"][:, None] if config.qkv_bias else 0.0
            )

        q_NTH, k_KTH, v_KTH = project("query"), project("key"), project("value")
        if config.qk_norm:
            q_NTH = norm(q_NTH, p["query_norm"]["scale"])
            k_KTH = norm(k_KTH, p["key_norm"]["scale"])
        out_TD = np.zeros_like(x_TD)
        for head in range(config.num_heads):
            kv = head // (config.num_heads // config.num_kv_heads)
            scores = turn(q_NTH[head]) @ turn(k_KTH[kv]).T / np.sqrt(config.head_width)
            probs = np.exp(np.where(np.tri(len(x_TD)), scores, -np.inf))
            probs /= probs.sum(axis=1, keepdims=True)
            out_TD += probs @ v_KTH[kv] @ p["out"]["kernel"][head]
        return out_TD

    x_TD = params["embedding"][tokens_T]
    for layer in range(config.num_layers):
        p = params[f"layer_{layer}"]
        x_TD = x_TD + attention(p["attention"], norm(x_TD, p["attention_norm"]["scale"]))
        y_TD = norm(x_TD, p["mlp_norm"]["scale"])
        gate = y_TD @ p["mlp"]["gate"]["kernel"]
        up = y_TD @ p["mlp"]["up"]["kernel"]
        x_TD = x_TD + (gate / (1 + np.exp(-gate)) * up) @ p["mlp"]["down"]["kernel"]
    head = params["embedding"] if config.tied_head else params["head"]
    return norm(x_TD, params["final_norm"]["scale"]) @ head.T


@every_family
def test_the_decoder_is_that_of_the_papers(config):
    params = params_of(config)
    logits_BTV = full_logits(config, params, TOKENS)
    assert logits_BTV.dtype == jnp.float32
    for tokens_T, logits_TV in zip(TOKENS, logits_BTV, strict=True):
        np.testing.assert_allclose(logits_TV, plain_logits(config, params, tokens_T), atol=2e-5)


def decoded_logits(config: ModelConfig, params, prompt_PS, length_P, response_BC) -> jax.Array:
    """Logits after the prompt and after each response token, [B, C + 1, V], through the cache."""
    group_size = response_BC.shape[0] // prompt_PS.shape[0]
    hidden_PSD, prompt_caches = models.hidden_states(config, params, prompt_PS)
    last_PD = jnp.take_along_axis(hidden_PSD, (length_P - 1)[:, None, None], axis=1)[:, 0]
    first_BV = jnp.repeat(models.head_logits(config, params, last_PD), group_size, axis=0)
    mask_PS = jnp.arange(prompt_PS.shape[1])[None] < length_P[:, None]
    length_B = jnp.repeat(length_P, group_size)
    num_rows, num_columns = response_BC.shape
    shape = (num_rows, config.num_kv_heads, num_columns, config.head_width)
    empty = jnp.zeros(shape, config.dtype)
    own = tuple(KeyValues(empty, empty) for _ in prompt_caches)

    def step(own, inputs):
        index, token_B = inputs
        attend = make_attend_decoding(mask_PS, jnp.zeros_like(length_B), index, group_size)
        caches = tuple(map(DecodeCache, prompt_caches, own))
        hidden_B1D, caches = models.hidden_states(
            config, params, token_B[:, None], attend, caches, (length_B + index)[:, None]
        )
        logits_BV = models.head_logits(config, params, hidden_B1D[:, 0])
        return tuple(cache.own for cache in caches), logits_BV

    _, logits_CBV = jax.lax.scan(step, own, (jnp.arange(response_BC.shape[1]), response_BC.T))
    return jnp.concatenate([first_BV[:, None], logits_CBV.transpose(1, 0, 2)], axis=1)


LENGTHS = np.array([2, 5, 1], np.int32)  # of prompts, S = 5, two responses of 4 tokens to each
RAGGED = np.random.default_rng(1).integers(0, 7, (6, 9)).astype(np.int32)


def decode_ragged(config: ModelConfig, params) -> tuple[np.ndarray, np.ndarray]:
    """Cached and full logits at the end of the prompts and at every token of the responses."""
    prompt_PS = RAGGED[::2, :5]
    response_BC = RAGGED[:, 5:]
    decoded = jax.jit(decoded_logits, static_argnums=0)(
        config, params, prompt_PS, LENGTHS, response_BC
    )
    rows = []
    for row, length in enumerate(np.repeat(LENGTHS, 2)):
        tokens = [*prompt_PS[row // 2, :length], *response_BC[row]]
        rows.append(np.pad(tokens, (0, 9 - len(tokens))))
    full_BTV = full_logits(config, params, np.stack(rows))
    starts = np.repeat(LENGTHS, 2) - 1
    full = [x[start : start + 5] for x, start in zip(full_BTV, starts, strict=True)]
    return np.asarray(decoded), np.stack(full)


@every_family
def test_decoding_with_a_cache_equals_the_full_forward_pass(config):
    decoded_BCV, full_BCV = decode_ragged(config, params_of(config))
    np.testing.assert_allclose(decoded_BCV, full_BCV, atol=1e-5)


def test_attention_with_a_cache_is_as_precise_as_without_one():
    # Large scores that differ by little, as trained models have them: bfloat16 would round them.
    q_BTNH, k_BTKH, v_BTKH = (
        jax.random.normal(jax.random.key(heads), (8, 6, heads, 8), jnp.bfloat16).at[..., 0].add(x)
        for heads, x in [(4, 16.0), (2, 16.0), (2, 0.0)]
    )
    expected_BTNH, _ = attend_causally(q_BTNH, k_BTKH, v_BTKH, None)
    k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
    prompt = KeyValues(k_BKTH[:, :, :2], v_BKTH[:, :, :2])
    own = KeyValues(k_BKTH[:, :, 2:].at[:, :, 3].set(0), v_BKTH[:, :, 2:].at[:, :, 3].set(0))
    start_B = jnp.zeros(8, jnp.int32)
    attend = make_attend_decoding(jnp.ones((8, 2), bool), start_B, jnp.int32(3), group_size=1)
    last = q_BTNH[:, 5:], k_BTKH[:, 5:], v_BTKH[:, 5:]
    found_B1NH, _ = attend(*last, DecodeCache(prompt, own))
    difference = found_B1NH[:, 0].astype(jnp.float32) - expected_BTNH[:, 5].astype(jnp.float32)
    assert jnp.abs(difference).max() < 0.03


def test_bfloat16_stays_near_float32_with_and_without_a_cache():
    params = params_of(QWEN3)
    half = dataclasses.replace(QWEN3, dtype="bfloat16")
    decoded_BCV, full_BCV = decode_ragged(half, params)
    _, exact_BCV = decode_ragged(QWEN3, params)
    assert full_BCV.dtype == np.float32
    size = np.abs(exact_BCV).max()
    for logits in (decoded_BCV, full_BCV):
        assert 0 < np.abs(logits - exact_BCV).max() < 0.05 * size


def test_parameters_are_float32_whatever_the_activations_are():
    half = dataclasses.replace(LLAMA, dtype="bfloat16")
    shapes = jax.eval_shape(lambda key: models.init_params(half, key), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    assert set(shapes) == {"embedding", "layer_0", "layer_1", "final_norm"}
    hidden, _ = jax.eval_shape(lambda p: models.hidden_states(half, p, jnp.asarray(TOKENS)), shapes)
    assert hidden.dtype == jnp.bfloat16


@pytest.mark.parametrize("changed", [1, 4, 8])
def test_a_later_token_changes_nothing_before_it(changed):
    params = params_of(QWEN3)
    other = TOKENS.copy()
    other[:, changed] = (other[:, changed] + 1) % 7
    before, after = (full_logits(QWEN3, params, tokens) for tokens in (TOKENS, other))
    np.testing.assert_array_equal(after[:, :changed], before[:, :changed])
    assert (after[:, changed] != before[:, changed]).any(axis=-1).all()


def test_only_the_distance_of_positions_matters():
    params = params_of(LLAMA)
    position_BT = jnp.broadcast_to(jnp.arange(9), TOKENS.shape)
    hidden_states = jax.jit(models.hidden_states, static_argnums=(0, 3))
    attend = attend_causally
    hidden = hidden_states(LLAMA, params, jnp.asarray(TOKENS), attend, None, position_BT)[0]
    moved = hidden_states(LLAMA, params, jnp.asarray(TOKENS), attend, None, position_BT + 100)[0]
    spread = hidden_states(LLAMA, params, jnp.asarray(TOKENS), attend, None, position_BT * 3)[0]
    np.testing.assert_allclose(moved, hidden, atol=1e-4)
    assert np.abs(spread - hidden).max() > 0.01


def test_rotation_keeps_lengths_and_leaves_position_zero_alone():
    x_BTNH = jax.random.normal(jax.random.key(0), (1, 2, 3, 8))
    turned_BTNH = rotate(x_BTNH, rotation(jnp.array([[0, 1000]]), x_BTNH.shape[-1], 10_000.0))
    np.testing.assert_array_equal(turned_BTNH[:, 0], x_BTNH[:, 0])
    assert np.abs(turned_BTNH[:, 1] - x_BTNH[:, 1]).max() > 0.1
    np.testing.assert_allclose(
        jnp.linalg.norm(turned_BTNH, axis=-1), jnp.linalg.norm(x_BTNH, axis=-1), rtol=1e-5
    )


HIDDEN = jax.random.normal(jax.random.key(0), (3, 6, 5))
HEAD = jax.random.normal(jax.random.key(1), (11, 5))
TARGETS = jax.random.randint(jax.random.key(2), (3, 6), 0, 11)
COTANGENT = jax.random.normal(jax.random.key(3), (3, 6))


def naive_logp(hidden_BTD, head_VD, tokens_BT, temperature):
    """`token_logp` by way of the full logits."""
    logp_BTV = jax.nn.log_softmax(hidden_BTD[:, :-1] @ head_VD.T / temperature)
    logp_BT = jnp.take_along_axis(logp_BTV, tokens_BT[:, 1:, None], axis=2)[:, :, 0]
    entropy_BT = -(jnp.exp(logp_BTV) * logp_BTV).sum(axis=2)
    return jnp.pad(logp_BT, ((0, 0), (1, 0))), jnp.pad(entropy_BT, ((0, 0), (1, 0)))


@pytest.mark.parametrize(("chunk", "temperature"), [(1, 1.0), (4, 0.7), (5, 0.7), (1024, 1.0)])
def test_token_log_probs_are_those_of_the_full_logits_with_their_gradients(chunk, temperature):
    def outcome(function, *chunk):
        def total(hidden_BTD, head_VD):
            logp_BT, entropy_BT = function(hidden_BTD, head_VD, TARGETS, temperature, *chunk)
            return (logp_BT * COTANGENT).sum(), (logp_BT, entropy_BT)

        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(HIDDEN, HEAD)

    assert 15 % 4, "one of the chunks must not divide the 15 scored tokens"
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6),
        outcome(token_logp, chunk),
        outcome(naive_logp),
    )


def test_the_first_column_is_not_scored():
    logp_BT, entropy_BT = token_logp(HIDDEN, HEAD, TARGETS)
    assert (logp_BT[:, 0] == 0).all() and (entropy_BT[:, 0] == 0).all()
    assert (logp_BT[:, 1:] < 0).all() and (entropy_BT[:, 1:] > 0).all()
    only_first, _ = token_logp(HIDDEN[:, :1], HEAD, TARGETS[:, :1])
    assert only_first.tolist() == [[0.0], [0.0], [0.0]]


def test_entropy_carries_no_gradient():
    gradient = jax.grad(
        lambda hidden, head: token_logp(hidden, head, TARGETS)[1].sum(), argnums=(0, 1)
    )(HIDDEN, HEAD)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_gradients_have_the_types_of_what_they_are_gradients_of():
    def total(hidden_BTD, head_VD):
        return token_logp(hidden_BTD, head_VD, TARGETS, 1.0, 4)[0].sum()

    gradients = jax.eval_shape(jax.grad(total, argnums=(0, 1)), HIDDEN.astype(jnp.bfloat16), HEAD)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]


def largest_array(function, *arguments) -> int:
    """Elements of the largest array in the compiled program."""
    program = jax.jit(function).lower(*arguments).compile().as_text()
    assert program is not None
    shapes = re.findall(r"\b(?:f32|bf16|f64|s32|pred)\[([\d,]+)\]", program)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


def test_the_full_logits_never_exist_not_even_in_the_backward_pass():
    num_rows, num_positions, width, vocab_size, chunk = 4, 17, 3, 50, 8
    hidden_BTD = jnp.ones((num_rows, num_positions, width))
    head_VD = jnp.ones((vocab_size, width))
    tokens_BT = jnp.zeros((num_rows, num_positions), jnp.int32)

    def gradient(logp):
        return jax.value_and_grad(lambda h, w: logp(h, w).sum(), argnums=(0, 1))

    full = num_rows * (num_positions - 1) * vocab_size
    chunked = gradient(lambda h, w: token_logp(h, w, tokens_BT, 1.0, chunk)[0])
    naive = gradient(lambda h, w: naive_logp(h, w, tokens_BT, 1.0)[0])
    assert largest_array(naive, hidden_BTD, head_VD) >= full
    assert largest_array(chunked, hidden_BTD, head_VD) == chunk * vocab_size


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocab_size": 0}, "model.vocab_size=0: must be positive"),
        ({"num_layers": 0}, "model.num_layers=0: must be positive"),
        ({"width": -1}, "model.width=-1: must be positive"),
        ({"num_heads": 0}, "model.num_heads=0: must be positive"),
        ({"num_kv_heads": 0}, "model.num_kv_heads=0: must be positive"),
        ({"num_kv_heads": 3}, "model.num_kv_heads=3: must divide model.num_heads=4"),
        ({"head_width": 3}, "model.head_width=3: must be even"),
        ({"head_width": 0}, "model.head_width=0: must be positive"),
        ({"mlp_width": 0}, "model.mlp_width=0: must be positive"),
        ({"rope_theta": 0.0}, "model.rope_theta=0.0: must be positive"),
        ({"norm_epsilon": 0.0}, "model.norm_epsilon=0.0: must be positive"),
        ({"dtype": "float16"}, "model.dtype='float16': must be 'float32' or 'bfloat16'"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(wrong, message):
    # Past the tests' type checks, which refuse an unknown dtype before the class could.
    with pytest.raises(Exception) as error:
        dataclasses.replace(LLAMA, **wrong)
    if not isinstance(error.value, ValueError):
        unchecked = object.__new__(ModelConfig)
        unchecked.__dict__.update(dataclasses.asdict(LLAMA) | wrong)
        with pytest.raises(ValueError) as error:
            unchecked.__post_init__()
    assert message in str(error.value)


def test_remat_keeps_what_its_name_says_and_changes_no_gradient(capsys):
    shape = dataclasses.replace(LLAMA, num_layers=6)
    params = params_of(shape)
    tokens_BT = jnp.asarray(TOKENS)
    gradients, kept = [], []
    for remat in ("none", "full", "dots"):
        config = dataclasses.replace(shape, remat=remat)

        def loss(params, config=config):
            return jnp.square(models.hidden_states(config, params, tokens_BT)[0]).sum()

        gradients.append(jax.jit(jax.grad(loss))(params))
        jax.ad_checkpoint.print_saved_residuals(loss, params)
        lines = capsys.readouterr().out.splitlines()
        kept.append([line for line in lines if "from the argument" not in line])
    for gradient in gradients[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            gradient,
            gradients[0],
        )
    assert len(kept[0]) > 20 * shape.num_layers
    assert len(kept[1]) < 4 * shape.num_layers
    # The products with seven matrices, and the inputs.
    assert 7 * shape.num_layers <= len(kept[2]) < 11 * shape.num_layers
