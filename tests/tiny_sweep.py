"""A sweep of runs that take seconds, as a config file that the tests hand to the command."""

import ml_collections
from tiny_runs import TINY

from asympo_jax.defaults import default_config
from asympo_jax.sweep_config import make_sweep


def get_config() -> ml_collections.ConfigDict:
    base = default_config()
    for field, value in {**TINY, "runtime.name": "sync", "num_updates": 2}.items():
        base.update_from_flattened_dict({field: value})
    axes = {"objective.name": ("asympo", "spo"), "lag": (1,), "seed": (3,)}
    return make_sweep(base, axes, {"spo": {"optimizer.learning_rate": 1e-3}})
