"""What the command lines share: flags, the config, and errors as one sentence with an exit code.

Exit codes: 0 done · 1 the run failed · 2 wrong input, nothing was started · 3 a loss, a gradient or
parameters are no longer finite · 75 asked to end by SIGTERM or SIGHUP, and everything is saved, or
another command has the workdir · 130 interrupted · 143 terminated before it could save. After 1,
75, 130 and 143 the same command carries on from the last checkpoint.
"""

import contextlib
import difflib
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from asympo_jax import config as config_module
from asympo_jax import help_text, interrupts
from asympo_jax.defaults import default_config
from asympo_jax.endings import INTERRUPTED, REFUSED, STOPPED, TERMINATED, RunFailed
from asympo_jax.progress import say

_DEFAULT_CONFIG = config_module.__file__
_CONFIG_FLAG = "config"
_HELP = ("--help", "-help", "-h", "--helpshort")
# What absl, or Python, says of a flag's value of a wrong type -> what it must be.
_KINDS = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "true or false",
}

_CONFIG_HELP = (
    "Config file, such as configs/arithmetic.py, or the config.json of a run; without it, the "
    "default config. --config.FIELD=VALUE sets a field, as --config.lag=64."
)


def define_config_flag(help_text: str = _CONFIG_HELP) -> flags.FlagHolder:
    """`--config=FILE.py`, or the `config.json` of a run; fields by `--config.field=value`."""
    return config_flags.DEFINE_config_file(_CONFIG_FLAG, None, help_text)


def config_is_given() -> bool:
    """Whether the command line names a config or sets a field of one."""
    return any(re.match(rf"--?{_CONFIG_FLAG}(=|\.|$)", argument) for argument in sys.argv[1:])


def fields_given() -> dict[str, Any]:
    """Dotted names of the config's fields that the command line sets, and their values.

    Raises:
        ValueError: it names a config, too, where there is one already.
    """
    if any(re.match(rf"--?{_CONFIG_FLAG}(=|$)", argument) for argument in sys.argv[1:]):
        raise ValueError(f"--{_CONFIG_FLAG}: the run has its own config, set single fields alone")
    pattern = rf"--?{_CONFIG_FLAG}\.([\w.]+)"
    matches = (re.match(pattern, argument) for argument in sys.argv[1:])
    given = {}
    for name in (match[1] for match in matches if match):
        value: Any = flags.FLAGS[_CONFIG_FLAG].value
        for part in name.split("."):
            value = value[part]
        given[name] = value
    return given


def run(main: Callable[[], None], advice: str = interrupts.CARRIES_ON) -> None:
    """Parses the flags, calls `main`, and ends the process with its exit code.

    Args:
        main: the program.
        advice: to the person who stopped it, until the program advises otherwise.
    """
    app.run(lambda _: _guard(main, advice), flags_parser=_parse)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Within it a `ValueError` is a person's wrong input: one sentence, exit code 2."""
    try:
        yield
    except ValueError as error:
        _end(str(error), REFUSED)


