"""Recorded batches trained on again: the same updates bit for bit, or those of another objective.

The learner's part of a run alone, on the same cores: the state at an update, the batches that were
recorded from there on, the same step. With another objective the batches stay those that the run's
own policy drew, so that what differs is what the objective makes of them.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from asympo_jax import devices, experiment, interrupts, recordings, states, workdirs
from asympo_jax.config import from_plain, resolve
from asympo_jax.endings import RunFailed, failures
from asympo_jax.initial import check_initial, initial_params
from asympo_jax.learning import TrainState, make_batch, make_optimizer, make_train_step
from asympo_jax.progress import say
from asympo_jax.runtime import placement
from asympo_jax.runtime.batches import read_batch
from asympo_jax.runtime.compilation import keep_compiled
from asympo_jax.runtime.metrics import MetricsWriter, as_written, read_metrics
from asympo_jax.runtime.snapshots import parameters_sha256
from asympo_jax.settings import ExperimentConfig

_CHANGEABLE = ("objective", "advantage")
_COLUMNS = (
    "loss", "grad/norm", "nll/positive", "nll/negative", "balance/net", "policy/entropy"
)  # fmt: skip

# Names and values of a line of metrics; None is not finite.
_Line = Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Request:
    """What a person asks for.

    Attributes:
        workdir: of a run.
        first: updates done before the first one replayed; None for as few as can be.
        last: updates done with the last one; None for all that were recorded.
        batch: a file with the one batch to be replayed; None for those of the workdir.
        fields: dotted names and values of the config that differ from the run's.
    """

    workdir: pathlib.Path
    first: int | None = None
    last: int | None = None
    batch: pathlib.Path | None = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Refuses what does not go together, and fields that belong to what was recorded."""
        if self.batch is not None and self.last is not None:
            raise ValueError(f"--to={self.last}: with --batch there is one update, leave it out")
        if self.first is not None and self.last is not None and self.first >= self.last:
            raise ValueError(f"--from={self.first}: must be less than --to={self.last}")
        for name in self.fields:
            if name.partition(".")[0] not in _CHANGEABLE:
                raise ValueError(
                    f"--config.{name}: a replay may change fields of {' and '.join(_CHANGEABLE)} "
                    "alone, the rest is as it was recorded"
                )

    def experiments(self) -> tuple[ExperimentConfig, ExperimentConfig]:
        """The experiment of the run, and the one that is replayed."""
        plain = workdirs.read_config(self.workdir).to_dict()
        own = resolve(from_plain(plain))
        name = plain["objective"]["name"]
        if self.fields.get("objective.name", name) != name:
            plain["objective"] = {}  # options belong to the objective that is replaced
        for field, value in self.fields.items():
            section, _, option = field.partition(".")
            plain[section][option] = value
        return own, resolve(from_plain(plain))


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A replay that was checked.

    Attributes:
        request: what was asked for.
        own: the experiment of the run.
        config: the one that is replayed.
        parts: its task and model.
        first: updates done before.
        files: of the batches, in order.
    """

    request: Request
    own: ExperimentConfig
    config: ExperimentConfig
    parts: experiment.Parts
    first: int
    files: Sequence[pathlib.Path]

    @property
    def is_same(self) -> bool:
        """Whether the run itself is repeated."""
        return self.own.source == self.config.source

    @property
    def out(self) -> pathlib.Path:
        """The directory of this replay's metrics."""
        return self.request.workdir / "replay" / re.sub(r"[^\w.-]", "_", _name(self.config))

    def start_device(self) -> None:
        """Puts this process where the learner of a run is, which its bits depend on.

        Raises:
            RunFailed: there is no such device.
        """
        learner_cores, _ = placement.split_cores(placement.available_cores())
        placement.pin(learner_cores)
        keep_compiled(self.config.compilation_cache)
        with failures(placement.NoDevice, ValueError, OSError):
            devices.start_learner(self.config.learner)

    def run(self) -> Iterator[str]:
        """Replays, writes `metrics.jsonl`, and yields the lines of a table as they come.

        Raises:
            RunFailed: a file cannot be used, memory is full, or the same experiment did not come
                to the same numbers.
        """
        with failures(placement.NoDevice, ValueError, OSError):
            lines = read_metrics(self.request.workdir / "metrics.jsonl")
            self.out.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(MetricsWriter(self.out, 0, False, say)) as writer:
                yield f"from the state after {self.first} updates of {self.request.workdir}"
                yield from self._run(writer, {line["update"]: line for line in lines})

    def _run(self, writer: MetricsWriter, lines: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
        """The lines of the table, and those on how it ended."""
        config = self.config
        mesh = config.learner.mesh.make()
        model = dataclasses.replace(self.parts.model, remat=config.learner.remat, mesh=mesh)
        optimizer = make_optimizer(config.optimizer)
        step = make_train_step(model, config.objective, optimizer, config.step)
        num_positions = config.sampler.max_prompt_tokens + config.sampler.max_response_tokens
        state, different = self._first_state(mesh), []
        yield _row("update", "objective", _COLUMNS)
        for path in self.files:
            interrupts.raise_if_received()
            recorded = read_batch(path)
            batch = make_batch(recorded.groups, config.group_size, num_positions)
            state, found = step(state, batch)
            values = {name: float(value) for name, value in jax.device_get(found).items()}
            writer.write(recorded.version, values)
            line = lines.get(recorded.version, {})
            before = {name: line[name] for name in values if name in line}
            if before != as_written(values):
                different.append(recorded.version)
            yield from self._rows(recorded.version, as_written(values), before)
        yield from self._end(state, different)

    def _rows(self, version: int, found: _Line, before: _Line) -> Iterator[str]:
        """An update beside what the run found; one row where that is the same."""
        if self.is_same and found == before:
            yield _row(str(version), f"{_name(self.own)}, as recorded", found)
            return
        if before:
            yield _row(str(version), f"{_name(self.own)}, recorded", before)
        yield _row("" if before else str(version), f"{_name(self.config)}, replayed", found)

    def _end(self, state: TrainState, different: Sequence[int]) -> Iterator[str]:
        """What it came to; refuses to end well if the run itself came to something else."""
        sha256, version = parameters_sha256(state.params), int(state.update)
        yield f"parameters_sha256 {sha256}"
        yield f"{self.out / 'metrics.jsonl'}: all metrics"
        if not self.is_same or self.request.batch is not None:
            return
        path = self.request.workdir / "result.json"
        result = json.loads(path.read_text()) if path.exists() else {}
        if result.get("updates") == version:
            is_equal = result.get("parameters_sha256") == sha256
            yield f"{path}: its parameters_sha256 is {'the same' if is_equal else 'another'}"
            different = [*different, *([] if is_equal else [version])]
        if different:
            raise RunFailed(
                f"update {different[0]}: is not as it was recorded; the same bits need the same "
                "code, kind of machine, number of cores and mesh"
            )

    def _first_state(self, mesh: jax.sharding.Mesh | None) -> TrainState:
        """The state before the first batch, with what the objective keeps."""
        own, workdir, needs = self.own, self.request.workdir, self.config.objective.needs

        def initial() -> TrainState:
            check = interrupts.raise_if_received
            params = initial_params(own, self.parts, workdir, check, mesh)
            return states.first_state(self.config, self.parts, params, mesh)

        if not self.first:
            return initial()
        state = states.load_state(own, self.parts, workdir, self.first, mesh)
        kept: dict[str, Any] = {"proximal": None, "reference": None}
        if "proximal" in needs:
            # Of a run that kept none, the most recent that there are.
            kept["proximal"] = state.proximal or jax.tree.map(jnp.copy, state.params)
        if "reference" in needs:
            kept["reference"] = state.reference or initial().params
        return dataclasses.replace(state, **kept)


def prepare(request: Request) -> Prepared:
    """Checks everything that needs no device.

    Raises:
        ValueError: something of the request, the config or the batches cannot be used.
    """
    own, config = request.experiments()
    parts = experiment.build_parts(config)
    check_initial(config)
    checkpoints = [0, *workdirs.checkpoint_updates(request.workdir)]
    if request.batch is None:
        first, files = recordings.select(request.workdir, checkpoints, request.first, request.last)
    else:
        files = [request.batch]
        first = recordings.start_of(request.batch, request.workdir, checkpoints, request.first)
    recordings.check(config, files)
    return Prepared(request, own, config, parts, first, files)


def _name(config: ExperimentConfig) -> str:
    """What the config calls its objective."""
    return str(config.source["objective"]["name"])


def _row(update: str, objective: str, found: Sequence[str] | _Line) -> str:
    """A row of the table, or its head."""
    if isinstance(found, Mapping):
        values = [found.get(name) for name in _COLUMNS]
        objective += " (skipped)" if found.get("update/skipped") else ""
        found = ["–" if value is None else f"{value:.5g}" for value in values]
    return f"{update:>6}  {objective:<22}" + "".join(f"{text:>15}" for text in found)
