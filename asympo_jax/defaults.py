"""Every field of a config with its default: the arithmetic task of `configs/arithmetic.py`.

What the fields mean is said by the dataclasses that they become (`sections.py`, and what
`settings.py` names).
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

_MODEL = {
    "num_layers": 2,
    "width": 64,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_width": 16,
    "mlp_width": 192,
    "rope_theta": 10_000.0,
    "norm_epsilon": 1e-6,
    "qk_norm": False,
    "qkv_bias": False,
    "tied_head": True,
    "dtype": "float32",
}
_OPTIMIZER = {
    "learning_rate": 3e-4,
    "warmup_updates": 0,
    "decay_updates": 0,
    "b1": 0.9,
    "b2": 0.99,
    "epsilon": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
}
_LEARNER = {
    "platform": "",
    "visible_devices": "",
    "data": 1,
    "fsdp": 1,
    "tensor": 1,
    "micro_batch": 8,
    "remat": "none",
    "logp_chunk": 0,
    "proximal_every_updates": 4,
    "max_skipped_updates": 3,
}
_SAMPLER = {
    "count": 1,
    "platform": "cpu",
    "visible_devices": "",
    "memory_fraction": 0.0,
    "cores": 0,
    "devices": 1,
    "tensor": 1,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "max_prompt_tokens": 8,
    "max_response_tokens": 24,
    "segment": 0,
    "lanes": 0,
    "record_behaviour_logp": False,
    "params_dtype": "float32",
}
_EVAL = {
    "every_updates": 10,
    "num_prompts": 512,
    "samples_per_prompt": 1,
    "max_rows": 512,
    "max_waiting": 4,
    "deadline_s": 7200.0,
}
_LOG = {
    "rollouts_every_updates": 25,
    "rollouts_groups": 2,
    "gradients_every_updates": 0,
    "record_batches": 0,
    "tensorboard": True,
}
_RUNTIME = {"name": "local", "stall_s": 3600.0, "max_restarts": 3}
_REWARD = {
    "overlong_buffer": 0,
    "overlong_penalty": 1.0,
    "deadline_s": 30.0,
    "max_failed_share": 0.5,
    "isolate": False,
}
_TASK_TEXTS = ("data_dir", "train_data", "eval_data", "tokenizer_dir", "template")
_OBJECTIVE_OPTIONS = (
    "floor",
    "alpha",
    "delta",
    "positive_scale",
    "clip_low",
    "clip_high",
    "dual_clip",
    "cap",
    "limit",
)


def default_config() -> ml_collections.ConfigDict:
    """Every field with its default: the arithmetic task. Unset fields are placeholders."""
    unset = config_dict.placeholder
    config: Any = ml_collections.ConfigDict(
        {
            "seed": 0,
            "num_updates": 200,
            "prompts_per_update": 32,
            "candidates_per_update": unset(int),
            "group_size": 8,
            "lag": 16,
            "refresh_every_updates": 1,
            "order": "ticket",
            "objective": {
                "name": "asympo",
                **{option: unset(float) for option in _OBJECTIVE_OPTIONS},
                "aggregation": unset(str),
                "constant": unset(float),
                "kl_coefficient": unset(float),
            },
            "advantage": {"center": unset(str), "scale": unset(str)},
            "task": {
                "name": "arithmetic",
                "num_terms": unset(int),
                "wrong_share": unset(float),
                "max_prompt_tokens": unset(int),
                **{option: unset(str) for option in _TASK_TEXTS},
            },
            "reward": {**_REWARD, "function": unset(str), "num_processes": unset(int)},
            "model": {**_MODEL, "preset": "", "hf_dir": unset(str)},
            "lora": {"rank": 0, "alpha": unset(float), "targets": unset(str)},
            "optimizer": dict(_OPTIMIZER),
            "learner": dict(_LEARNER),
            "sampler": {**_SAMPLER, "prompts_per_lease": unset(int)},
            "queue": {"capacity": unset(int)},
            "warmup": {
                "num_steps": 390,
                "batch_size": 128,
                "learning_rate": 3e-3,
                "seed": unset(int),
                "dir": unset(str),
            },
            "eval": {
                **_EVAL,
                "process": unset(bool),
                **{name: unset(str) for name in ("platform", "visible_devices")},
            },
            "checkpoint": {"every_updates": 50, "every_s": 0.0, "keep": 2, "grace_s": 25.0},
            "log": {**_LOG, "wandb_project": unset(str)},
            "runtime": {
                **_RUNTIME,
                "lease_s": unset(float),
                **{name: unset(str) for name in ("snapshot_dir", "compilation_cache")},
            },
        }
    )
    config.lock()
    # An objective or a task of one's own has options of its own; both refuse what they do not know.
    config.objective.unlock()
    config.task.unlock()
    return config
