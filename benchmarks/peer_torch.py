"""Plain torch: transformers' Qwen3, full logits of the responses, backward, Adam."""

from typing import Any

import numpy as np
import protocol
from workload import Workload


def prepare(task: str, work: Workload, options: dict[str, Any]) -> protocol.Prepared:
    """Sets the learner up; `micro_batch` sequences go through at once."""
    import os

    import torch
    import transformers

    assert task == "learner", task
    torch.set_num_threads(os.cpu_count() or 1)
    imported_bytes = protocol.peak_bytes()
    model = transformers.Qwen3ForCausalLM.from_pretrained(work.model_dir, dtype=torch.float32)
    model.train()
    prompt_BS = np.repeat(work.prompt_PS(), work.group_size, axis=0)
    tokens_BT = torch.from_numpy(np.concatenate([prompt_BS, work.response_BT()], 1)).long()
    advantage_B = torch.from_numpy(work.advantage_B())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
    micro_batch = options.get("micro_batch", work.num_sequences)
    num_tokens = work.num_sequences * work.response_tokens

    def logp(tokens_MT: Any) -> Any:
        # One more position than there are response tokens: the last prompt token scores the first.
        keep = work.response_tokens + 1
        logits_MTV = model(input_ids=tokens_MT, use_cache=False, logits_to_keep=keep).logits
        logp_MTV = torch.log_softmax(logits_MTV[:, :-1].float(), dim=-1)
        targets_MT1 = tokens_MT[:, work.prompt_tokens :, None]
        return logp_MTV.gather(2, targets_MT1)[..., 0]

    with torch.no_grad():
        check = float(logp(tokens_BT[:1]).mean())

    def run(number: int) -> float:
        del number
        optimizer.zero_grad(set_to_none=True)
        for start in range(0, work.num_sequences, micro_batch):
            part = slice(start, start + micro_batch)
            loss = -(logp(tokens_BT[part]).sum(dim=1) * advantage_B[part]).sum() / num_tokens
            loss.backward()
        optimizer.step()
        return work.num_sequences * work.num_positions

    num_parameters = sum(p.numel() for p in model.parameters())
    return protocol.Prepared(run, num_parameters, imported_bytes, {"check": check})


if __name__ == "__main__":
    protocol.serve(prepare, ("torch", "transformers"))
