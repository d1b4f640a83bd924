"""What a run writes, as frozen dataclasses of their own fields, and how often."""

import dataclasses
import importlib.util
import re


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints; there is always one at the end.

    Attributes:
        every_updates: one after every so many updates; 0 never.
        every_s: one after the first update that ends so many seconds after the last one; 0 never.
        keep: how many of the newest are kept.
        grace_s: seconds from SIGTERM to the end of the checkpoint that it asks for; one that takes
            longer is given up. After Ctrl-C, 9 if that is less.
    """

    every_updates: int
    every_s: float
    keep: int
    grace_s: float

    def __post_init__(self):
        """Refuses values outside their range."""
        for field, allowed, words in (
            ("every_updates", self.every_updates >= 0, "must not be negative"),
            ("every_s", 0 <= self.every_s <= 1e6, "must be from 0 to 1000000"),
            ("keep", self.keep >= 1, "must be at least 1"),
            ("grace_s", 0 < self.grace_s <= 3600, "must be above 0, at most 3600"),
        ):
            if not allowed:
                raise ValueError(f"checkpoint.{field}={getattr(self, field)!r}: {words}")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is written besides metrics.

    Attributes:
        rollouts_every_updates: readable samples every so many updates; 0 writes none.
        rollouts_groups: groups written each time.
        gradients_every_updates: every so many updates, norms and angle of the gradients of positive
            and of negative responses, at the cost of two gradients more; 0 never.
        record_batches: newest updates whose batches are kept for replay, and at least those of the
            skipped updates that end a run; 0 writes those of skipped updates alone.
        tensorboard: whether to write TensorBoard events.
        wandb_project: project of Weights & Biases that gets the metrics, too; None for none.
    """

    rollouts_every_updates: int
    rollouts_groups: int
    gradients_every_updates: int
    record_batches: int
    tensorboard: bool
    wandb_project: str | None

    def __post_init__(self):
        """Refuses values outside their range."""
        for field in (
            "rollouts_every_updates",
            "rollouts_groups",
            "gradients_every_updates",
            "record_batches",
        ):
            if getattr(self, field) < 0:
                raise ValueError(f"log.{field}={getattr(self, field)!r}: must not be negative")
        project = self.wandb_project
        if project is not None and not re.fullmatch(r"[^/\\#?%:]{1,128}", project):
            raise ValueError(
                f"log.wandb_project={project!r}: must have from 1 to 128 characters, and "
                "none of / \\ # ? % :"
            )

    def check_installed(self) -> None:
        """Refuses a project of a package that is not there; only training sends anything to it.

        Raises:
            ValueError: naming the field, its value and what installs the package.
        """
        if self.wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise ValueError(
                f"log.wandb_project={self.wandb_project!r}: needs the package wandb, which is not "
                "installed: run pip install 'asympo_jax[wandb]'"
            )
