"""The parameters that a run begins with."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from asympo_jax import models, workdirs
from asympo_jax.experiment import Parts
from asympo_jax.progress import say
from asympo_jax.settings import ExperimentConfig
from asympo_jax.warmup_cache import warmed_up_params

# (Makes parameters, their shapes and types) -> parameters.
FromFirst = Callable[[Callable[[], Any], Any], Any]


def check_initial(config: ExperimentConfig) -> None:
    """Refuses a Hugging Face directory whose parameters cannot be loaded; none is read.

    Raises:
        ValueError: naming the directory and what is wrong with it.
    """
    if config.hf_dir is not None:
        try:
            models.check_directory(config.hf_dir)
        except ValueError as error:
            raise ValueError(f"model.hf_dir: {error}") from error


def initial_params(
    config: ExperimentConfig,
    parts: Parts,
    workdir: pathlib.Path,
    check: Callable[[], None],
    mesh: jax.sharding.Mesh | None = None,
    from_first: FromFirst = lambda make, like: make(),
) -> Any:
    """float32 parameters: of a Hugging Face directory, after the warm-up, or random.

    Args:
        config: the experiment.
        parts: its task and model.
        workdir: of the run, beside which warm-ups are kept.
        check: called before each step of a warm-up; raises to end a run that cannot go on.
        mesh: where they go, no device having them whole but for a warm-up; None for one device.
        from_first: (makes parameters, their shapes) -> the parameters that the first of several
            processes makes.

    Raises:
        ValueError: the Hugging Face directory cannot be used any more.
    """
    if config.hf_dir is not None:
        say(f"parameters of {config.hf_dir}")
        sharding = None if mesh is None else functools.partial(models.sharding_of, mesh)
        return models.load(config.hf_dir, sharding=sharding).params
    key = jax.random.key(config.init_seed)
    if config.warmup.num_steps:
        # On one device: runs on any mesh begin with the same parameters.
        directory = workdirs.warmup_directory(config, workdir)
        warmed_up = functools.partial(warmed_up_params, config, parts, directory, check)
        like = jax.eval_shape(functools.partial(models.init_params, parts.model), key)
        return models.placed(mesh, from_first(warmed_up, like))
    if mesh is None:
        return models.init_params(parts.model, key)
    init = functools.partial(models.init_params, parts.model)
    return jax.jit(init, out_shardings=models.shardings_of(mesh, jax.eval_shape(init, key)))(key)
