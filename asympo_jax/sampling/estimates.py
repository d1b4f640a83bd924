"""avg@k, pass@j and maj@k of graded responses, with intervals over prompts.

Every number is a mean over prompts of a value in [0, 1], and all are treated alike: the prompts are
what was drawn at random, so a prompt's responses stay together when prompts are resampled.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

_LEVEL = 0.95
_SQUARED_DEVIATIONS = 1.959964**2  # of a normal distribution, that 95 % are within
_NUM_RESAMPLES = 2000
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over prompts and how far it may be off, were other prompts drawn.

    Attributes:
        mean: over prompts.
        standard_error: of `mean`; 1 / (P + 1) where all of P prompts are 0, or all 1, as far as
            Wilson's interval of one standard error reaches; NaN for a single prompt.
        low: lower end of the 95 % interval; NaN for a single prompt.
        high: its upper end.
    """

    mean: float
    standard_error: float
    low: float
    high: float


def avg(correct_PK: Bool[np.ndarray, "P K"]) -> Float[np.ndarray, " P"]:
    """Share of right responses of each prompt, avg@k."""
    return correct_PK.mean(axis=1)


def pass_at(correct_PK: Bool[np.ndarray, "P K"], size: int) -> Float[np.ndarray, " P"]:
    """1 − C(k − c, j) / C(k, j): the chance that j = `size` of k responses hold a right one.

    The unbiased estimate of pass@j from k ≥ j responses of which c are right (arXiv:2107.03374
    eq. 1), as a product of factors in [0, 1], so that no binomial overflows.

    Raises:
        ValueError: `size` is not from 1 to k.
    """
    num_samples = correct_PK.shape[1]
    if not 1 <= size <= num_samples:
        raise ValueError(f"size={size}: must be from 1 to the {num_samples} responses a prompt")

    def chance(num_wrong: int) -> float:
        if num_wrong < size:
            return 1.0
        return 1.0 - float(np.prod(1.0 - size / np.arange(num_wrong + 1.0, num_samples + 1.0)))

    # By the number of wrong responses, of which there are few.
    chances = np.array([chance(num_wrong) for num_wrong in range(num_samples + 1)])
    return chances[num_samples - correct_PK.sum(axis=1)]


def majority(
    correct_PK: Bool[np.ndarray, "P K"], answers: Sequence[Sequence[str | None]]
) -> Float[np.ndarray, " P"]:
    """Whether the most frequent answer of each prompt is right, maj@k.

    A tie is split: the value is the share of the tied answers that are right, the mean over an
    order drawn at random. Should equal answers be graded differently, theirs is the share of right
    ones.

    Args:
        correct_PK: which responses are right.
        answers: P times k; equal texts vote together, None does not vote. A prompt without a vote
            has the value 0.
    """
    return np.array(
        [_majority(*prompt) for prompt in zip(correct_PK, answers, strict=True)], np.float64
    )


def _majority(correct_K: np.ndarray, answers: Sequence[str | None]) -> float:
    """The value of one prompt."""
    votes, right = Counter(), Counter()
    for is_right, answer in zip(correct_K, answers, strict=True):
        if answer is not None:
            votes[answer] += 1
            right[answer] += int(is_right)
    most = max(votes.values(), default=0)
    tied = [right[answer] / most for answer, number in votes.items() if number == most]
    return math.fsum(tied) / len(tied) if tied else 0.0


def sizes(num_samples: int) -> list[int]:
    """The j of pass@j that k responses are asked for: 1, 2, 4, … up to k, and k itself."""
    return sorted({2**i for i in range(num_samples.bit_length())} | {num_samples})


def estimate(value_P_of: Mapping[str, Float[np.ndarray, " P"]]) -> dict[str, Estimate]:
    """The mean of each value over prompts, with its standard error and 95 % interval.

    The interval is the percentile bootstrap: 2000 times as many prompts are drawn with replacement,
    by a fixed seed, the same for all values. It is too narrow for a few prompts, as any bootstrap,
    and would have no width where all prompts are 0 or all are 1: there it is Wilson's.

    Args:
        value_P_of: name -> a number for each of the same P ≥ 1 prompts.
    """
    names, values = list(value_P_of), list(value_P_of.values())
    num_prompts = len(values[0])
    # Each by itself: sums of the columns of a matrix are rounded in another order.
    mean_N = [value_P.mean() for value_P in values]
    error_N = low_N = high_N = [math.nan] * len(values)
    if num_prompts > 1:
        error_N = [value_P.std(ddof=1) / math.sqrt(num_prompts) for value_P in values]
        tail = (1 - _LEVEL) / 2
        low_N, high_N = np.quantile(_resampled(np.stack(values, axis=1)), [tail, 1 - tail], axis=0)
        for n, mean in enumerate(mean_N):
            if mean in (0.0, 1.0):
                reach = _SQUARED_DEVIATIONS / (num_prompts + _SQUARED_DEVIATIONS)
                low_N[n], high_N[n] = (0.0, reach) if mean == 0.0 else (1.0 - reach, 1.0)
                error_N[n] = 1 / (num_prompts + 1)
    return {
        name: Estimate(*map(float, numbers))
        for name, *numbers in zip(names, mean_N, error_N, low_N, high_N, strict=True)
    }


def _resampled(value_PN: np.ndarray) -> np.ndarray:
    """Means over prompts that were drawn with replacement, a row for each time."""
    num_prompts = len(value_PN)
    generator = np.random.default_rng(_SEED)
    # How often each prompt is drawn is all that a mean depends on.
    count_RP = generator.multinomial(
        num_prompts, np.full(num_prompts, 1 / num_prompts), size=_NUM_RESAMPLES
    )
    return count_RP @ value_PN / num_prompts
