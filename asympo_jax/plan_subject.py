"""What is planned: an experiment, and the shapes of its decoder and its samplers."""

import dataclasses
import functools
import pathlib

import ml_collections

from asympo_jax.config import resolve
from asympo_jax.experiment import build_parts, engine_of
from asympo_jax.learning import TrainState
from asympo_jax.models import Llama3Scaling, ModelConfig
from asympo_jax.sampling import EngineConfig
from asympo_jax.settings import ExperimentConfig
from asympo_jax.states import abstract_state

# As in the published config.json of each; a plan needs no file of theirs.
SHAPES = {
    "llama3p2_3b": ModelConfig(
        128256, 28, 3072, 24, 8, 128, 8192, 5e5, 1e-5,
        rope_scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192),
    ),
    "qwen2_1p5b": ModelConfig(
        151936, 28, 1536, 12, 2, 128, 8960, 1e4, qkv_bias=True, tied_head=False
    ),
    "qwen3_1p7b": ModelConfig(151936, 28, 2048, 16, 8, 128, 6144, 1e6, qk_norm=True),
    "qwen3_4b": ModelConfig(151936, 36, 2560, 32, 8, 128, 9728, 1e6, qk_norm=True),
}  # fmt: skip
# Of Qwen: how many there are and which they are is of no weight for the sizes.
_STOP_IDS = (151643, 151645)


@dataclasses.dataclass(frozen=True)
class Subject:
    """An experiment without its task.

    Attributes:
        config: checked.
        model: the decoder's shape.
        engine: shapes of a lease.
    """

    config: ExperimentConfig
    model: ModelConfig
    engine: EngineConfig

    @functools.cached_property
    def state(self) -> TrainState:
        """The shapes of the learner's state at update 0."""
        return abstract_state(self.config, self.model)


def shape_named_by(config_file: str) -> str | None:
    """The published shape that the name of a config file ends with, None without one."""
    stem = pathlib.Path(config_file.partition(":")[0]).stem
    return next((name for name in SHAPES if stem.endswith(f"_{name}")), None)


def make_subject(given: ml_collections.ConfigDict, shape: str | None) -> Subject:
    """The experiment with the shape that a run of it would have, or a published one.

    With a published shape the task is not looked at: its files may not be there yet.

    Args:
        given: the experiment's config.
        shape: a name in `SHAPES`; None for the shape that a run would have.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    config = resolve(given)
    if shape is None:
        parts = build_parts(config)
        return Subject(config, parts.model, parts.engine)
    if shape not in SHAPES:
        raise ValueError(f"--shape={shape}: must be one of {list(SHAPES)}")
    if config.hf_dir is not None:
        raise ValueError(
            f"--shape={shape} with model.hf_dir={config.hf_dir!r}: the config.json there says the "
            "shape, leave one of them out"
        )
    model = dataclasses.replace(SHAPES[shape], dtype=config.model["dtype"])
    config.learner.mesh.check(model)
    return Subject(config, model, engine_of(config, _STOP_IDS))
