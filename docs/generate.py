"""Writes the pages that are made from the code: docs/config.md and docs/api.md.

    python docs/generate.py

What a field means is said by the dataclass that it becomes, and what a function does by its
docstring; here is only where to look. A field without words, or a name that is exported and not
described, ends it with a sentence.
"""

import importlib
import inspect
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from asympo_jax import objectives, sections, settings
from asympo_jax.defaults import default_config
from asympo_jax.learning import OptimizerConfig, WarmupConfig
from asympo_jax.models import LoraConfig, ModelConfig
from asympo_jax.outputs import CheckpointConfig, LogConfig
from asympo_jax.runtime.tickets import Pacing
from asympo_jax.tasks.arithmetic import Arithmetic
from asympo_jax.tasks.countdown import Countdown
from asympo_jax.tasks.gsm8k import Gsm8k
from asympo_jax.tasks.math import Math

_HERE = pathlib.Path(__file__).parent
_RUN = settings.ExperimentConfig
# Where each section's fields are described, the first that has them counts.
_DESCRIBED: Mapping[str, tuple[Any, ...]] = {
    "": (_RUN, Pacing),
    "objective": (objectives.Objective,),
    "advantage": (objectives.group_advantages,),
    "task": (Arithmetic, Countdown, Gsm8k, Math),
    "reward": (sections.RewardConfig,),
    "model": (ModelConfig, _RUN),
    "lora": (LoraConfig,),
    "optimizer": (OptimizerConfig,),
    "learner": (sections.LearnerConfig,),
    "sampler": (sections.SamplerConfig,),
    "queue": (),
    "warmup": (WarmupConfig,),
    "eval": (sections.EvalConfig,),
    "checkpoint": (CheckpointConfig,),
    "log": (LogConfig,),
    "runtime": (_RUN,),
}
# Fields that go by another name in the dataclasses.
_OTHER_NAMES = {
    "queue.capacity": (_RUN, "queue_capacity"),
    "runtime.name": (_RUN, "runtime_name"),
    "task.name": (_RUN, "task_name"),
    "warmup.dir": (_RUN, "warmup_dir"),
    "warmup.seed": (_RUN, "init_seed"),
}
_OBJECTIVE_NAME = (
    "one of [the objectives](objectives.md), or the import path of [your own](your_own.md)"
)
_CANDIDATES = (
    "prompts sampled for an update, of which it trains on `prompts_per_update` whose rewards "
    "differ (dynamic sampling); unset for as many"
)
_INTRODUCTION = """# Every field of a config

Made from the code by `python docs/generate.py`.

A config is a Python file with `get_config`, such as `configs/arithmetic.py`, which changes what it
wants of these defaults; `--config.FIELD=VALUE` changes one more, `--config.sampler.count=2`. A
field that is *unset* has no value until it is given one: the words say what holds without it.
Whatever is out of range, unknown, or would have no effect is refused before anything starts, in a
sentence that names the field, its value and what is allowed.
"""
_API_INTRODUCTION = """# The public names

Made from the code by `python docs/generate.py`.

What is listed here is kept stable; other modules may change with any version. The whole docstring
is at the name itself: `help(objectives.policy_loss)`.
"""
_PACKAGES = ("objectives", "models", "tasks")
# What a task, an objective or a config of one's own also needs.
_MORE = {
    "tokenizers": ("CharTokenizer", "Tokenizer"),
    "types": ("Prompt",),
    "objectives.masked": ("masked", "masked_mean", "response_mean"),
    "config": ("default_config", "resolve"),
    "runtime.metrics": ("read_metrics",),
}


def config_page() -> str:
    """`docs/config.md`.

    Raises:
        ValueError: a field without a description.
    """
    parts = [_INTRODUCTION]
    defaults: Any = default_config()
    plain = {name: value for name, value in defaults.items() if not _is_section(value)}
    tables = {name: dict(defaults[name].items()) if name else plain for name in _DESCRIBED}
    missing = set(defaults) - set(plain) - set(tables)
    if missing:
        raise ValueError(
            f"docs/generate.py does not know where the sections {missing} are described"
        )
    for section, fields in tables.items():
        title = f"`{section}`" if section else "The run"
        rows = [_row(section, name, value) for name, value in fields.items()]
        parts.append(
            f"## {title}\n\n| field | default | what it is |\n|---|---|---|\n" + "".join(rows)
        )
    return "\n".join(parts)


def api_page() -> str:
    """`docs/api.md`.

    Raises:
        ValueError: a public name without a docstring.
    """
    parts = [_API_INTRODUCTION]
    for package in _PACKAGES:
        module = importlib.import_module(f"asympo_jax.{package}")
        parts.append(_names(module, module.__all__))
    for path, names in _MORE.items():
        parts.append(_names(importlib.import_module(f"asympo_jax.{path}"), names))
    return "\n".join(parts)


