"""What is planned: an experiment, and the shapes of its decoder and its samplers."""

import dataclasses
import functools

import ml_collections

from asympo_jax.config import resolve
from asympo_jax.decoder import published_shape
from asympo_jax.experiment import build_parts, engine_of
from asympo_jax.learning import TrainState
from asympo_jax.models import MeshShape, ModelConfig
from asympo_jax.sampling import EngineConfig
from asympo_jax.settings import ExperimentConfig
from asympo_jax.states import abstract_state

# Of Qwen: how many there are and which they are is of no weight for the sizes.
_STOP_IDS = (151643, 151645)


@dataclasses.dataclass(frozen=True)
class Subject:
    """An experiment without its task.

    Attributes:
        config: checked.
        model: the decoder's shape.
        engine: shapes of a lease.
        num_hosts: of the learner.
    """

    config: ExperimentConfig
    model: ModelConfig
    engine: EngineConfig
    num_hosts: int = 1

    @functools.cached_property
    def state(self) -> TrainState:
        """The shapes of the learner's state at update 0."""
        return abstract_state(self.config, self.model)


def make_subject(given: ml_collections.ConfigDict, num_hosts: int = 1) -> Subject:
    """The experiment with the shape that a run of it would have.

    Where `model.preset` says that, and there is no directory, the task is not looked at: its files
    may not be there yet.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    config = resolve(given)
    model = published_shape(config) if config.hf_dir is None else None
    if model is None:
        parts = build_parts(config)
        return Subject(config, parts.model, parts.engine, num_hosts)
    config.learner.mesh.check(model)
    MeshShape(tensor=config.sampler.tensor).check(model, "sampler")
    return Subject(config, model, engine_of(config, _STOP_IDS), num_hosts)
