r"""Left-to-right arithmetic modulo 10 on a laptop: stale responses, with and without the cure.

`1+7+6+1=` is answered by `1+7=8;8+6=4;4+1=5;#5`. A decoder of 108,000 parameters is warmed up on
written-out steps, 18 % of which end in a random digit; sampled, it then answers half of the
problems. Asynchronous RL follows: samplers draw every response with parameters that are 16 updates
old. ASymPO (arXiv:2606.03070) learns; the naive objective (`reinforce`) collapses.

    python -m asympo_jax.train --config=configs/arithmetic.py --workdir=runs/asympo
    python -m asympo_jax.train --config=configs/arithmetic.py --workdir=runs/reinforce \
        --config.objective.name=reinforce

Hardware: 2 CPU cores, one for the learner and one for the sampler.
Time: 170 s for the first 200 updates and 96 s with programs that were compiled before, both with
about 40 s of warm-up, which is done once.
Expected: accuracy of sampled answers on held-out problems 0.5 before; 0.9 with `asympo`, 0.2 or
less with `reinforce`. Last bits of sums, and with them these numbers, depend on the machine.
"""

from asympo_jax.config import default_config


def get_config():
    config = default_config()
    config.seed = 0
    config.num_updates = 200
    config.prompts_per_update = 32
    config.group_size = 8
    config.lag = 16
    config.order = "ticket"
    config.objective.name = "asympo"
    config.task.name = "arithmetic"
    config.optimizer.learning_rate = 3e-4
    config.sampler.temperature = 1.0
    config.sampler.max_prompt_tokens = 8
    config.sampler.max_response_tokens = 24
    config.warmup.num_steps = 390
    config.warmup.learning_rate = 3e-3
    return config
