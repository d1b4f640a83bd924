"""Experiments that are small enough to be made, so that a plan can be held against them."""

import dataclasses
from typing import Any

import jax
from tiny_runs import TINY

from asympo_jax import learning, models
from asympo_jax.defaults import default_config
from asympo_jax.experiment import build_parts
from asympo_jax.learning.train_step import Packed
from asympo_jax.plan.subject import Subject, make_subject
from asympo_jax.states import first_state


def config_of(**fields: Any) -> Any:
    """The config of a tiny decoder; double underscores in names stand for dots."""
    config: Any = default_config()
    given = {name.replace("__", "."): value for name, value in fields.items()}
    for name, value in {**TINY, **given}.items():
        *path, field = name.split(".")
        section = config
        for part in path:
            section = section[part]
        section[field] = value
    return config


def subject_of(**fields: Any) -> Subject:
    """The experiment of such a config."""
    return make_subject(config_of(**fields))


def state_of(subject: Subject) -> learning.TrainState:
    """Its state at update 0, on its mesh."""
    mesh = subject.config.learner.mesh.make()
    params = models.init_params(subject.model, jax.random.key(0))
    return first_state(subject.config, build_parts(subject.config), params, mesh)


def step_of(subject: Subject) -> Packed:
    """The learner's step on one device."""
    config = subject.config
    model = dataclasses.replace(subject.model, remat=config.learner.remat)
    optimizer = learning.make_optimizer(config.optimizer)
    return learning.make_train_step(model, config.objective, optimizer, config.step)
