"""An engine with prompts and keys, and what tests of sampling compare with."""

import numpy as np
import scipy.stats

from asympo_jax import sampling
from asympo_jax.sampling import EngineConfig

ENGINE = EngineConfig(
    num_prompts=3,
    group_size=4,
    max_prompt_tokens=5,
    max_response_tokens=6,
    segment=3,
    stop_ids=(5, 3),
    record_logp=True,
)
PROMPTS = [[3, 2], [5, 6, 0, 2, 3], [1]]
KEYS = [(0, 7), (2**32 - 1, 8), (5, 5)]


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def assert_drawn_from(counts: np.ndarray, prob: np.ndarray):
    """Chi-square: a right sampler fails one seed in a thousand, and the seeds are fixed."""
    assert (counts[prob == 0] == 0).all()
    likely = prob > 0
    if likely.sum() > 1:
        expected = prob[likely] * counts.sum()
        assert scipy.stats.chisquare(counts[likely], expected).pvalue > 1e-3


def assert_same(found: sampling.Responses, expected: sampling.Responses, prompts=slice(None)):
    """The same tokens, lengths and reasons, and the same log-probs to rounding."""
    for field in ("token_PGT", "length_PG", "stop_PG"):
        np.testing.assert_array_equal(
            getattr(found, field)[prompts], getattr(expected, field)[prompts]
        )
    assert found.logp_PGT is not None and expected.logp_PGT is not None
    np.testing.assert_allclose(found.logp_PGT[prompts], expected.logp_PGT[prompts], atol=1e-5)
