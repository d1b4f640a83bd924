"""A small batch, a small decoder, and what one update makes of it."""

import dataclasses
from typing import Any

import jax
import numpy as np
from model_cases import LLAMA, params_of

from asympo_jax.learning import StepConfig
from asympo_jax.types import Batch

STEP = StepConfig(
    group_size=4, temperature=0.8, center="mean", scale="std", micro_batch=0, logp_chunk=5
)
ONE_LAYER = dataclasses.replace(LLAMA, num_layers=1)


def example_batch() -> Batch:
    """Two groups of four ragged responses with differing rewards, and odd behaviour log-probs."""
    rng = np.random.default_rng(3)
    start_B = np.repeat([1, 3], 4)
    end_B = start_B + rng.integers(1, 5, 8)
    position_T = np.arange(8)[None]
    drawn_BT = (position_T >= start_B[:, None]) & (position_T < end_B[:, None])
    tokens_BT = np.where(position_T < end_B[:, None], rng.integers(0, 7, (8, 8)), 0)
    of_prompt_BT = position_T < start_B[:, None]
    tokens_BT = np.where(of_prompt_BT, np.repeat(tokens_BT[::4], 4, axis=0), tokens_BT)
    return Batch(
        tokens_BT=tokens_BT.astype(np.int32),
        drawn_BT=drawn_BT,
        reward_PG=rng.normal(size=(2, 4)).astype(np.float32),
        behaviour_logp_BT=np.where(drawn_BT, rng.uniform(-4, -1, (8, 8)), 0).astype(np.float32),
    )


def copied_params(seed: int = 0, model: Any = LLAMA) -> Any:
    """Parameters that a step may have for itself."""
    return jax.tree.map(lambda x: np.array(x), params_of(model, seed))


def assert_close(found: Any, expected: Any, atol: float = 1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol), found, expected
    )
