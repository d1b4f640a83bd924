"""The common work of all sides: one shape of model, the same tokens. Needs NumPy alone."""

import dataclasses
import json
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Workload:
    """A decoder of the Qwen3 family and what it is asked for.

    Attributes:
        vocab_size: V; token 0 is kept for padding and is in no prompt.
        width: D.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_width: H.
        mlp_width: F.
        num_prompts: P.
        group_size: responses to each prompt, G.
        prompt_tokens: length of every prompt.
        response_tokens: length of every response; nothing ends one early.
        model_dir: Hugging Face directory that every side loads its parameters from.
    """

    vocab_size: int = 4096
    width: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_width: int = 64
    mlp_width: int = 768
    num_prompts: int = 8
    group_size: int = 8
    prompt_tokens: int = 32
    response_tokens: int = 96
    model_dir: str = ""

    # Tunix turns its heads by this base whatever its config says.
    rope_theta = 1e6
    norm_epsilon = 1e-6
    temperature = 1.0

    @property
    def num_sequences(self) -> int:
        """P·G."""
        return self.num_prompts * self.group_size

    @property
    def num_positions(self) -> int:
        """Prompt and response."""
        return self.prompt_tokens + self.response_tokens

    def prompt_PS(self) -> np.ndarray:
        """Random prompts, int32."""
        rng = np.random.default_rng(0)
        shape = (self.num_prompts, self.prompt_tokens)
        return rng.integers(1, self.vocab_size, shape).astype(np.int32)

    def response_BT(self) -> np.ndarray:
        """Random responses, int32, for what needs none that were sampled."""
        rng = np.random.default_rng(1)
        shape = (self.num_sequences, self.response_tokens)
        return rng.integers(1, self.vocab_size, shape).astype(np.int32)

    def reward_PG(self) -> np.ndarray:
        """Random rewards in [0, 1), float32."""
        rng = np.random.default_rng(2)
        return rng.random((self.num_prompts, self.group_size), np.float32)

    def advantage_B(self) -> np.ndarray:
        """Rewards less their group's mean over its deviation, float32."""
        reward_PG = self.reward_PG()
        centred_PG = reward_PG - reward_PG.mean(axis=1, keepdims=True)
        return (centred_PG / (reward_PG.std(axis=1, keepdims=True) + 1e-4)).reshape(-1)

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Workload":
        """A workload from its text."""
        return cls(**json.loads(text))


TINY: dict[str, Any] = {
    "vocab_size": 64,
    "width": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_width": 16,
    "mlp_width": 48,
    "num_prompts": 2,
    "group_size": 2,
    "prompt_tokens": 4,
    "response_tokens": 6,
}


@dataclasses.dataclass(frozen=True)
class MixedLengths:
    """Many responses of which few are long: what batch-synchronous sampling is worst at.

    Attributes:
        num_prompts: of the whole job.
        lanes: prompts of a batch, or worked at once.
        short: tokens of most responses.
        long: tokens of the others.
        long_share: share of long ones.
    """

    num_prompts: int = 80
    lanes: int = 8
    short: int = 12
    long: int = 96
    long_share: float = 0.01

    def limit_PG(self, group_size: int) -> np.ndarray:
        """Length of every response, int32: an exact number of long ones at random places."""
        limit_N = np.full(self.num_prompts * group_size, self.short, np.int32)
        num_long = max(1, round(self.long_share * limit_N.size))
        where = np.random.default_rng(0).choice(limit_N.size, num_long, replace=False)
        limit_N[where] = self.long
        return limit_N.reshape(self.num_prompts, group_size)

    def prompt_PS(self, work: Workload) -> np.ndarray:
        """Prompts of the whole job, int32."""
        return dataclasses.replace(work, num_prompts=self.num_prompts).prompt_PS()

    def batches(self, work: Workload) -> list[tuple[np.ndarray, int, int]]:
        """What a batch-synchronous sampler does, in order: prompts, longest, tokens asked for."""
        prompt_PS, limit_PG = self.prompt_PS(work), self.limit_PG(work.group_size)
        starts = range(0, self.num_prompts, self.lanes)
        parts = [slice(start, start + self.lanes) for start in starts]
        return [(prompt_PS[p], int(limit_PG[p].max()), int(limit_PG[p].sum())) for p in parts]
