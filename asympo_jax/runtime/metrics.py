"""Metrics and rollouts on disk: JSON lines always, TensorBoard events if asked.

`update` is the x-axis of everything.
"""

import collections
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asympo_jax.tokenizers import Tokenizer
from asympo_jax.types import Group, StopReason


class MetricsRefused(ValueError):
    """A file of metrics that cannot be read."""


class MetricsWriter:
    """Appends to `metrics.jsonl` in a run's directory.

    Args:
        workdir: the run's directory.
        resumed_at: the update from which the run carries on; later lines of an earlier attempt are
            dropped, so every update and every evaluation stands there once.
        tensorboard: whether to write events, too.
    """

    def __init__(self, workdir: pathlib.Path, resumed_at: int, tensorboard: bool):
        """Opens the files."""
        path = workdir / "metrics.jsonl"
        if path.exists():
            # A run that starts again from nothing writes its update 0 again, too.
            kept = [x for x in read_metrics(path) if resumed_at and x["update"] <= resumed_at]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(partial, path)
        self._file = path.open("a", buffering=1)
        self._events = _events_writer(workdir, resumed_at) if tensorboard else None

    def write(
        self,
        update: int,
        metrics: Mapping[str, float],
        histograms: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """One line: the metrics after `update` updates. Values that are not finite become null.

        Args:
            update: number of updates done.
            metrics: name -> value.
            histograms: name -> values, of which the line has the counts.
        """
        values = {name: float(value) for name, value in metrics.items()}
        counts = {
            name: {str(value): count for value, count in sorted(collections.Counter(all_).items())}
            for name, all_ in (histograms or {}).items()
        }
        self._file.write(json.dumps({"update": update, **as_written(values), **counts}) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, update)
            for name, all_ in (histograms or {}).items():
                self._events.add_histogram(name, np.asarray(all_), update)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def as_written(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as a line has them: seven digits, None for what is not finite."""
    return {n: float(f"{v:.7g}") if math.isfinite(v) else None for n, v in metrics.items()}


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """What a `metrics.jsonl` says of each update, in order of updates.

    An evaluation comes in later than its update and has a line of its own; the lines of an update
    are put together. A last line cut short by a crash is left out.

    Raises:
        MetricsRefused: another line is no JSON object with an `update`.
    """
    lines: dict[int, dict[str, Any]] = {}
    texts = path.read_text(errors="replace").splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            update = int(line["update"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(texts):
                break
            raise MetricsRefused(
                f"{path} line {number}: is no metrics line ({error!r:.80})"
            ) from error
        lines.setdefault(update, {}).update(line)
    return [lines[update] for update in sorted(lines)]


def write_rollouts(
    path: pathlib.Path,
    groups: Sequence[Group],
    version: int,
    tokenizer: Tokenizer,
) -> None:
    """Readable samples, a JSON line a response: prompt, response, reward, lag, why it stopped."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for group in groups:
            prompt = tokenizer.decode(group.prompt_S.tolist())
            for member, length in enumerate(group.length_G):
                line = {
                    "ticket": group.ticket,
                    "version": group.version,
                    "lag": version - group.version,
                    "prompt": prompt,
                    "response": tokenizer.decode(group.response_GT[member, :length].tolist()),
                    "reward": round(float(group.reward_G[member]), 6),
                    "tokens": int(length),
                    "stop": StopReason(group.stop_G[member]).name.lower(),
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _events_writer(workdir: pathlib.Path, resumed_at: int) -> Any:
    """TensorBoard's writer; imported here because it is slow to load."""
    import tensorboardX

    return tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_at + 1)
