"""The config of a sweep: an experiment, and the values of those of its fields that are varied."""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from asympo_jax.config import resolve

_MAX_NAME = 200  # bytes, to which suffixes are added


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of a sweep.

    Attributes:
        values: dotted field -> value, of the axes.
        config: the whole config.
    """

    values: Mapping[str, Any]
    config: ml_collections.ConfigDict

    @property
    def name(self) -> str:
        """Name of its directory."""
        words = ",".join(f"{field}={value}" for field, value in self.values.items())
        return words.replace("/", "%2F")


def make_sweep(
    base: ml_collections.ConfigDict,
    axes: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> ml_collections.ConfigDict:
    """The config of a sweep, which `--config.base.FIELD=` and `--config.axes.FIELD=` can change.

    Args:
        base: the experiment.
        axes: dotted field -> its values; the product of all is run.
        settings: name of an objective -> dotted field -> value, for that objective alone. A field
            that all objectives of the axes set is None in `base`.
    """
    sweep: Any = ml_collections.ConfigDict()
    sweep.base = base
    sweep.axes = ml_collections.ConfigDict()
    for field, values in axes.items():
        _set(sweep.axes, field, tuple(values))
    sweep.settings = {
        objective: tuple(sorted(fields.items())) for objective, fields in (settings or {}).items()
    }
    for field in _set_by_all(sweep):
        with base.ignore_type():
            _set(base, field, None)
    return sweep


def cases(sweep: ml_collections.ConfigDict) -> list[Case]:
    """All runs of a sweep, each checked.

    Raises:
        ValueError: naming the run and what is wrong with it.
    """
    axes = dict(_leaves(sweep.axes))
    for field, values in axes.items():
        if not values:
            raise ValueError(f"axes.{field}={values!r}: must have at least one value")
        if any(value in values[:i] for i, value in enumerate(values)):
            raise ValueError(f"axes.{field}={values!r}: its values must differ")
    for field in _set_by_all(sweep):
        value = _get(sweep.base, field)
        if value is not None and field not in axes:
            raise ValueError(
                f"base.{field}={value!r}: would change nothing, as settings give each objective "
                f"its own; set settings, or axes.{field}"
            )
    found = []
    for chosen in itertools.product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        case = Case(values, _config(sweep, values))
        if len(os.fsencode(case.name)) > _MAX_NAME:
            raise ValueError(
                f"axes: the run {case.name[:60]!r}… would have a name of more than {_MAX_NAME} "
                "bytes; vary fewer fields"
            )
        try:
            resolve(case.config)
        except ValueError as error:
            raise ValueError(f"run {case.name}: {error}") from error
        found.append(case)
    return found


def _config(sweep: ml_collections.ConfigDict, values: Mapping[str, Any]) -> Any:
    """The config of one run."""
    config = sweep.base.copy_and_resolve_references()
    for field, value in values.items():
        _set(config, field, value)
    for field, value in sweep.settings.get(config.objective.name, ()):
        if field not in values:
            _set(config, field, value)
    return config


def _set_by_all(sweep: Any) -> list[str]:
    """Fields that the settings of every objective of the sweep set."""
    names = dict(_leaves(sweep.axes)).get("objective.name", (sweep.base.objective.name,))
    each = [{field for field, _ in sweep.settings.get(name, ())} for name in names]
    return sorted(set.intersection(*each)) if each else []


def _get(config: Any, field: str) -> Any:
    """The value of a dotted field."""
    for name in field.split("."):
        config = _field(config, name, field)
    return config


def _set(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
    """Sets a dotted field; sections that are missing are made in a config without a lock."""
    *sections, name = field.split(".")
    for section in sections:
        if section not in config and not config.is_locked:
            config[section] = ml_collections.ConfigDict()
        config = _field(config, section, field)
    if config.is_locked:
        _field(config, name, field)
    try:
        config[name] = value
    except TypeError as error:
        raise ValueError(f"{field}={value!r}: {error}") from error


def _field(config: ml_collections.ConfigDict, name: str, field: str) -> Any:
    """A field that must be there."""
    if name not in config:
        raise ValueError(
            f"{field}: is no field of the config; asympo_jax/defaults.py lists all fields"
        )
    return config[name]


def _leaves(
    axes: ml_collections.ConfigDict, prefix: str = ""
) -> Iterator[tuple[str, Sequence[Any]]]:
    """Dotted fields and their values."""
    for name, value in axes.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            values: Sequence[Any] = value if isinstance(value, tuple | list) else (value,)
            yield f"{prefix}{name}", values
