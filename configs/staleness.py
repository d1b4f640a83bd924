"""The staleness laboratory: objectives × lags × seeds on the task of configs/arithmetic.py.

`--config=configs/staleness.py:STUDY` takes one of these studies; without one, `objectives`.

    learning_rate  each objective at lags 0 and 16 with three learning rates, on a seed of its own
    objectives     each objective at its best of those at lag 16, lags 0 to 256, three seeds
    on_policy      lag 0, where each objective has its best of those at lag 0
    long           some of them for 400 updates, in which a lag of 256 is really reached
    periodic       samplers refreshed every 1, 16 and 64 updates instead of a fixed lag
    alpha          SPO's scale of negative responses
    floor          ASymPO's floor of the NLL
    clip           the clip of the gradient's norm: none, always active, as in the other studies
    asympo_rate    ASymPO over a wide range of learning rates

Everything runs in one process a run (`runtime.name=sync`), in ticket order: update n trains on
samples of version max(0, n − lag), no other, and the results are the same bits on every call on one
kind of machine. So with 100 updates a lag of 64 is reached after 64 of them, and at 256 all samples
are those of the initial parameters. All seeds start from one warm-up: they vary the prompts and the
draws, as runs from one base model do. All runs are evaluated on the same prompts.

`python -m asympo_jax.sweep --config=configs/staleness.py --workdir=DIR` makes the 195 runs of
`objectives`; on two cores of an x86-64 CPU one took 38 s, two at a time, and all of them 84 minutes
beside other work. docs/staleness.md has what came out; `long` has not been run.
"""

import ml_collections

from asympo_jax.defaults import default_config
from asympo_jax.sweep_config import make_sweep

OBJECTIVES = (
    "reinforce", "gpg", "spo", "asympo", "grpo", "dapo", "aspo", "cispo", "tis", "gspo", "m2po",
    "topr", "decoupled_ppo",
)  # fmt: skip
LAGS = (0, 4, 16, 64, 256)
SEEDS = (0, 1, 2)
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
# What the study `learning_rate` found best at lags 16 and 0; see results/learning_rate.
BEST_RATE = {name: 3e-4 for name in OBJECTIVES} | {"reinforce": 1e-4, "gpg": 1e-4, "topr": 1e-3}
BEST_RATE_ON_POLICY = {name: 3e-4 for name in OBJECTIVES} | {"asympo": 1e-3, "gspo": 1e-3}


def get_config(study: str = "objectives") -> ml_collections.ConfigDict:
    """The sweep of a study."""
    axes = {
        "learning_rate": {
            "objective.name": OBJECTIVES,
            "lag": (0, 16),
            "optimizer.learning_rate": LEARNING_RATES,
            "seed": (100,),
        },
        "on_policy": {"objective.name": OBJECTIVES, "lag": (0,), "seed": SEEDS},
        "objectives": {"objective.name": OBJECTIVES, "lag": LAGS, "seed": SEEDS},
        "long": {
            "objective.name": ("spo", "asympo", "dapo", "topr", "decoupled_ppo"),
            "lag": (256,),
            "num_updates": (400,),
            "seed": SEEDS,
        },
        "periodic": {
            "objective.name": ("reinforce", "asympo", "grpo"),
            "lag": (0,),
            "refresh_every_updates": (1, 16, 64),
            "seed": SEEDS,
        },
        "clip": {
            "objective.name": ("reinforce", "spo", "asympo", "grpo"),
            "lag": (16,),
            "optimizer.clip_norm": (0.0, 0.1, 1.0),
            "seed": SEEDS,
        },
        "alpha": {
            "objective.name": ("spo",),
            "lag": (16,),
            "objective.alpha": (0.0, 0.1, 0.25, 0.5, 1.0),
            "seed": SEEDS,
        },
        "floor": {
            "objective.name": ("asympo",),
            "lag": (16,),
            "objective.floor": (1e-5, 1e-3, 1e-2, 1e-1, 1.0),
            "seed": SEEDS,
        },
        "asympo_rate": {
            "objective.name": ("asympo",),
            "lag": (16,),
            "optimizer.learning_rate": (1e-4, 3e-4, 1e-3, 3e-3),
            "seed": SEEDS,
        },
    }
    if study not in axes:
        raise ValueError(f"configs/staleness.py:{study}: must be one of {sorted(axes)}")
    rate = "optimizer.learning_rate"
    best = BEST_RATE_ON_POLICY if study == "on_policy" else BEST_RATE
    settings = {} if rate in axes[study] else {name: {rate: best[name]} for name in best}
    return make_sweep(_base(), axes[study], settings)


def _base() -> ml_collections.ConfigDict:
    """The arithmetic task, 100 updates, evaluated every 10."""
    config = default_config()
    config.runtime.name = "sync"
    config.num_updates = 100
    config.warmup.seed = 0
    config.checkpoint.every_updates = 0
    config.log.rollouts_every_updates = 0
    config.log.tensorboard = False
    return config
