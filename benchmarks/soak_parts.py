"""The parts of a soaked run that fail now and then, named by import path.

What fails is a pure function of what is graded or trained on, so that a run that does an update
again fails at it again.
"""

import os
import signal
import time
import zlib

import jax
import jax.numpy as jnp

from asympo_jax.objectives import Objective

# Shares of responses in parts of 100,000. Only a few can hang: each takes the whole deadline.
HANGS, DIES, RAISES, NAN = 10, 30, 60, 60
_PARTS = 100_000
# Responses so short are sampled many times over; one that hangs again and again within a lease
# would make the lease overdue, whoever takes it.
_SHORT = 4
_NAN_OF = 97  # one in so many micro-batches


def reward(prompt, text: str) -> float:
    """A reward from 0 to 1 without any sense; it raises, is NaN, hangs or kills its process."""
    drawn = zlib.crc32(f"{prompt.text}\0{text}".encode())
    part = drawn % _PARTS if len(text) >= _SHORT else _PARTS
    if part < HANGS:
        time.sleep(3600)
    elif part < HANGS + DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    elif part < HANGS + DIES + RAISES:
        raise ArithmeticError("the grader fell over")
    elif part < HANGS + DIES + RAISES + NAN:
        return float("nan")
    return (drawn >> 8) / 2**24


def _nan_now_and_then(batch):
    """1, but NaN for a hundredth of the micro-batches, by a hash of their advantages."""
    bits_B = jax.lax.bitcast_convert_type(batch.advantage_B.astype(jnp.float32), jnp.uint32)
    places_B = jnp.arange(1, len(bits_B) + 1, dtype=jnp.uint32) * jnp.uint32(2_654_435_761)
    mixed = (bits_B * (places_B | jnp.uint32(1))).sum(dtype=jnp.uint32)
    mixed = (mixed ^ (mixed >> jnp.uint32(15))) * jnp.uint32(2_246_822_519)
    # A batch without any advantage has 0 here, so that is not the one.
    drawn = (mixed ^ (mixed >> jnp.uint32(13))) % jnp.uint32(_NAN_OF)
    weight = jnp.where(drawn == jnp.uint32(1), jnp.nan, 1.0)
    return jnp.broadcast_to(weight, batch.advantage_B.shape)[:, None]


objective = Objective("now_and_then", _nan_now_and_then)
