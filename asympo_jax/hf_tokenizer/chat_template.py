"""Chat templates of Hugging Face directories, run in a sandbox: they are others' programs."""

import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NoReturn

_TODAY = datetime.datetime(2024, 7, 26)


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
    """The chat template of that name, None where the directory has none at all.

    Places, a later one before an earlier: `tokenizer_config.json`, `chat_template.json` (each has
    one text, named "default", or a list of named ones), `additional_chat_templates/NAME.jinja` and
    `chat_template.jinja`, which is the default.

    Raises:
        ValueError: a file is broken, or no template has that name.
    """
    texts = _named(folder, settings.get("chat_template"))
    texts |= _named(folder, read_object(folder / "chat_template.json").get("chat_template"))
    files = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    for key, path in files.items():
        try:
            texts[key] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    if texts and name not in texts:
        raise ValueError(f"{folder}: has no chat template {name!r}, but {sorted(texts)}")
    return texts.get(name)


def _named(folder: pathlib.Path, found: Any) -> dict[str, str]:
    """The templates in an entry of JSON by their names."""
    match found:
        case None:
            return {}
        case str():
            return {"default": found}
    try:
        named = {entry["name"]: entry["template"] for entry in found}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder}: chat_template is neither a text nor a list of them") from error
    if not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise ValueError(f"{folder}: a name or a template in the list chat_template is no text")
    return named


def compile_template(text: str, folder: pathlib.Path) -> Any:
    """The template with what such templates expect to find.

    Today is always the day that templates fall back to without a clock: a prompt must not change
    while a run goes on.
    """
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
    environment.globals["strftime_now"] = _TODAY.strftime
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template of {folder} is not a template: {error}") from error
