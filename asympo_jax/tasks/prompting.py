"""The words around a problem, and the tokenizer that a config names for a task."""

import re

from asympo_jax.hf_tokenizer import HfTokenizer

_FIELD = re.compile(r"\{([a-z]+)\}")


def check_template(template: str, *fields: str) -> str:
    """The template itself.

    Raises:
        ValueError: it lacks one of the fields, such as "problem" in braces.
    """
    for field in fields:
        if f"{{{field}}}" not in template:
            raise ValueError(f"task.template={template!r:.200}: must hold {{{field}}}")
    return template


def fill(template: str, **values: str) -> str:
    """The template with each `{name}` replaced once; other braces stay, as LaTeX needs them."""
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), template)


def load_tokenizer(tokenizer_dir: str) -> HfTokenizer:
    """The tokenizer of a Hugging Face directory.

    Raises:
        ValueError: it cannot be read; the message names `task.tokenizer_dir`.
    """
    if not tokenizer_dir:
        raise ValueError(
            "task.tokenizer_dir is not set: must be a local directory with the tokenizer.json of a "
            "model; the configs of real models take it from model.hf_dir, so set that"
        )
    try:
        return HfTokenizer(tokenizer_dir)
    except ValueError as error:
        raise ValueError(f"task.tokenizer_dir={tokenizer_dir!r}: {error}") from error
