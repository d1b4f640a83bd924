"""Drawing tokens: temperature, top-k, top-p, min-p, by inverting the distribution function.

One uniform number a row and sums of blocks of tokens, instead of Gumbel noise over the whole
vocabulary. The draw of a response depends on its own key and position and on nothing else.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_BLOCK = 128  # tokens of which one sum is kept


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


def uniforms(key_data_B2: Array, index_B: Int[Array, " B"]) -> Float[Array, " B"]:
    """One number in (0, 1) a row, from the row's key and the index of the token that it draws.

    They are the centres of 2²³ equal cells: an exact 0 would draw the first token that has any
    mass, however small.
    """

    def one(key_data: Array, index: Array) -> Array:
        key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, index)) + 2.0**-24

    return jax.vmap(one)(key_data_B2, index_B)


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
    cuts = (params.top_k > 0) | (params.top_p < 1) | (params.min_p > 0)
    scale = 1.0 / jnp.where(greedy, 1.0, params.temperature)
    logits_BV = logits_BV.astype(jnp.float32)
    highest_B1 = logits_BV.max(axis=1, keepdims=True) * scale

    def scores() -> Array:
        """Of all tokens; computed where they are used, as they would be written and read again."""
        return logits_BV * scale - highest_B1

    def draw_cut() -> Array:
        score_BV = scores()
        return _inverted(jnp.where(_kept(score_BV, params), score_BV, -jnp.inf), uniform_B)

    # One of three is run: sorting the vocabulary takes longer than all else together.
    branches = (
        lambda: _inverted(scores(), uniform_B),
        draw_cut,
        lambda: jnp.argmax(scores(), axis=1),
    )
    branch = jnp.where(greedy, 2, cuts.astype(jnp.int32))
    token_B = jax.lax.switch(branch, branches).astype(jnp.int32)
    chosen_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1) * scale - highest_B1
    return token_B, chosen_B1[:, 0] - jnp.log(jnp.exp(scores()).sum(axis=1))


def _inverted(score_BV: Array, uniform_B: Array) -> Array:
    """The first token of each row at which the sum of exp(score) passes its share of the total.

    In two levels, blocks and tokens of the block, so that no sum runs over the whole vocabulary.
    Sums that round differently on the two levels never draw a token without mass.
    """
    num_rows, vocab_size = score_BV.shape
    block = min(_BLOCK, vocab_size)
    padding = -vocab_size % block
    padded_BV = jnp.pad(score_BV, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    score_BNM = padded_BV.reshape(num_rows, -1, block)
    mass_BN = jnp.exp(score_BNM).sum(axis=2)
    # Sums taken in parallel may fall, or rise across a 0, by rounding: only what has some mass
    # may be drawn, and the largest sum is the total.
    below_BN = jnp.where(mass_BN > 0, jnp.cumsum(mass_BN, axis=1), 0.0)
    target_B1 = uniform_B[:, None] * below_BN.max(axis=1, keepdims=True)
    block_B1 = jnp.argmax(below_BN > target_B1, axis=1, keepdims=True)
    before_B1 = jnp.take_along_axis(below_BN - mass_BN, block_B1, axis=1)
    mass_BM = jnp.exp(jnp.take_along_axis(score_BNM, block_B1[:, :, None], axis=1)[:, 0])
    reached_BM = (before_B1 + jnp.cumsum(mass_BM, axis=1) > target_B1) & (mass_BM > 0)
    last_B = block - 1 - jnp.argmax(mass_BM[:, ::-1] > 0, axis=1)
    within_B = jnp.where(reached_BM.any(axis=1), jnp.argmax(reached_BM, axis=1), last_B)
    return block_B1[:, 0] * block + within_B


def _kept(score_BV: Array, params: DrawParams) -> Array:
    """Which tokens top-k, top-p and min-p all keep: the first few of each row, by falling scores.

    Only the scores are sorted, without their tokens, which takes less time to run and to compile:
    the last score that is kept tells which tokens are, and of those that tie with it the first.
    """
    vocab_size = score_BV.shape[1]
    descending_BV = -jnp.sort(-score_BV, axis=1)
    sorted_BV = jax.nn.softmax(descending_BV, axis=1)
    rank_V = jnp.arange(vocab_size)[None]
    top_k = jnp.where(params.top_k > 0, params.top_k, vocab_size)
    # The mass *before* a token decides, so the token that crosses top_p is kept.
    before_BV = jnp.cumsum(sorted_BV, axis=1) - sorted_BV
    keep_BV = (rank_V < top_k) & (before_BV < params.top_p)
    keep_BV &= sorted_BV >= params.min_p * sorted_BV[:, :1]
    keep_BV |= rank_V == 0  # a top_p too small for float32 is 0
    num_kept_B1 = keep_BV.sum(axis=1, keepdims=True)
    last_B1 = jnp.take_along_axis(descending_BV, num_kept_B1 - 1, axis=1)
    above_BV, tie_BV = score_BV > last_B1, score_BV == last_B1
    num_ties_B1 = num_kept_B1 - above_BV.sum(axis=1, keepdims=True)
    return above_BV | (tie_BV & (jnp.cumsum(tie_BV, axis=1) <= num_ties_B1))
