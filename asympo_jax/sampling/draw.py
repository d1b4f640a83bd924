"""Drawing tokens: temperature, top-k, top-p, min-p, by inverting the distribution function.

One uniform number a row and a cumulative sum, instead of Gumbel noise over the whole vocabulary.
The draw of a response depends on its own key and position and on nothing else.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DrawParams:
    """How to draw; arrays, so that other values need no recompilation.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens with at least this mass; 1 keeps all.
        min_p: keep tokens of at least this share of the largest probability; 0 keeps all.
    """

    temperature: Array | np.float32
    top_k: Array | np.int32
    top_p: Array | np.float32
    min_p: Array | np.float32


def draw_params(
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> DrawParams:
    """`DrawParams` from plain numbers; host values, so that making them touches no device."""
    return DrawParams(
        temperature=np.float32(temperature),
        top_k=np.int32(top_k),
        top_p=np.float32(top_p),
        min_p=np.float32(min_p),
    )


def uniforms(key_data_B2: Array, step: Int[Array, ""]) -> Float[Array, " B"]:
    """One number in (0, 1) a row, from the row's key and the position of the token.

    They are the centres of 2²³ equal cells: an exact 0 would draw the first token that has any
    mass, however small.
    """

    def one(key_data: Array) -> Array:
        key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, step)) + 2.0**-24

    return jax.vmap(one)(key_data_B2)


def draw(
    logits_BV: Float[Array, "B V"], uniform_B: Float[Array, " B"], params: DrawParams
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """A token a row and its log-probability.

    Args:
        logits_BV: scores of the tokens.
        uniform_B: where to cut each row's distribution function, in (0, 1).
        params: temperature and cuts.

    Returns:
        Tokens, and `log softmax(logits / temperature)` of them *before* top-k, top-p and min-p cut
        the distribution: what a learner that knows the temperature alone can compute again. For
        greedy draws it is at temperature 1.
    """
    greedy = params.temperature == 0
    temperature = jnp.where(greedy, 1.0, params.temperature)
    logp_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32) / temperature, axis=1)
    cuts = (params.top_k > 0) | (params.top_p < 1) | (params.min_p > 0)
    kept_BV = jax.lax.cond(cuts, _cut, lambda logp_BV, _: jnp.exp(logp_BV), logp_BV, params)
    # A parallel sum of numbers ≥ 0 may fall, or rise across a 0, by rounding: only tokens of some
    # mass may be drawn, and the largest of their sums is the total.
    mass_BV = jnp.where(kept_BV > 0, jnp.cumsum(kept_BV, axis=1), 0.0)
    target_B1 = uniform_B[:, None] * mass_BV.max(axis=1, keepdims=True)
    drawn_B = jnp.argmax(mass_BV > target_B1, axis=1)
    token_B = jnp.where(greedy, jnp.argmax(logits_BV, axis=1), drawn_B).astype(jnp.int32)
    return token_B, jnp.take_along_axis(logp_BV, token_B[:, None], axis=1)[:, 0]


def _cut(logp_BV: Array, params: DrawParams) -> Array:
    """Probabilities with everything that top-k, top-p or min-p excludes set to 0."""
    vocab_size = logp_BV.shape[1]
    prob_BV = jnp.exp(logp_BV)
    order_BV = jnp.argsort(-logp_BV, axis=1, stable=True)
    sorted_BV = jnp.take_along_axis(prob_BV, order_BV, axis=1)
    rank_V = jnp.arange(vocab_size)[None]
    top_k = jnp.where(params.top_k > 0, params.top_k, vocab_size)
    # The mass *before* a token decides, so the token that crosses top_p is kept.
    before_BV = jnp.cumsum(sorted_BV, axis=1) - sorted_BV
    keep_BV = (rank_V < top_k) & (before_BV < params.top_p)
    keep_BV &= sorted_BV >= params.min_p * sorted_BV[:, :1]
    keep_BV |= rank_V == 0  # a top_p too small for float32 is 0
    inverse_BV = jnp.argsort(order_BV, axis=1)
    return jnp.where(jnp.take_along_axis(keep_BV, inverse_BV, axis=1), prob_BV, 0.0)
