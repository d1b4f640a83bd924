r"""ASPO on MATH with DeepSeek-R1-Distill-Qwen-1.5B (Qwen2), samples up to 4 updates old.

    python -m asympo_jax.train --config=configs/aspo_qwen2_1p5b.py --workdir=DIR \
        --config.model.hf_dir=HF_DIR

HF_DIR is the Hugging Face directory of DeepSeek-R1-Distill-Qwen-1.5B, downloaded beforehand:
https://huggingface.co/deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
`data/math/train.jsonl` and `data/math/math500.jsonl` are any files of problems and answers, a JSON
object a line with "problem" and "answer", such as those of MATH and MATH-500.

Hyper-parameters: learning rate 1e-6 after 10 updates of warm-up, weight decay 0.1, clip of the
gradient 1.0, 64 prompts of 8 responses at temperature 1, ratios from 0.8 to 1.2, cap 3, KL
coefficient 0.001 and the mean over tokens are those of
`scripts/train/run_archer2.0_qwen2.5_1.5b_math.sh` in github.com/zyh1999/ASPO (commit 3b6f753), a
public copy of the code of the paper (arXiv:2510.06062). Different there: a batch of 64 prompts is
worked in mini-batches of 16, three times over; bounds of ratios and the KL term depend on the
entropy of a token; groups without a difference are left out; responses within 16 tokens of the
longest, 1024, are penalised; it is validated at temperature 0.6 and top-p 0.95. Here 64 prompts
are one update, and the longest response is 8192 tokens, since the model writes its thoughts down.

Hardware: not run at this size yet. By arithmetic, 1.78 billion parameters come to 28 GB for the
learner: float32 parameters, a gradient and two moments of Adam. The KL term keeps the initial
parameters as well, 7 GB. One response at a time, with `learner.remat`, adds the activations of one
block, of which the attention scores of 9216 positions take 4.1 GB in float32, and the input of
each block. A sampler and the evaluator hold 3.6 GB of parameters each, and keys and values of 64
rows, up to 17 GB. Meant: the learner on GPU 0, sampler and evaluator on GPU 1
(`visible_devices`), of 80 GB each or more.

A few updates on two CPU cores, with a random model of the same architecture:

    python -m asympo_jax.tiny --family=qwen2 --out=runs/tiny/qwen2
    python -m asympo_jax.train --config=configs/aspo_qwen2_1p5b.py:tiny --workdir=DIR
"""

from asympo_jax.config import default_config
from asympo_jax.tiny_models import shrink


def get_config(variant: str = ""):
    if variant not in ("", "tiny"):
        raise ValueError(f"the variant of this config is {variant!r}: must be 'tiny' or left out")
    config = default_config()
    config.num_updates = 400
    config.prompts_per_update = 64
    config.group_size = 8
    config.lag = 4
    config.objective.name = "aspo"
    config.objective.clip_low = 0.2
    config.objective.clip_high = 0.2
    config.objective.cap = 3.0
    config.objective.kl_coefficient = 1e-3
    config.optimizer.weight_decay = 0.1
    config.task.name = "math"
    config.task.train_data = "data/math/train.jsonl"
    config.task.eval_data = "data/math/math500.jsonl"
    config.task.max_prompt_tokens = 1024
    config.eval.num_prompts = 500
    config.eval.samples_per_prompt = 4
    config.task.tokenizer_dir = config.model.get_ref("hf_dir")
    config.model.preset = "qwen2_1p5b"
    config.model.dtype = "bfloat16"
    config.warmup.num_steps = 0
    config.learner.platform = "cuda"
    config.learner.visible_devices = "0"
    config.learner.micro_batch = 1
    config.learner.remat = "full"
    config.learner.logp_chunk = 2048
    config.sampler.platform = "cuda"
    config.sampler.visible_devices = "1"
    config.sampler.prompts_per_lease = 8
    config.sampler.params_dtype = "bfloat16"
    config.sampler.max_prompt_tokens = 1024
    config.sampler.max_response_tokens = 8192
    config.sampler.segment = 512
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_updates = 10
    config.optimizer.clip_norm = 1.0
    config.eval.every_updates = 20
    config.eval.max_rows = 64
    config.checkpoint.every_updates = 20
    if variant == "tiny":
        shrink(config, "qwen2")
    return config
