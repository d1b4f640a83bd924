"""Metrics to Weights & Biases, for those who ask for it; what fails there ends no run."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any


class WandbFailed(OSError):
    """Weights & Biases could not take the metrics; one sentence says why."""


class WandbLog:
    """One run of a project, begun with the first metrics.

    Args:
        project: of Weights & Biases.
        workdir: of our run; its name is that of theirs, and it gets their files, in `wandb/`. Each
            attempt is a run of theirs, in a group of that name.
        config: of our run, shown beside its metrics.
    """

    def __init__(self, project: str, workdir: pathlib.Path, config: Mapping[str, Any]):
        """Nothing is loaded or sent yet."""
        self._project = project
        self._workdir = workdir
        self._config = config
        self._run: Any = None
        self._refused = False

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """The metrics after `update` updates; nothing once a run could not be begun.

        Raises:
            WandbFailed: they were not taken.
        """
        if self._refused:
            return
        try:
            if self._run is None:
                self._run = self._begin()
            # An evaluation comes in after newer updates; as a step of theirs it would be dropped.
            self._run.log({"update": update, **values})
        # Whatever theirs raises: no network, no account, a full disk, an interface that changed.
        except Exception as error:
            self._refused = self._run is None
            raise WandbFailed(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Sends what waits; theirs bounds how long."""
        if self._run is not None:
            with contextlib.suppress(Exception):  # as above, and nobody is left to be told
                self._run.finish()

    def _begin(self) -> Any:
        """Their run."""
        import wandb  # an extra, and slow to load

        name = self._workdir.resolve().name
        run = wandb.init(
            project=self._project,
            name=name,
            group=name,
            dir=str(self._workdir),
            config=dict(self._config),
            settings={"console": "off"},  # the terminal is ours
        )
        run.define_metric("*", step_metric="update")
        return run
