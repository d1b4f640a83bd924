"""transformers: `generate` with a static or a growing cache, batch-synchronous."""

from collections.abc import Callable
from typing import Any

import numpy as np
import protocol
from workload import MixedLengths, Workload


def prepare(task: str, work: Workload, options: dict[str, Any]) -> protocol.Prepared:
    """Sets the sampler up; `cache` is `static` or `dynamic`, `compile` asks for torch.compile."""
    import os

    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    imported_bytes = protocol.peak_bytes()
    model = transformers.Qwen3ForCausalLM.from_pretrained(work.model_dir, dtype=torch.float32)
    model.eval()
    if options.get("compile"):
        model.forward = torch.compile(model.forward)

    def generate(prompt_PS: np.ndarray, length: int) -> int:
        ids_BS = torch.from_numpy(np.repeat(prompt_PS, work.group_size, axis=0)).long()
        config = transformers.GenerationConfig(
            do_sample=True,
            temperature=work.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=length,
            min_new_tokens=None,
            eos_token_id=None,
            pad_token_id=0,
            cache_implementation=options["cache"],
        )
        with torch.inference_mode():
            out_BT = model.generate(
                ids_BS, attention_mask=torch.ones_like(ids_BS), generation_config=config
            )
        return out_BT[:, ids_BS.shape[1] :].numel()

    run = _mixed(generate, work, options) if task == "mixed" else _sampler(generate, work)
    num_parameters = sum(p.numel() for p in model.parameters())
    return protocol.Prepared(run, num_parameters, imported_bytes)


Generate = Callable[[np.ndarray, int], int]


def _sampler(generate: Generate, work: Workload) -> Callable[[int], float]:
    """All prompts in one batch."""

    def run(number: int) -> float:
        del number
        tokens = generate(work.prompt_PS(), work.response_tokens)
        assert tokens == work.num_sequences * work.response_tokens, tokens
        return tokens

    return run


def _mixed(generate: Generate, work: Workload, options: dict[str, Any]) -> Callable[[int], float]:
    """Batch after batch, each as long as its longest; only what was asked for counts."""
    batches = MixedLengths(**options["mixed"]).batches(work)

    def run(number: int) -> float:
        del number
        for prompt_PS, longest, _ in batches:
            generate(prompt_PS, longest)
        return sum(asked for _, _, asked in batches)

    return run


if __name__ == "__main__":
    protocol.serve(prepare, ("torch", "transformers"))
