"""What the command lines share: flags, the config, and errors as one sentence with an exit code.

Exit codes: 0 done · 1 the run failed · 2 wrong input, nothing was started · 130 interrupted.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from asympo_jax import config as config_module
from asympo_jax.training import RunFailed

_DEFAULT_CONFIG = config_module.__file__


def define_config_flag() -> flags.FlagHolder:
    """`--config=FILE.py`, or the `config.json` of a run; fields by `--config.field=value`."""
    return config_flags.DEFINE_config_file(
        "config",
        _DEFAULT_CONFIG,
        "A config file, or the config.json of a run. Fields are set by --config.FIELD=VALUE.",
    )


def run(main: Callable[[], None]) -> None:
    """Parses the flags, calls `main`, and ends the process with its exit code."""
    app.run(lambda _: _guard(main), flags_parser=_parse)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Within it a `ValueError` is a person's wrong input: one sentence, exit code 2."""
    try:
        yield
    except ValueError as error:
        _end(str(error), 2)


def _end(message: str, code: int) -> NoReturn:
    """Prints one sentence and ends the process."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(code)


def _guard(main: Callable[[], None]) -> None:
    """Turns what broke a run into a sentence and an exit code."""
    try:
        main()
    except RunFailed as error:
        _end(str(error), 1)
    except KeyboardInterrupt:
        _end("interrupted; the same command carries on from the last checkpoint", 130)


def _parse(arguments: list[str]) -> list[str]:
    """Parses flags; a `--config=….json` is read through the default config."""
    try:
        rest = flags.FLAGS([_through_default(argument) for argument in arguments])
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _end(str(error), 2)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # libraries tell every step of theirs at INFO
    return rest


def _through_default(argument: str) -> str:
    """`--config=X.json` as `--config=DEFAULT.py:X.json`, whose `get_config` reads it."""
    name, separator, value = argument.partition("=")
    if name.lstrip("-") == "config" and separator and value.endswith(".json"):
        return f"--config={_DEFAULT_CONFIG}:{value}"
    return argument
