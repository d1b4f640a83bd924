"""Finds what a user wrote by its import path, `my_module:my_object`."""

import importlib
from collections.abc import Callable
from typing import Any

from asympo_jax import nearest


def load(field: str, path: str, kind: str, is_kind: Callable[[Any], bool]) -> Any:
    """The object at an import path.

    Args:
        field: the field of the config that names it.
        path: module and attribute with a colon between them.
        kind: what it must be, in words.
        is_kind: whether an object is that.

    Raises:
        ValueError: it cannot be imported, or is something else.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        kind_of_error = type(error).__name__
        if _is_absent(module_name, error):
            raise ValueError(
                f"{field}={path!r}: cannot be imported ({kind_of_error}: {error}); its folder must "
                "be the current one or on PYTHONPATH"
            ) from error
        raise ValueError(
            f"{field}={path!r}: cannot be imported ({kind_of_error}: {error})"
        ) from error
    if not hasattr(module, attribute):
        file = getattr(module, "__file__", None) or module_name
        near = nearest.hint(attribute, vars(module))
        raise ValueError(f"{field}={path!r}: {file} has no {attribute!r}{near}")
    found = getattr(module, attribute)
    if not is_kind(found):
        raise ValueError(f"{field}={path!r}: must be {kind}")
    return found


def _is_absent(module_name: str, error: Exception) -> bool:
    """Whether the module itself was not found, and not one that it imports."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")
