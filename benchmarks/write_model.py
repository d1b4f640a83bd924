"""Writes a workload's random decoder as a Hugging Face directory, for every side to load.

python benchmarks/write_model.py WORKLOAD_AS_JSON DIRECTORY
"""

import sys

import jax
from workload import Workload

from asympo_jax import models


def decoder(work: Workload) -> models.ModelConfig:
    """The shape of a workload's decoder."""
    return models.ModelConfig(
        vocab_size=work.vocab_size,
        num_layers=work.num_layers,
        width=work.width,
        num_heads=work.num_heads,
        num_kv_heads=work.num_kv_heads,
        head_width=work.head_width,
        mlp_width=work.mlp_width,
        rope_theta=work.rope_theta,
        norm_epsilon=work.norm_epsilon,
        qk_norm=True,
    )


def main() -> None:
    """Draws the parameters and writes them."""
    config = decoder(Workload.from_json(sys.argv[1]))
    params = models.init_params(config, jax.random.key(0))
    models.save(models.Model(config, params), sys.argv[2])


if __name__ == "__main__":
    main()
