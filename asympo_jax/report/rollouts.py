"""The readable samples that a run wrote, which is untrusted text."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_FILE = re.compile(r"update_(\d+)\.jsonl")
_TEXTS, _NUMBERS = ("prompt", "response", "stop"), ("ticket", "version", "lag", "tokens")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A response that was trained on.

    Attributes:
        update: number of updates done, the last of which trained on it.
        ticket: its prompt's.
        version: of the snapshot that drew it.
        lag: updates between the two.
        prompt: text, of whoever made the task.
        response: text of the model.
        reward: it got; NaN if it is not known.
        tokens: drawn.
        stop: why it stopped.
    """

    update: int
    ticket: int
    version: int
    lag: int
    prompt: str
    response: str
    reward: float
    tokens: int
    stop: str

    def as_json(self) -> str:
        """A line of plain data; nothing in it can steer a terminal."""
        data = dataclasses.asdict(self)
        return json.dumps(data | {"reward": self.reward if math.isfinite(self.reward) else None})


def files(workdir: pathlib.Path) -> dict[int, pathlib.Path]:
    """The files of samples by update, ascending."""
    matches = ((_FILE.fullmatch(p.name), p) for p in (workdir / "rollouts").glob("update_*.jsonl"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def read(update: int, path: pathlib.Path) -> tuple[list[Sample], int]:
    """The samples in a file, and how many lines are none."""
    try:
        # Not splitlines, which would also split at what JSON allows within a text.
        lines = path.read_text("utf-8", "replace").split("\n")
    except OSError:
        return [], 1
    found = [_sample(update, line) for line in lines if line.strip()]
    return [one for one in found if one is not None], found.count(None)


def first_and_last(workdir: pathlib.Path, num: int) -> list[list[Sample]]:
    """Up to `num` samples of the oldest and of the newest file that have any, best rewards first.

    Of each prompt the response with the highest and the one with the lowest reward come first.
    """
    found = []
    every = files(workdir)
    for order in (every, reversed(every)):
        samples = next(filter(None, (read(update, every[update])[0] for update in order)), [])
        found.append(list(_telling(samples))[:num])
    return [one for i, one in enumerate(found) if one and one not in found[:i]]


def _telling(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Prompt by prompt in turn: best response, worst response, then what is left."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.ticket, []).append(sample)
    ordered = [sorted(group, key=_rank, reverse=True) for group in groups.values()]
    yield from (group[0] for group in ordered)
    yield from (group[-1] for group in ordered if len(group) > 1)
    yield from (one for group in ordered for one in group[1:-1])


def _rank(sample: Sample) -> float:
    """The reward, lowest where it is not known."""
    return sample.reward if math.isfinite(sample.reward) else -math.inf


def _sample(update: int, line: str) -> Sample | None:
    """A line as a sample; None if it is none."""
    try:
        data: Mapping[str, Any] = json.loads(line)
        reward = data["reward"]
        texts = {name: data[name] for name in _TEXTS}
        numbers = {name: data[name] for name in _NUMBERS}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_usable = (
        (reward is None or isinstance(reward, int | float))
        and all(isinstance(text, str) for text in texts.values())
        and all(isinstance(number, int) for number in numbers.values())
    )
    if not is_usable:
        return None
    try:
        reward = math.nan if reward is None else float(reward)
    except OverflowError:
        return None
    return Sample(update=update, reward=reward, **texts, **numbers)
