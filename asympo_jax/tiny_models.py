"""Tiny random models with the architecture of real ones, for laptops and tests."""

import dataclasses
import json
import pathlib
import tempfile
from typing import Any

import jax
import ml_collections

from asympo_jax import models, tasks
from asympo_jax.models.hf.saving import writing
from asympo_jax.tokenizers import train_bpe

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEADERS = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}"
    "<|end_header_id|>\n\n{{ message.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Family:
    """What tells the directories of a family from the others'.

    Attributes:
        rope_theta: base of the rotary frequencies.
        special: control tokens; the last one ends a response.
        template: chat template.
        bos: control token that begins a text.
        norm_epsilon: added to the mean square in RMSNorm.
        qk_norm: RMSNorm on queries and keys.
        qkv_bias: biases on queries, keys and values.
        tied_head: the output head is the embedding.
        rope_scaling: how the rotary frequencies are stretched.
    """

    rope_theta: float
    special: tuple[str, ...]
    template: str
    bos: str | None = None
    norm_epsilon: float = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = False
    tied_head: bool = True
    rope_scaling: models.Llama3Scaling | None = None


# As in the published config.json of Qwen3-1.7B, DeepSeek-R1-Distill-Qwen-1.5B and Llama-3.2-3B.
FAMILIES = {
    "qwen3": Family(1e6, ("<|im_start|>", "<|im_end|>"), _CHATML, qk_norm=True),
    "qwen2": Family(1e4, ("<|im_start|>", "<|im_end|>"), _CHATML, qkv_bias=True, tied_head=False),
    "llama3": Family(
        5e5,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        _HEADERS,
        bos="<|begin_of_text|>",
        norm_epsilon=1e-5,
        rope_scaling=models.Llama3Scaling(32.0, 1.0, 4.0, 8192),
    ),
}
_MERGED_IDS = 480
_ROWS = 512  # of the embedding: more than the tokenizer has ids, as in the real ones


def write_tiny(directory: pathlib.Path, family: str, seed: int = 0) -> None:
    """Writes the directory, all of it or nothing.

    Args:
        directory: new or empty.
        family: one of `FAMILIES`.
        seed: of the parameters.

    Raises:
        ValueError: the directory holds something, or cannot be written.
    """
    made = FAMILIES[family]
    config = models.ModelConfig(
        vocab_size=_ROWS,
        num_layers=2,
        width=64,
        num_heads=4,
        num_kv_heads=2,
        head_width=16,
        mlp_width=160,
        rope_theta=made.rope_theta,
        norm_epsilon=made.norm_epsilon,
        qk_norm=made.qk_norm,
        qkv_bias=made.qkv_bias,
        tied_head=made.tied_head,
        rope_scaling=made.rope_scaling,
    )
    tokenizer = _make_tokenizer(made)
    stop_id = tokenizer.token_to_id(made.special[-1])
    params = models.init_params(config, jax.random.key(seed))
    with writing(directory) as partial:
        models.save(models.Model(config, params), partial, stop_ids=[stop_id])
        tokenizer.save(str(partial / "tokenizer.json"))
        _write_json(partial / "tokenizer_config.json", _tokenizer_config(made))
        _write_json(partial / "generation_config.json", {"eos_token_id": [stop_id]})


def shrink(config: ml_collections.ConfigDict, family: str) -> None:
    """Makes an experiment one of a minute on two cores: a tiny model, few and short responses.

    The model is expected in `runs/tiny/FAMILY`, where `asympo_jax.tiny` is told to write it; the
    task `math` gets the problems that come with the package.
    """
    config.model.hf_dir = f"runs/tiny/{family}"
    config.model.preset = ""
    config.model.dtype = "float32"
    config.num_updates = 6
    config.prompts_per_update = 4
    config.group_size = 4
    config.lag = min(config.lag, 2)
    config.task.max_prompt_tokens = 384
    config.sampler.max_prompt_tokens = 384
    config.sampler.max_response_tokens = 32
    config.sampler.segment = 32
    for section in (config.learner, config.sampler):
        section.platform, section.visible_devices = "cpu", ""
    config.sampler.prompts_per_lease = 4
    config.sampler.params_dtype = "float32"
    config.learner.micro_batch = 4
    config.learner.remat = "none"
    config.learner.logp_chunk = 256
    config.reward.overlong_buffer = 0
    config.optimizer.warmup_updates = 0
    config.eval.num_prompts = 8
    config.eval.samples_per_prompt = 1
    config.eval.every_updates = 3
    config.checkpoint.every_updates = 3
    config.log.rollouts_every_updates = 3
    if config.task.name == "math":
        config.task.train_data = str(_problems("train"))
        config.task.eval_data = str(_problems("eval"))


def _make_tokenizer(family: Family) -> Any:
    """A byte-level BPE with the family's control tokens, of the library tokenizers."""
    import tokenizers

    problems = _problems("train").read_text()
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "tokenizer.json"
        train_bpe(problems.splitlines(), _MERGED_IDS).save(path)
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(list(family.special))
    return tokenizer


def _problems(split: str) -> pathlib.Path:
    """The few problems that come with the package."""
    return pathlib.Path(tasks.__file__).parent / "data" / f"sample_{split}.jsonl"


def _tokenizer_config(family: Family) -> dict[str, Any]:
    """What tokenizer_config.json says."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": family.bos,
        "eos_token": family.special[-1],
        "pad_token": "<|pad|>",
        "chat_template": family.template,
    }


def _write_json(path: pathlib.Path, data: dict[str, Any]) -> None:
    """Writes an object."""
    path.write_text(json.dumps(data, indent=2) + "\n")
