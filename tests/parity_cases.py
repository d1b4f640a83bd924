"""Tiny random models of every family and option, as Hugging Face's own code has them.

Only `make_parity_reference.py` and tests that need the extra [parity] call what needs torch.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from asympo_jax import models
from asympo_jax.sampling import EngineConfig, draw_params, generate

SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Of the 4 frequencies one is kept, one in the ramp, and two are low.
    "original_max_position_embeddings": 32,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model: its family, options of its config, and how its directory is written.

    Attributes:
        family: model_type.
        options: beyond `SIZES`.
        dtype: of the tensors.
        max_shard_size: of a file; None for one file.
        is_old: whether config.json has the spelling of before transformers 5.
    """

    family: str
    options: dict[str, Any]
    dtype: str = "float32"
    max_shard_size: str | None = None
    is_old: bool = False


def _theta(theta: float) -> dict[str, Any]:
    """Rotary positions without scaling."""
    return {"rope_type": "default", "rope_theta": theta}


CASES = {
    "qwen2_tied": Case("qwen2", {"tie_word_embeddings": True, "rope_parameters": _theta(1e3)}),
    "qwen2_untied_old": Case(
        "qwen2", {"rope_parameters": _theta(1e6), "rms_norm_eps": 1e-3}, is_old=True
    ),
    "qwen3_tied_bf16": Case(
        "qwen3",
        {"tie_word_embeddings": True, "head_dim": 8, "rope_parameters": _theta(1e6)},
        dtype="bfloat16",
    ),
    "qwen3_untied_sharded": Case(
        "qwen3", {"head_dim": 8, "rope_parameters": _theta(100.0)}, max_shard_size="12KB"
    ),
    "llama_untied_old": Case("llama", {"rope_parameters": _theta(50.0)}, is_old=True),
    "llama3_untied": Case("llama", {"head_dim": 8, "rope_parameters": LLAMA3}),
    "llama3_tied_old": Case(
        "llama",
        {"tie_word_embeddings": True, "head_dim": 8, "rope_parameters": LLAMA3},
        is_old=True,
    ),
    "llama_linear": Case(
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0}},
    ),
}

NUM_POSITIONS, NUM_DRAWN = 40, 12
PROMPTS = tuple(
    tuple(int(token) for token in row[:length])
    for row, length in zip(
        np.random.default_rng(1).integers(1, 23, (3, 30)), (30, 3, 17), strict=True
    )
)
TOKENS = np.random.default_rng(0).integers(0, 23, (1, NUM_POSITIONS)).astype(np.int32)


def make_oracle(case: Case, seed: int) -> Any:
    """The model in PyTorch, in float32, every parameter random: zeros and ones hide mistakes."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(case.family, **(SIZES | case.options))
    oracle = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            is_scale = name.endswith("norm.weight")
            is_small = is_scale or name.endswith("bias")
            size = 0.3 if is_small else parameter.shape[-1] ** -0.5
            parameter.copy_(size * torch.randn_like(parameter) + is_scale)
    return oracle.eval()


def write_oracle(case: Case, oracle: Any, directory: pathlib.Path) -> None:
    """Writes the directory of a case as transformers does."""
    import torch

    size = {} if case.max_shard_size is None else {"max_shard_size": case.max_shard_size}
    oracle.to(getattr(torch, case.dtype)).save_pretrained(directory, **size)
    if case.is_old:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        config["torch_dtype"] = config.pop("dtype")
        if case.options.get("head_dim") is None:
            config.pop("head_dim", None)
        path.write_text(json.dumps(config, indent=2) + "\n")


def load_oracle(directory: pathlib.Path) -> Any:
    """The model that transformers finds in a directory, in float32; it must find all tensors."""
    import torch
    import transformers

    oracle, found = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(found.values()), found
    return oracle.eval()


def oracle_logits(oracle: Any) -> np.ndarray:
    """Its logits of `TOKENS`."""
    import torch

    with torch.no_grad():
        return oracle(torch.from_numpy(TOKENS).long()).logits.numpy()


def oracle_greedy(oracle: Any) -> tuple[np.ndarray, float]:
    """Its greedy responses to `PROMPTS`, and the least lead of a first over a second token."""
    import torch

    rows, leads = [], []
    for prompt in PROMPTS:
        found = oracle.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NUM_DRAWN,
            output_logits=True,
            return_dict_in_generate=True,
        )
        rows.append(found.sequences[0, len(prompt) :].numpy())
        best = torch.cat(found.logits).topk(2).values
        leads.append(float((best[:, 0] - best[:, 1]).min()))
    return np.stack(rows).astype(np.int32), min(leads)


def our_logits(model: models.Model) -> np.ndarray:
    """Our logits of `TOKENS`."""
    return np.asarray(model.logits(model.params, TOKENS))


def our_greedy(model: models.Model) -> np.ndarray:
    """Our greedy responses to `PROMPTS`, by the engine that samples in training."""
    engine = EngineConfig(
        num_prompts=len(PROMPTS),
        group_size=1,
        max_prompt_tokens=max(map(len, PROMPTS)),
        max_response_tokens=NUM_DRAWN,
        segment=8,
        stop_ids=(),
        record_logp=False,
    )
    keys = [(0, index) for index in range(len(PROMPTS))]
    found = generate(model.config, engine, model.params, PROMPTS, keys, draw_params(0.0))
    return found.token_PGT[:, 0]