def described(holder: Any) -> dict[str, str]:
    """What the Attributes or Args of a docstring say, by name."""
    found: dict[str, str] = {}
    text = inspect.getdoc(holder) or ""
    for block in re.findall(r"^(?:Attributes|Args):\n((?:(?:    .*)?\n?)*)", text, re.M):
        for entry in re.findall(r"^    (\w+): ((?:.*)(?:\n {8}.*)*)", block, re.M):
            found.setdefault(entry[0], " ".join(entry[1].split()))
    return found


def _is_section(value: Any) -> bool:
    """Whether a value of a config has fields of its own."""
    return isinstance(value, ml_collections.ConfigDict)


def _row(section: str, name: str, value: Any) -> str:
    """A line of a table."""
    field = f"{section}.{name}" if section else name
    words = _words(section, name, field)
    if not words:
        raise ValueError(
            f"the field {field} has no description where docs/generate.py looks for one"
        )
    default = "unset" if value is None else f"`{value!r}`"
    words = re.sub(r"\bNone for", "unset for", words).replace(". unset", ". Unset")
    cell = words.rstrip(".").replace("|", "\\|")
    return f"| `{field}` | {default} | {cell} |\n"


def _words(section: str, name: str, field: str) -> str:
    """What a field is."""
    if field in _OTHER_NAMES:
        holder, other = _OTHER_NAMES[field]
        return described(holder)[other]
    if field == "objective.name":
        return _OBJECTIVE_NAME
    if field == "candidates_per_update":
        return _CANDIDATES
    found = [(holder, described(holder)) for holder in _DESCRIBED[section]]
    if section == "task":
        said = [
            (f"`{holder.__name__.lower()}`", words[name])
            for holder, words in found
            if name in words
        ]
        return _by_whom(said)
    if section == "objective" and name not in described(objectives.Objective):
        return _by_whom(list(_option(name)))
    return next((words[name] for _, words in found if name in words), "")


def _option(name: str) -> Iterator[tuple[str, str]]:
    """The objectives that have an option, and what each says of it."""
    for objective in objectives.names():
        for function in weights_of(objective):
            parameter = options_of(function).get(name)
            if parameter is not None:
                words = described(getattr(function, "func", function))[name].rstrip(".")
                yield f"`{objective}`", f"{words} (default {parameter.default:g})"


def weights_of(name: str) -> Iterator[Callable[..., Any]]:
    """The functions of an objective that have options."""
    objective = objectives.make(name)
    for function in (objective.weight, objective.advantage):
        if options_of(function):
            yield function


def options_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a weight or an advantage: what comes after its first parameter."""
    return dict(list(inspect.signature(function).parameters.items())[1:])


def _by_whom(said: list[tuple[str, str]]) -> str:
    """Who has an option and what it is there, those who say the same together."""
    whom: dict[str, list[str]] = {}
    for name, words in said:
        whom.setdefault(words, []).append(name)
    return "; ".join(f"of {', '.join(names)}: {words.rstrip('.')}" for words, names in whom.items())


def _names(module: Any, names: Any) -> str:
    """The section of a module."""
    lines = []
    for name in sorted(names):
        thing = getattr(module, name)
        thing = inspect.unwrap(thing)  # of what jax.jit made of it
        is_code = thing is not Any and (inspect.isclass(thing) or inspect.isfunction(thing))
        words = (inspect.getdoc(thing) or "").partition("\n\n")[0] if is_code else _of_type(thing)
        if not words:
            raise ValueError(f"{module.__name__}.{name} is public and has no docstring")
        kind = "value" if not is_code else "class" if inspect.isclass(thing) else "function"
        signature = (
            f"({', '.join(inspect.signature(thing).parameters)})" if kind == "function" else ""
        )
        cell = " ".join(words.split()).replace("|", "\\|")
        lines.append(f"| `{name}{signature}` | {kind} | {cell} |\n")
    head = (
        f"## `{module.__name__}`\n\n{(module.__doc__ or '').partition(chr(10) * 2)[0].strip()}\n\n"
    )
    return f"{head}| name | kind | what it is |\n|---|---|---|\n{''.join(lines)}"


def _of_type(thing: Any) -> str:
    """The words of a type or a constant, which has no docstring of its own."""
    if isinstance(thing, Mapping):
        return ", ".join(f"`{name}`" for name in thing)
    return f"`{thing}`".replace("typing.", "").replace("jaxtyping.", "")


def main() -> None:
    """Writes both pages."""
    (_HERE / "config.md").write_text(config_page(), encoding="utf-8")
    (_HERE / "api.md").write_text(api_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
