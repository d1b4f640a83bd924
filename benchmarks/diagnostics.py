"""What the diagnostics cost: an update with all of them against one that computes none.

    python benchmarks/diagnostics.py
    python benchmarks/diagnostics.py --objective=asympo --repeats=20

Both sides are the same jitted step on the same batch of configs/arithmetic.py's shapes. One hands
out, and brings to the host, all metrics; of the other only what the guard against non-finite
updates needs is used, and the compiler removes the rest. A pair is both sides, in turns of which is
first, each some updates long; the cost is the median of the pairs' ratios less one. `by sign` is
the time of the gradients by sign, which are computed only where `log.gradients_every_updates` asks.
Prints a table and, as its last line, JSON.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import numpy as np

from asympo_jax.config import resolve
from asympo_jax.defaults import default_config
from asympo_jax.experiment import build_parts
from asympo_jax.learning import (
    PackedBatch,
    TrainState,
    init_state,
    make_batch,
    make_optimizer,
    make_sign_gradients,
    make_train_step,
    pack,
)
from asympo_jax.types import Batch, Group, StopReason

OBJECTIVES = ("asympo", "grpo", "m2po", "decoupled_ppo")
GUARD = ("loss", "grad/norm", "params/norm")


def main() -> None:
    """Measures each objective and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objective", help="one objective instead of a choice of four")
    parser.add_argument("--repeats", type=_positive, default=15, help="pairs (15)")
    parser.add_argument(
        "--updates", type=_positive, default=10, help="updates a side of a pair (10)"
    )
    arguments = parser.parse_args()
    names = (arguments.objective,) if arguments.objective else OBJECTIVES
    rows = {name: measure(name, arguments.repeats, arguments.updates) for name in names}
    print(f"{'objective':14}{'cost':>8}{'low … high':>18}{'update':>12}{'by sign':>12}")
    for name, row in rows.items():
        spread = f"{100 * row['cost_low']:.1f} … {100 * row['cost_high']:.1f} %"
        print(
            f"{name:14}{100 * row['cost']:>6.1f} %{spread:>18}"
            f"{1e3 * row['update_s']:>9.1f} ms{row['by_sign_updates']:>4.1f} updates"
        )
    print(json.dumps({"benchmark": "diagnostics", "objectives": rows, "machine": _machine()}))


def measure(objective: str, repeats: int, updates: int) -> dict[str, float]:
    """The cost for one objective.

    Returns:
        `cost`, `cost_low`, `cost_high`: median and quartiles of the pairs' ratios, less one;
        `update_s`: median seconds of an update with diagnostics; `by_sign_updates`: the gradients
        by sign, in such updates.
    """
    settings = default_config()
    settings.objective.name = objective
    config = resolve(settings)
    parts = build_parts(config)
    optimizer = make_optimizer(config.optimizer)
    step = make_train_step(parts.model, config.objective, optimizer, config.step)
    by_sign = make_sign_gradients(parts.model, config.objective, config.step)
    batch = pack(config.step.packing, example_batch(config, parts))

    def guarded_step(state: Any, batch: PackedBatch) -> tuple[Any, dict[str, Any]]:
        state, metrics = step.on_packed(state, batch)
        return state, {name: metrics[name] for name in GUARD}

    def new_state() -> TrainState:
        key = jax.random.key(config.init_seed)
        return init_state(parts.model, optimizer, key, config.objective.needs)

    bare = jax.jit(guarded_step, donate_argnums=0)
    sides = {
        "full": _Side(step.on_packed, new_state(), batch, updates),
        "bare": _Side(bare, new_state(), batch, updates),
        "sign": _Side(
            lambda state, batch: (state, by_sign.on_packed(state, batch)),
            new_state(), batch, updates,
        ),
    }  # fmt: skip
    for side in sides.values():
        side.seconds()  # compilation and warm-up
    ratios, full_s, sign_s = [], [], []
    for repeat in range(repeats):
        order = ("full", "bare") if repeat % 2 else ("bare", "full")
        taken = {name: sides[name].seconds() for name in order}
        ratios.append(taken["full"] / taken["bare"] - 1.0)
        full_s.append(taken["full"])
        sign_s.append(sides["sign"].seconds())
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return {
        "cost": float(middle),
        "cost_low": float(low),
        "cost_high": float(high),
        "update_s": statistics.median(full_s),
        "by_sign_updates": statistics.median(s / f for s, f in zip(sign_s, full_s, strict=True)),
    }


def example_batch(config: Any, parts: Any) -> Batch:
    """A batch of the config's shape: random tokens of ragged length, rewards of 0 and 1."""
    rng = np.random.default_rng(0)
    size, longest = config.group_size, config.sampler.max_response_tokens
    groups = []
    for ticket in range(config.prompts_per_update):
        length_G = rng.integers(longest // 2, longest + 1, size).astype(np.int32)
        drawn_GT = np.arange(longest) < length_G[:, None]
        tokens_GT = rng.integers(0, parts.model.vocab_size, (size, longest))
        group = Group(
            ticket=ticket,
            version=0,
            prompt_S=rng.integers(
                0, parts.model.vocab_size, config.sampler.max_prompt_tokens
            ).astype(np.int32),
            response_GT=np.where(drawn_GT, tokens_GT, 0).astype(np.int32),
            length_G=length_G,
            stop_G=np.full(size, StopReason.LENGTH, np.int8),
            reward_G=rng.integers(0, 2, size).astype(np.float32),
        )
        if "behaviour" in config.objective.needs:
            logp_GT = np.where(drawn_GT, rng.uniform(-3.0, 0.0, (size, longest)), 0.0)
            group = dataclasses.replace(group, behaviour_logp_GT=logp_GT.astype(np.float32))
        groups.append(group)
    return make_batch(groups, size, config.sampler.max_prompt_tokens + longest)


class _Side:
    """One way to make an update, with a state of its own."""

    def __init__(self, step: Callable[..., Any], state: Any, batch: PackedBatch, updates: int):
        self._step, self._state, self._batch, self._updates = step, state, batch, updates

    def seconds(self) -> float:
        """Seconds of one update: mean over some, with the metrics on the host after each."""
        start = time.perf_counter()
        for _ in range(self._updates):
            self._state, metrics = self._step(self._state, self._batch)
            _ = {name: float(value) for name, value in metrics.items()}
        jax.block_until_ready(self._state)
        return (time.perf_counter() - start) / self._updates


def _positive(text: str) -> int:
    """A whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be 1 or more")
    return value


def _machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "optax")},
    }


if __name__ == "__main__":
    main()
