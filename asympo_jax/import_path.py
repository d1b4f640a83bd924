"""Finds what a user wrote by its import path, `my_module:my_object`."""

import importlib
from collections.abc import Callable
from typing import Any


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
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(
            f"{field}={path!r}: cannot be imported ({type(error).__name__}: {error}); its folder "
            "must be the current one or on PYTHONPATH"
        ) from error
    if not is_kind(found):
        raise ValueError(f"{field}={path!r}: must be {kind}")
    return found
