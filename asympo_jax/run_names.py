"""The directory of a run that is given none: the same command finds it again."""

import hashlib
import json
import pathlib
import re

from asympo_jax import workdirs
from asympo_jax.defaults import default_config
from asympo_jax.settings import ExperimentConfig

_RUNS = "runs"


def default_workdir(config: ExperimentConfig) -> pathlib.Path:
    """`runs/TASK-OBJECTIVE-lagLAG-seedSEED-HASH`, below the current directory.

    The hash is of what may not change on one workdir and differs from its default: a run that is
    made longer stays where it is, and so does one of a package that has gained a field.
    """
    defaults = workdirs.fixed_fields(default_config().to_dict())
    fields = workdirs.fixed_fields(config.source)
    chosen = {name: value for name, value in fields.items() if defaults.get(name) != value}
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]
    names = (_last_part(name) for name in (config.task_name, config.source["objective"]["name"]))
    lag, seed = config.source["lag"], config.seed
    return pathlib.Path(_RUNS, "-".join([*names, f"lag{lag}", f"seed{seed}", digest]))


def _last_part(name: str) -> str:
    """The name, or of an import path its last part, as a part of a file's name."""
    return re.sub(r"\W", "_", re.split(r"[:.]", name)[-1])
