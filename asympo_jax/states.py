"""The state of a run: the first one, and those in its checkpoints."""

import pathlib

import jax

from asympo_jax import models, warmup_cache, workdirs
from asympo_jax.experiment import Parts
from asympo_jax.initial import initial_params
from asympo_jax.learning import TrainState, make_optimizer, state_from_params
from asympo_jax.runtime.checkpoint import Checkpointer, CheckpointRefused
from asympo_jax.runtime.snapshots import parameters_sha256
from asympo_jax.settings import ExperimentConfig


def first_state(
    config: ExperimentConfig,
    parts: Parts,
    params: models.Params,
    mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
    """The state at update 0: parameters to be trained, or with LoRA adapters on them.

    Args:
        config: the experiment.
        parts: its model.
        params: of the decoder; device arrays are not copied.
        mesh: where the state lies; None for one device.
    """
    return models.placed(mesh, _made(config, parts.model, params))


def abstract_state(config: ExperimentConfig, model: models.ModelConfig) -> TrainState:
    """The shapes of the state at update 0; no device is touched."""
    return jax.eval_shape(
        lambda: _made(config, model, models.init_params(model, jax.random.key(config.init_seed)))
    )


def _made(config: ExperimentConfig, model: models.ModelConfig, params: models.Params) -> TrainState:
    """The state at update 0."""
    optimizer, needs = make_optimizer(config.optimizer), config.objective.needs
    if not config.lora.rank:
        return state_from_params(params, optimizer, needs)
    # Not the key itself, from which a decoder without a warm-up was drawn.
    key = jax.random.fold_in(jax.random.key(config.init_seed), 1)
    adapters = models.init_adapters(model, config.lora, key)
    base = models.frozen_base(model, params, config.lora)
    return state_from_params(adapters, optimizer, needs, base)


def state_like(
    config: ExperimentConfig,
    parts: Parts,
    workdir: pathlib.Path,
    checkpointer: Checkpointer,
    mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
    """The shapes of a run's checkpoints and where they go, with the base of their adapters.

    They go onto any mesh, whatever the one that they were saved from.

    Without adapters there are no values, which would take the memory of the device a second time.

    Raises:
        CheckpointRefused: the base cannot be made again.
    """
    if not config.lora.rank:
        return _without_values(config, parts, mesh)
    sha256 = checkpointer.base_sha256()
    if config.warmup.num_steps:
        # By its contents: its name depends on the machine and the code that made it.
        directory = workdirs.warmup_directory(config, workdir)
        source, candidates = f"a warm-up in {directory}", warmup_cache.kept_params(directory)
    else:
        source = f"model.hf_dir={config.hf_dir}" if config.hf_dir else "the initial parameters"
        candidates = iter([initial_params(config, parts, workdir, lambda: None, mesh)])
    for params in candidates:
        state = first_state(config, parts, models.placed(mesh, params), mesh)
        if parameters_sha256(state.base) == sha256:
            return state
    raise CheckpointRefused(
        f"workdir={workdir}: its adapters were trained on {source} with sha256 "
        f"{str(sha256)[:12]}, which is not there any more"
    )


def _without_values(
    config: ExperimentConfig, parts: Parts, mesh: jax.sharding.Mesh | None
) -> TrainState:
    """The shapes of a run's states, on the devices where they would be made."""
    state = abstract_state(config, parts.model)
    if mesh is None:
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: place, state)
    else:
        shardings = models.shardings_of(mesh, state)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, shardings
    )


def load_state(
    config: ExperimentConfig,
    parts: Parts,
    workdir: pathlib.Path,
    update: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
    """The state in a run's newest checkpoint, or in that of an update, on a mesh or one device.

    Raises:
        ValueError: there is none.
    """
    checkpointer = Checkpointer(workdir, config.checkpoint.keep)
    updates = checkpointer.updates()
    if not updates:
        raise ValueError(f"workdir={workdir}: has no checkpoint")
    if update is not None and update not in updates:
        raise ValueError(f"update={update}: workdir={workdir} has checkpoints of {updates}")
    like = state_like(config, parts, workdir, checkpointer, mesh)
    state = checkpointer.state(like, updates[-1] if update is None else update)
    checkpointer.close()
    return state
