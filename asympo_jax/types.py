"""The things that flow through the system, the axis letters and the one time alignment.

Axes. An array's name ends in its axes, `logp_BT`:
    B sequences (= P·G) · P prompts · G responses of a prompt · T positions · V vocabulary ·
    D width · N query heads · K key/value heads · H head width · F MLP width · S prompt or cache
    positions · R packed rows.

Time. `logp_BT[b, t]` scores `tokens_BT[b, t]` given every token before it. `drawn_BT[b, t]` is true
only where the policy drew that token; position 0 is never drawn.

Versions. The learner's update n turns version n of the parameters into version n + 1. The lag of a
group is the number of updates between the version that drew its oldest token and the update that
trains on it.
"""

import dataclasses
import enum
from typing import Any

import jax
import numpy as np


class StopReason(enum.IntEnum):
    """Why a response ended."""

    STOP_TOKEN = 0
    LENGTH = 1


class GradingFailure(enum.IntEnum):
    """Why nobody knows whether a response is right; 0 where it is known."""

    NONE = 0
    TIMEOUT = 1
    DEATH = 2
    ERROR = 3


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A question of a task.

    Attributes:
        index: position in its split of the task.
        text: what the model is asked, before tokenising.
        answer: what the grader compares with; never shown to the model.
    """

    index: int
    text: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Ticket:
    """A unit of work: one prompt, to be answered G times. A pure function of (seed, index).

    Attributes:
        index: 0, 1, 2, … over the whole run.
        slot: the update that it belongs to, `index // prompts_per_update`.
        prompt_index: which prompt of the training split.
        key: two 32-bit words, the random key of its draws.
    """

    index: int
    slot: int
    prompt_index: int
    key: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Group:
    """The G responses to one ticket, complete and graded.

    Attributes:
        ticket: index of its ticket.
        version: version of the parameters that drew its oldest token.
        prompt_S: int32 prompt tokens, no padding.
        response_GT: int32 response tokens, stop token included; zeros from `length_G` on.
        length_G: int32, drawn tokens of each response, 1 ≤ length ≤ T.
        stop_G: int8, a `StopReason` each.
        reward_G: float32.
        behaviour_logp_GT: float32 log-probabilities under the version that drew the tokens, zeros
            from `length_G` on; None unless an objective or a diagnostic asked for them.
        failure_G: int8, a `GradingFailure` each; None where rewards are computed without a pool.
    """

    ticket: int
    version: int
    prompt_S: np.ndarray
    response_GT: np.ndarray
    length_G: np.ndarray
    stop_G: np.ndarray
    reward_G: np.ndarray
    behaviour_logp_GT: np.ndarray | None = None
    failure_G: np.ndarray | None = None

    @property
    def is_graded(self) -> bool:
        """Whether all rewards are known; a group with one that is not is never trained on."""
        return self.failure_G is None or not self.failure_G.any()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Complete groups as arrays of a fixed shape; rows g·G … g·G + G − 1 are group g.

    A group that could not be graded keeps its rows, with no drawn token and rewards of 0: it counts
    in nothing.

    Attributes:
        tokens_BT: int32, prompt then response, left-aligned, zeros after.
        drawn_BT: bool, true where the policy drew the token.
        reward_PG: float32.
        behaviour_logp_BT: float32 aligned with `tokens_BT`, or None.
    """

    tokens_BT: Any  # jax or NumPy arrays
    drawn_BT: Any
    reward_PG: Any
    behaviour_logp_BT: Any = None
