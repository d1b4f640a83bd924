"""What runs are called and how they are coloured, the same in every picture."""

import collections
import itertools
from collections.abc import Sequence
from typing import Any

from asympo_jax.report.records import Run

_HEADS, _TAIL = (7, 14, 21), 16  # characters that are kept of a long label

# The Okabe-Ito colours, which the colour-blind can tell apart, but for its pale yellow.
_BLUE, _VERMILLION, _GREEN, _ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
_PURPLE, _SKY, _GREY = "#CC79A7", "#56B4E9", "#7F7F7F"
# Related objectives, which share panels; there each has a colour of its own.
FAMILIES = {
    "Current policy only": {
        "reinforce": _VERMILLION,
        "gpg": _PURPLE,
        "spo": _GREEN,
        "asympo": _BLUE,
        "asymre": _ORANGE,
        "w_reinforce": _SKY,
    },
    "Clipped ratios": {
        "grpo": _ORANGE,
        "dr_grpo": _GREY,
        "dapo": _VERMILLION,
        "gspo": _PURPLE,
        "aspo": _SKY,
        "decoupled_ppo": _GREEN,
    },
    "Capped or masked ratios": {
        "tis": _VERMILLION,
        "cispo": _PURPLE,
        "topr": _GREEN,
        "m2po": _SKY,
    },
}
_CURRENT_ONLY = FAMILIES["Current policy only"]
_COLOUR_OF_OBJECTIVE = {
    name: colour for family in FAMILIES.values() for name, colour in family.items()
}
_PALEST = 0.5


def needs_behaviour(objective: str) -> bool | None:
    """Whether it reads behaviour log-probs; None of one not of this package."""
    return objective not in _CURRENT_ONLY if objective in _COLOUR_OF_OBJECTIVE else None


def colour(objective: str) -> str:
    """The colour of an objective; grey of one not of this package."""
    return _COLOUR_OF_OBJECTIVE.get(objective, _GREY)


def colours(runs: Sequence[Run]) -> list[str]:
    """The colour of each run's objective; runs that share it get paler the smaller their lag."""
    names = [run.settings["objective.name"] for run in runs]
    return shades(names, [(run.settings["lag"], -run.settings["seed"]) for run in runs])


def shades(objectives: Sequence[str], ranks: Sequence[Any]) -> list[str]:
    """The colours of objectives; those that share one get paler the smaller their rank."""
    base = [colour(name) for name in objectives]
    found = list(base)
    for one in set(base):
        alike = [i for i, its in enumerate(base) if its == one]
        alike.sort(key=lambda i: ranks[i])
        for rank, i in enumerate(reversed(alike)):
            found[i] = _mixed(one, 255, (1 - _PALEST) * rank / max(1, len(alike) - 1))
    return found


def faint_colour(line: str) -> str:
    """A paler one, for a line that is only there for comparison."""
    return _mixed(line, 255, 0.55)


def text_colour(line: str) -> str:
    """A darker shade, for letters in the colour of a line."""
    return _mixed(line, 0, 0.25)


def labels(runs: Sequence[Run]) -> list[str]:
    """The objective and whatever else tells the runs apart; where nothing does, their names."""
    found = _short([run.settings["objective.name"] for run in runs])
    others = {
        ", {}": _short([run.settings["task.name"] for run in runs]),
        ", lag {}": [run.settings["lag"] for run in runs],
        ", {} order": [run.settings["order"] for run in runs],
        ", seed {}": [run.settings["seed"] for run in runs],
    }
    for words, values in others.items():
        if len(set(values)) > 1:
            found = [
                label + words.format(value) for label, value in zip(found, values, strict=True)
            ]
    return found if len(set(found)) == len(found) else [run.name for run in runs]


def shortened(labels: Sequence[str]) -> list[str]:
    """Labels that fit beside a panel, cut in their middles no more than tells them apart."""
    cut: list[str] = []
    for head in _HEADS:
        cut = [
            label if len(label) <= head + 1 + _TAIL else f"{label[:head]}…{label[-_TAIL:]}"
            for label in labels
        ]
        if len(set(cut)) == len(set(labels)):
            break
    return cut


def title(runs: Sequence[Run]) -> str:
    """Which objectives on which tasks."""
    names = list(dict.fromkeys(_short([run.settings["objective.name"] for run in runs])))
    tasks = " and ".join(dict.fromkeys(_short([run.settings["task.name"] for run in runs])))
    count = f"{len(runs)} runs: " if len(runs) > len(names) else ""
    if len(names) > 4:
        return f"{len(runs)} runs of {len(names)} objectives on {tasks}"
    return f"{count}{', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]} on {tasks}"


def subtitle(runs: Sequence[Run]) -> str:
    """The settings: how stale the samples are, how much is trained."""

    def values(field: str) -> str:
        found = sorted({run.settings[field] for run in runs})
        return ", ".join(map(str, found)) if len(found) <= 4 else f"{found[0]} to {found[-1]}"

    return (
        f"lag {values('lag')}, {values('order')} order, seed {values('seed')}"
        f" · {values('num_updates')} updates of {values('prompts_per_update')} prompts"
        f" × {values('group_size')} responses"
    )


def _short(names: Sequence[str]) -> list[str]:
    """Import paths without their modules, unless that is the name of something else, too."""
    last = {name: name.rpartition(":")[2] for name in names}
    of_package = itertools.chain(*FAMILIES.values())
    counts = collections.Counter([*last.values(), *of_package])
    return [last[name] if counts[last[name]] == 1 else name for name in names]


def _mixed(its: str, shade: int, share: float) -> str:
    """`#RRGGBB` mixed with a share of black (0) or white (255)."""
    parts = (int(its[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (shade - part)):02X}" for part in parts)
