"""What `--help` of a command prints: what it does, its flags, what its exit code means."""

import re
import textwrap
from collections.abc import Iterable

from absl import flags

_WIDTH, _INDENT = 100, 26
_EXIT_CODES = (
    "Exit codes: 0 done · 1 it failed, the last line says why · 2 wrong input, nothing was done ·\n"
    "130 interrupted · 143 terminated."
)
_OF_CONFIGS = "docs/config.md describes every field of a config."
_VALUES = {
    "batch": "FILE",
    "config": "FILE",
    "device_memory": "SIZE",
    "hf_dir": "DIR",
    "like": "DIR",
    "out": "DIR",
    "topology": "SLICE",
    "workdir": "DIR",
}


def text(docstring: str, shown: Iterable[flags.Flag]) -> str:
    """The help of a command.

    Args:
        docstring: of its module.
        shown: the flags that are its own; absl's and those of libraries are in `--helpfull`.
    """
    shown = sorted(shown, key=lambda flag: flag.name)
    parts = [textwrap.dedent(docstring).strip()]
    if "Exit codes:" not in docstring:
        parts.append(_EXIT_CODES)
    parts.append("Flags:\n" + "\n".join(map(_lines, shown)))
    if any(flag.name == "config" for flag in shown):
        parts.append(_OF_CONFIGS)
    return "\n\n".join(parts) + "\n"


def _lines(flag: flags.Flag) -> str:
    """A flag, what it takes, and what it is for."""
    words = re.sub(r"^<[^>]*>: ", "", " ".join((flag.help or "").split()))  # absl's own of an enum
    if flag.default is not None and flag.default is not False:
        words += f" Default: {flag.default}."
    head = f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}={_value(flag)}"
    indent = " " * _INDENT
    body = textwrap.fill(words, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return head.ljust(_INDENT) + body[_INDENT:] if len(head) < _INDENT else f"{head}\n{body}"


def _value(flag: flags.Flag) -> str:
    """What stands for a flag's value."""
    allowed = getattr(flag.parser, "enum_values", None)
    if allowed:
        return "|".join(allowed)
    return {"int": "N", "float": "X"}.get(flag.parser.flag_type(), _VALUES.get(flag.name, "TEXT"))
