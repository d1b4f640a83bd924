r"""ASymPO on MATH with Llama-3.2-3B-Instruct, samples up to 8 updates old.

    python -m asympo_jax.train --config=configs/math_llama3p2_3b.py --workdir=DIR \
        --config.model.hf_dir=HF_DIR

HF_DIR is the Hugging Face directory of Llama-3.2-3B-Instruct, downloaded beforehand:
https://huggingface.co/meta-llama/Llama-3.2-3B-Instruct
`data/math/train.jsonl` and `data/math/math500.jsonl` are any files of problems and answers, a JSON
object a line with "problem" and "answer", such as those of MATH and MATH-500.

Hyper-parameters: those of the paper (arXiv:2606.03070), which has this model and this kind of
problems, were not to be had; these are customary ones for models of this size, not tuned.

Hardware: not run at this size yet. By arithmetic, 3.21 billion parameters come to 51 GB for the
learner: float32 parameters, a gradient and two moments of Adam. One response at a time, with
`learner.remat`, adds the activations of one block, of which the attention scores of 3072 positions
take 0.9 GB in float32, and the input of each block. A sampler and the evaluator hold 6.4 GB of
parameters each, and keys and values of 64 rows, up to 23 GB. Meant: the learner on GPU 0, sampler
and evaluator on GPU 1 (`visible_devices`), of 80 GB each or more.

A few updates on two CPU cores, with a random model of the same architecture:

    python -m asympo_jax.tiny --family=llama3 --out=runs/tiny/llama3
    python -m asympo_jax.train --config=configs/math_llama3p2_3b.py:tiny --workdir=DIR
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
    config.lag = 8
    config.objective.name = "asympo"
    config.task.name = "math"
    config.task.train_data = "data/math/train.jsonl"
    config.task.eval_data = "data/math/math500.jsonl"
    config.task.max_prompt_tokens = 1024
    config.eval.num_prompts = 500
    config.eval.samples_per_prompt = 4
    config.task.tokenizer_dir = config.model.get_ref("hf_dir")
    config.model.preset = "llama3p2_3b"
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
    config.sampler.max_response_tokens = 2048
    config.sampler.segment = 512
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_updates = 10
    config.optimizer.clip_norm = 1.0
    config.eval.every_updates = 20
    config.eval.max_rows = 64
    config.checkpoint.every_updates = 20
    if variant == "tiny":
        shrink(config, "llama3")
    return config
