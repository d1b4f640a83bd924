"""TRL: its GRPOTrainer, generation by transformers, and its loss on given responses."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import protocol
from workload import Workload

Run = tuple[Callable[[int], float], dict[str, Any]]


def prepare(task: str, work: Workload, options: dict[str, Any]) -> protocol.Prepared:
    """Sets one of the tasks up; `micro_batch` sequences go through the learner at once."""
    import os

    import torch
    import transformers
    import trl

    torch.set_num_threads(os.cpu_count() or 1)
    imported_bytes = protocol.peak_bytes()
    model = transformers.Qwen3ForCausalLM.from_pretrained(work.model_dir, dtype=torch.float32)
    micro_batch = options.get("micro_batch", work.num_sequences)
    arguments = trl.GRPOConfig(
        output_dir="/tmp/trl_is_never_saved",
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=options.get("gradient_checkpointing", False),
        learning_rate=1e-6,
        optim="adamw_torch_fused",
        max_steps=10**9,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=work.num_sequences // micro_batch,
        num_generations=work.group_size,
        max_completion_length=work.response_tokens,
        temperature=work.temperature,
        top_p=1.0,
        top_k=0,
        cache_implementation=options.get("cache"),
        beta=0.0,
        loss_type="grpo",
        shuffle_dataset=False,
        use_vllm=False,
    )
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=_even_share,
        args=arguments,
        train_dataset=_dataset(work),
        processing_class=_tokenizer(work),
    )
    make = {"learner": _learner, "end_to_end": _end_to_end}[task]
    run, facts = make(trainer, work, micro_batch)
    num_parameters = sum(p.numel() for p in model.parameters())
    return protocol.Prepared(run, num_parameters, imported_bytes, facts)


def _even_share(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The reward: the share of even tokens."""
    return [float(np.mean(np.array(ids) % 2 == 0)) for ids in completion_ids]


def _tokenizer(work: Workload) -> Any:
    """Words `t0 t1 …`, and an end and a padding beyond what the model can draw."""
    import tokenizers
    import transformers

    words = {f"t{i}": i for i in range(work.vocab_size)}
    words |= {"<end>": work.vocab_size, "<pad>": work.vocab_size + 1}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="t0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", padding_side="left"
    )


def _dataset(work: Workload) -> Any:
    """The prompts as texts."""
    import datasets

    texts = [" ".join(f"t{token}" for token in prompt) for prompt in work.prompt_PS().tolist()]
    return datasets.Dataset.from_dict({"prompt": texts})


def _learner(trainer: Any, work: Workload, micro_batch: int) -> Run:
    """Its loss, backward, its clip and its optimiser, on given responses."""
    import torch

    prompt_BS = torch.from_numpy(np.repeat(work.prompt_PS(), work.group_size, axis=0)).long()
    response_BT = torch.from_numpy(work.response_BT()).long()
    advantage_B = torch.from_numpy(work.advantage_B())
    model, steps = trainer.model, work.num_sequences // micro_batch
    trainer.create_optimizer()
    model.train()
    trainer.current_gradient_accumulation_steps = steps

    def inputs(part: slice) -> dict[str, Any]:
        return {
            "prompt_ids": prompt_BS[part],
            "prompt_mask": torch.ones_like(prompt_BS[part]),
            "completion_ids": response_BT[part],
            "completion_mask": torch.ones_like(response_BT[part]),
            "advantages": advantage_B[part],
            "num_items_in_batch": torch.tensor(response_BT.numel()),
        }

    with torch.no_grad():
        one = slice(0, 1)
        ids_BT = torch.cat([prompt_BS[one], response_BT[one]], dim=1)
        logp_BT, *_ = trainer._get_per_token_logps_and_entropies(
            model, ids_BT, torch.ones_like(ids_BT), work.response_tokens
        )

    def run(number: int) -> float:
        del number
        trainer.optimizer.zero_grad(set_to_none=True)
        for start in range(0, work.num_sequences, micro_batch):
            trainer.compute_loss(model, inputs(slice(start, start + micro_batch))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        return work.num_sequences * work.num_positions

    return run, {"check": float(logp_BT.mean())}


def _end_to_end(trainer: Any, work: Workload, micro_batch: int) -> Run:
    """One step of its trainer: sample, grade, train."""
    import transformers

    del micro_batch
    # `train` is one long loop, in a thread of its own that stops at the end of each of its steps.
    resume, reached = threading.Semaphore(0), threading.Semaphore(0)

    class Pause(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            reached.release()
            resume.acquire()

    trainer.add_callback(Pause())
    thread = threading.Thread(target=trainer.train, daemon=True)

    def run(number: int) -> float:
        if number == 0:
            thread.start()
        else:
            resume.release()
        while not reached.acquire(timeout=1.0):
            assert thread.is_alive(), "the trainer has ended"
        return work.num_sequences * work.num_positions

    return run, {}


if __name__ == "__main__":
    protocol.serve(prepare, ("trl", "transformers", "torch"))
