"""What a task is: prompts, a reward, and (for a warm-up) written-out answers."""

import abc

from asympo_jax.tokenizers import Tokenizer
from asympo_jax.types import Prompt


class Task(abc.ABC):
    """Prompts and rewards of one kind of problem. Knows nothing of models.

    Your own task is a subclass found by its import path, `--config.task.name=my_module:MyTask`. Its
    constructor's keyword arguments are the options that a config may set under `task`.

    Attributes:
        tokenizer: text to ids and back, for prompts and responses of this task.
        num_train: number of training prompts.
        num_eval: number of held-out prompts.
        grades_in_pool: whether rewards may hang, crash or need a main thread, so that they must be
            computed in processes that are killed at a deadline. Those of a task of your own are by
            default.
    """

    tokenizer: Tokenizer
    num_train: int
    num_eval: int
    grades_in_pool: bool = False

    @abc.abstractmethod
    def train_prompt(self, index: int) -> Prompt:
        """The training prompt at `index`, 0 ≤ index < num_train. Pure."""

    @abc.abstractmethod
    def eval_prompt(self, index: int) -> Prompt:
        """The held-out prompt at `index`, 0 ≤ index < num_eval. Pure; never a training prompt."""

    @abc.abstractmethod
    def reward(self, prompt: Prompt, text: str) -> float:
        """A finite reward for the response `text`. Pure; must accept any text.

        In a pool, a TimeoutError says that it could not be told in time; it is counted as such.
        """

    def correct(self, prompt: Prompt, text: str) -> bool:
        """Whether the response counts as right in accuracies; by default, if its reward is ≥ 1."""
        return self.reward(prompt, text) >= 1.0

    def answer(self, text: str) -> str | None:
        """The final answer of a response, for votes: those with equal texts vote together.

        None where the response has none, which does not vote. Cheap, pure and accepts any text. A
        task that keeps this default has no votes at all.
        """
        return None

    def demonstration(self, index: int) -> tuple[str, str]:
        """A (prompt text, response text) pair for the supervised warm-up; pure in `index` ≥ 0.

        Raises:
            ValueError: the task has no written-out answers.
        """
        raise ValueError(
            f"warmup.num_steps must be 0: task {type(self).__name__} has no demonstrations"
        )
