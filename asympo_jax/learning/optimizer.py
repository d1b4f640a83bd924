"""The optimiser: Adam with clipping and a learning-rate schedule."""

import dataclasses
import math

import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam (decoupled weight decay) behind a clip of the global gradient norm.

    Attributes:
        learning_rate: its peak.
        warmup_updates: updates over which the rate rises linearly: update n of the first w has the
            peak times (n + 1) / w.
        decay_updates: updates after which the rate has fallen to 0 along a cosine; 0 keeps it.
        b1: decay of the first moment.
        b2: decay of the second moment.
        epsilon: added to the root of the second moment.
        weight_decay: coefficient of the decoupled decay.
        clip_norm: largest global gradient norm; 0 does not clip.
    """

    learning_rate: float
    warmup_updates: int = 0
    decay_updates: int = 0
    b1: float = 0.9
    b2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        """Refuses values outside their range.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"optimizer.learning_rate={self.learning_rate}: must be positive")
        for field in ("b1", "b2"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"optimizer.{field}={getattr(self, field)}: must be in [0, 1)")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"optimizer.epsilon={self.epsilon}: must be positive")
        for field in ("warmup_updates", "decay_updates", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"optimizer.{field}={getattr(self, field)}: must not be negative")
        if self.decay_updates and self.decay_updates <= self.warmup_updates:
            raise ValueError(
                f"optimizer.decay_updates={self.decay_updates}: must be 0 or more than "
                f"optimizer.warmup_updates={self.warmup_updates}"
            )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optax transformation of a config."""
    peak = config.learning_rate
    first = peak / max(1, config.warmup_updates)
    num_rising = max(0, config.warmup_updates - 1)
    if config.decay_updates:
        schedule = optax.warmup_cosine_decay_schedule(first, peak, num_rising, config.decay_updates)
    else:
        schedule = optax.linear_schedule(first, peak, num_rising) if num_rising else peak
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adam = optax.adamw(
        schedule, config.b1, config.b2, config.epsilon, weight_decay=config.weight_decay
    )
    return optax.chain(clip, adam)
