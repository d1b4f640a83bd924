"""Chat templates of Hugging Face directories, run in a sandbox: they are others' programs."""

import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NoReturn


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no such file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data


def load_template(folder: pathlib.Path, settings: Mapping[str, Any], name: str) -> str | None:
    """The chat template; a file of its own comes before `tokenizer_config.json`."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = read_object(folder / "chat_template.json").get("chat_template")
    found = settings.get("chat_template") if found is None else found
    if found is None or isinstance(found, str):
        return found
    try:
        named = {entry["name"]: entry["template"] for entry in found}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder}: chat_template is neither a text nor a list of them") from error
    if not isinstance(named.get(name), str):
        raise ValueError(f"{folder}: has no chat template {name!r}, but {sorted(map(str, named))}")
    return named[name]


def compile_template(text: str, folder: pathlib.Path) -> Any:
    """The template with what such templates expect to find."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template of {folder} is not a template: {error}") from error
