"""What a group must be to be let in, whatever carried it: checked before the learner sees it."""

import dataclasses
from typing import Any

import numpy as np

from asympo_jax.runtime.leases import Refused
from asympo_jax.tasks.checked import LARGEST_REWARD
from asympo_jax.types import GradingFailure, Group, StopReason

_DTYPES = {
    "prompt_S": np.int32,
    "response_GT": np.int32,
    "length_G": np.int32,
    "stop_G": np.int8,
    "reward_G": np.float32,
    "behaviour_logp_GT": np.float32,
    "failure_G": np.int8,
}
_OPTIONAL = ("behaviour_logp_GT", "failure_G")
_BYTES_OF_NAMES = 1024  # in a frame, those of a group's fields and types: some 300


@dataclasses.dataclass(frozen=True)
class Admission:
    """The groups of a run.

    Attributes:
        group_size: responses a prompt (G).
        vocab_size: ids that tokens may have (V).
        max_prompt_tokens: of a prompt.
        max_response_tokens: room of a response (T).
        has_logp: whether groups have behaviour log-probs.
    """

    group_size: int
    vocab_size: int
    max_prompt_tokens: int
    max_response_tokens: int
    has_logp: bool

    def check(self, group: Group) -> None:
        """Lets a group in.

        Raises:
            Refused: it has an array of a wrong type or shape, no tokens or too many, ids beyond the
                vocabulary, or numbers that mean nothing.
        """
        self._check_arrays(group)
        length_G = group.length_G
        if not 1 <= len(group.prompt_S) <= self.max_prompt_tokens:
            words = f"{len(group.prompt_S)} prompt tokens, wanted 1 to {self.max_prompt_tokens}"
            raise _refused(group, words, "length")
        if length_G.min() < 1 or length_G.max() > self.max_response_tokens:
            words = f"responses of {length_G.min()} to {length_G.max()} tokens"
            words += f", wanted 1 to {self.max_response_tokens}"
            raise _refused(group, words, "length")
        for ids in (group.prompt_S, group.response_GT):
            if ids.min() < 0 or ids.max() >= self.vocab_size:
                words = f"token ids from {ids.min()} to {ids.max()}, wanted 0 to "
                raise _refused(group, words + str(self.vocab_size - 1), "vocabulary")
        if not np.isin(group.stop_G, list(StopReason)).all():
            raise _refused(group, f"stop reasons {sorted(set(group.stop_G.tolist()))}", "value")
        if group.failure_G is not None and not np.isin(group.failure_G, list(GradingFailure)).all():
            kinds = sorted(set(group.failure_G.tolist()))
            raise _refused(group, f"grading failures {kinds}", "value")
        for name in ("reward_G", "behaviour_logp_GT"):
            array = getattr(group, name)
            if array is not None and not np.isfinite(array).all():
                raise _refused(group, f"a {name} that is not finite", "value")
        if np.abs(group.reward_G).max() > np.float32(LARGEST_REWARD):
            raise _refused(group, f"a reward beyond {LARGEST_REWARD:g} in size", "value")

    def _check_arrays(self, group: Group) -> None:
        """Refuses arrays that are missing, too many, or of a wrong type or shape."""
        shapes = {"prompt_S": np.shape(group.prompt_S)[:1]}
        shapes |= dict.fromkeys(
            ("response_GT", "behaviour_logp_GT"), (self.group_size, self.max_response_tokens)
        )
        for name, dtype in _DTYPES.items():
            array: Any = getattr(group, name)
            if array is None and name in _OPTIONAL:
                continue
            shape = shapes.get(name, (self.group_size,))
            if not isinstance(array, np.ndarray) or (array.dtype, array.shape) != (dtype, shape):
                found = (
                    f"{getattr(array, 'dtype', type(array).__name__)}{getattr(array, 'shape', '')}"
                )
                words = f"{name} {found}, wanted {np.dtype(dtype)}{shape}"
                raise _refused(group, words, "shape")
        if (group.behaviour_logp_GT is not None) != self.has_logp:
            words = "no behaviour_logp_GT" if self.has_logp else "a behaviour_logp_GT, wanted none"
            raise _refused(group, words, "shape")

    def max_frame_bytes(self, num_groups: int) -> int:
        """More bytes than a frame with so many groups can have."""
        of_response = 4 * (1 + self.has_logp) * self.max_response_tokens + 16
        of_group = self.group_size * of_response + 4 * self.max_prompt_tokens + _BYTES_OF_NAMES
        return num_groups * of_group + 2**16


def _refused(group: Group, words: str, reason: Any) -> Refused:
    """The refusal of a group."""
    return Refused(f"the group of ticket {group.ticket} has {words}", reason)