def tell(text: str) -> None:
    """Writes a result to standard output; to nobody if that is closed or full."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        sys.stdout.write(text)
        sys.stdout.flush()


def directory(flag: flags.FlagHolder) -> pathlib.Path:
    """The directory that a flag names.

    Raises:
        ValueError: the flag is empty, as from a variable that is not set.
    """
    if not flag.value:
        raise ValueError(f"--{flag.name} is empty")
    return pathlib.Path(flag.value)


def _end(message: str, code: int) -> NoReturn:
    """Prints one sentence and ends the process."""
    say(f"error: {' '.join(message.split())}")
    sys.exit(code)


def _leave(message: str, code: int) -> NoReturn:
    """Prints one sentence and is gone, whatever other threads are at.

    Python's own end would wait for one that writes to a disk that hangs, and pull the ground from
    under one that compiles.
    """
    say(f"error: {' '.join(message.split())}")
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or None
        sys.stdout.flush()
    os._exit(code)


def _guard(main: Callable[[], None], advice: str) -> None:
    """Turns what broke a run into a sentence and an exit code."""
    interrupts.install(advice)
    try:
        main()
    except RunFailed as error:
        _leave(str(error), error.exit_code)
    except interrupts.Terminated:
        _leave(
            f"terminated; {interrupts.advice()}", STOPPED if interrupts.is_saved() else TERMINATED
        )
    except KeyboardInterrupt:
        _leave(f"interrupted; {interrupts.advice()}", INTERRUPTED)


def _parse(arguments: list[str]) -> list[str]:
    """Parses flags; whatever is wrong with them is one sentence."""
    if any(argument in _HELP for argument in arguments[1:]):
        shown = flags.FLAGS.get_key_flags_for_module(arguments[0])
        tell(help_text.text(sys.modules["__main__"].__doc__ or "", shown))
        sys.exit(0)
    has_config = _CONFIG_FLAG in flags.FLAGS
    own_options: dict[str, str] = {}
    with refusals():
        if has_config:
            arguments, own_options = _own_options(_with_config(arguments))
    try:
        with _as_argv(arguments):
            rest = flags.FLAGS(arguments)
        if has_config:
            flags.FLAGS.config.to_dict()  # a file that cannot be loaded fails here
            _set_own_options(flags.FLAGS.config, own_options)
    except SystemExit:  # after printing its help absl ends with 1, as if something had failed
        sys.exit(0)
    except (AttributeError, KeyError) as error:
        _end(_unknown_field(str(error)), REFUSED)
    except flags.Error as error:
        _end(_flag_words(str(error)), REFUSED)
    except Exception as error:  # a user's config file may raise anything
        _end(f"--{_CONFIG_FLAG}: {type(error).__name__}: {error}", REFUSED)
    if len(rest) > 1:
        _end(f"unknown arguments: {' '.join(rest[1:])!r}", REFUSED)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # libraries tell every step of theirs at INFO
    return rest


@contextlib.contextmanager
def _as_argv(arguments: list[str]) -> Iterator[None]:
    """Within it `sys.argv` is these arguments: ml_collections looks for fields there."""
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


def _unknown_field(message: str) -> str:
    """What ml_collections says of a field that is not there, as a sentence."""
    found = re.search(r"lookup: ([\w.]+)", message) or re.search(r"(\w[\w.]*)", message)
    name = found[1] if found else message
    fields: dict[str, list[str]] = {}  # by their last word
    for section, value in default_config().to_dict().items():
        fields.setdefault(section, []).append(repr(section))
        for field in value if isinstance(value, dict) else ():
            fields.setdefault(field, []).append(repr(f"{section}.{field}"))
    near = difflib.get_close_matches(name.rpartition(".")[2], fields, n=1, cutoff=0.7)
    meant = f" (did you mean {' or '.join(fields[near[0]])}?)" if near else ""
    return f"the config has no field {name!r}{meant}; docs/config.md lists all fields"


def _flag_words(message: str) -> str:
    """What absl says of a wrong flag, as a sentence."""
    if "Traceback" in message:  # of a config file; its last line says why
        return re.sub(r"^[\w.]+: ", "", message.strip().splitlines()[-1])
    wrong = re.match(r"flag --([\w.]+)=(.*?): (.*)", message, re.S)
    kinds = [kind for reason, kind in _KINDS.items() if wrong and reason in wrong[3]]
    if wrong and kinds:
        is_field = wrong[1].startswith(f"{_CONFIG_FLAG}.")
        name = wrong[1].partition(".")[2] if is_field else f"--{wrong[1]}"
        return f"{name}={wrong[2]!r}: must be {kinds[0]}"
    required = re.search(r"Flag --(\w+) must have a value other than None", message)
    if required:
        return f"--{required[1]} is required"
    unknown = re.search(r"Unknown command line flag '(\w+)", message)
    defaults: Any = default_config()
    if unknown and unknown[1] in defaults:
        return f"there is no flag --{unknown[1]}; the field of the config is --config.{unknown[1]}"
    return message


def _own_options(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without those that set options of a user's own objective or task, and those."""
    defaults: Any = default_config()
    kept, own = [], {}
    for argument in arguments:
        match = re.fullmatch(rf"--?{_CONFIG_FLAG}\.(objective|task)\.(\w+)=(.*)", argument, re.S)
        if match and match[2] not in defaults[match[1]]:
            own[f"{match[1]}.{match[2]}"] = match[3]
        else:
            kept.append(argument)
    return kept, own


def _set_own_options(config: Any, options: Mapping[str, str]) -> None:
    """Sets options that the default config does not have: numbers, true, false, or text."""
    for field, text in options.items():
        section, name = field.split(".")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        with config[section].unlocked():
            config[section][name] = value


def _with_config(arguments: list[str]) -> list[str]:
    """Arguments with the default config if none is named.

    `--config=X.json` becomes `--config=DEFAULT.py:X.json`, whose `get_config` reads it.
    """
    program, *rest = arguments
    bare = [
        i
        for i, argument in enumerate(rest[:-1])
        if argument in (f"--{_CONFIG_FLAG}", f"-{_CONFIG_FLAG}")
    ]
    for i in reversed(bare):
        rest[i : i + 2] = [f"--{_CONFIG_FLAG}={rest[i + 1]}"]
    rest = [_checked_file(_through_default(argument)) for argument in rest]
    named = any(re.match(rf"--?{_CONFIG_FLAG}(=|$)", argument) for argument in rest)
    return [program, *([] if named else [f"--{_CONFIG_FLAG}={_DEFAULT_CONFIG}"]), *rest]


def _through_default(argument: str) -> str:
    """A config in JSON as an argument of the default config's file."""
    name, separator, value = argument.partition("=")
    if name.lstrip("-") == _CONFIG_FLAG and separator and value.endswith(".json"):
        return f"--{_CONFIG_FLAG}={_DEFAULT_CONFIG}:{value}"
    return argument


def _checked_file(argument: str) -> str:
    """An argument whose config file is there.

    Raises:
        ValueError: it is not.
    """
    name, _, value = argument.partition("=")
    path = value.partition(":")[0]
    if name.lstrip("-") == _CONFIG_FLAG and not pathlib.Path(path).is_file():
        raise ValueError(f"--{_CONFIG_FLAG}={value}: {path!r} is not a file")
    return argument
