"""GSM8K with a small decoder from scratch: the whole loop on real problems, on a laptop.

Not a way to a good model: a decoder of 0.7 million parameters, warmed up for a minute on the
human solutions, answers almost no problem, and the reward stays near 0. It shows that real data,
tokenizer and grader run through the same loop as the arithmetic task.

    python -m asympo_jax.tasks.gsm8k --raw=RAW --data_dir=data/gsm8k
    python -m asympo_jax.train --config=configs/gsm8k_tiny.py --workdir=runs/gsm8k_tiny

RAW holds `train.jsonl` and `test.jsonl` of https://github.com/openai/grade-school-math.

Hardware: 2 CPU cores. Time and result: see the table of the README.
"""

from asympo_jax.config import default_config


def get_config():
    config = default_config()
    config.num_updates = 20
    config.prompts_per_update = 8
    config.group_size = 4
    config.lag = 2
    config.task.name = "gsm8k"
    config.task.data_dir = "data/gsm8k"
    config.task.max_prompt_tokens = 160
    config.sampler.max_prompt_tokens = 160
    config.sampler.max_response_tokens = 192
    config.sampler.segment = 64
    config.model.num_layers = 2
    config.model.width = 128
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.head_width = 32
    config.model.mlp_width = 384
    config.model.qk_norm = True
    config.warmup.num_steps = 120
    config.warmup.batch_size = 8
    config.warmup.learning_rate = 2e-3
    config.learner.micro_batch = 4
    config.optimizer.learning_rate = 1e-4
    config.eval.num_prompts = 64
    config.eval.every_updates = 10
    config.checkpoint.every_updates = 10
    config.log.rollouts_every_updates = 5
    return config
