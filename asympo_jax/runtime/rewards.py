"""Grades the responses to a prompt, in this process or in a pool."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from asympo_jax.runtime.reward_pool import RewardPool
from asympo_jax.tasks import reward_of
from asympo_jax.types import Prompt


@dataclasses.dataclass(frozen=True)
class Grader:
    """Rewards, and the penalty of responses that come near the longest one allowed.

    The penalty is DAPO's soft punishment (arXiv:2503.14476): 0 up to `overlong_buffer` tokens less
    than the most allowed, then in proportion, `overlong_penalty` for a response of the most.

    Attributes:
        reward: of a response to a prompt, a task's or a user's own.
        max_response_tokens: longest response.
        overlong_buffer: tokens over which the penalty rises; 0 gives none.
        overlong_penalty: largest penalty, subtracted from the reward.
        pool: computes the rewards instead of `reward`; None to compute them here.
    """

    reward: Callable[[Prompt, str], float]
    max_response_tokens: int
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    pool: RewardPool | None = None

    def grade(
        self, prompt: Prompt, texts: Sequence[str], length_G: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """float32 rewards of the responses to one prompt, and why some could not be graded.

        Those have their int8 `GradingFailure` and a reward of no meaning; there are none without a
        pool.

        Args:
            prompt: what they answer.
            texts: the responses.
            length_G: their tokens.

        Raises:
            RewardError: without a pool, a reward raised or is not a finite number; with one, too
                few could be graded.
        """
        failure_G = None
        if self.pool is None:
            rewards = [reward_of(self.reward, prompt, text) for text in texts]
        else:
            graded = self.pool.grade("reward", [(prompt, text) for text in texts])
            rewards = [one.value for one in graded]
            failure_G = np.array([one.failure for one in graded], np.int8)
        reward_G = np.array(rewards, np.float32)
        if not self.overlong_buffer:
            return reward_G, failure_G
        free = self.max_response_tokens - self.overlong_buffer
        share_G = np.clip((length_G - free) / self.overlong_buffer, 0.0, 1.0)
        return (reward_G - self.overlong_penalty * share_G).astype(np.float32), failure_G
