"""The tokenizer and chat template of a Hugging Face directory, without the library transformers.

Decisions. What a person or a data set wrote stays text: a control token in it (`<|im_end|>`) is
encoded as its characters, while those that the chat template writes become control ids. Control
tokens are the special ones, those that end a response, and all that the template itself names, such
as `<think>`.
"""

import functools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from asympo_jax.hf_tokenizer.chat_template import compile_template, load_template, read_object

_CONFIG = "tokenizer_config.json"
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
# What a template may raise besides jinja2's own.
_TEMPLATE_ERRORS = (
    TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError
)  # fmt: skip
# Private-use characters, to break control tokens of a user with one that the user did not write.
_BREAKS = range(0xE000, 0xF8FF)


class HfTokenizer:
    """Text to ids and back as a Hugging Face directory says.

    Read are `tokenizer.json`; for the template `chat_template.jinja`, `chat_template.json` or
    `tokenizer_config.json`; for the ids that end a response `generation_config.json`, else
    `config.json`, else `tokenizer_config.json`.

    Args:
        directory: a local directory; nothing is downloaded.
        template_name: which template, where `tokenizer_config.json` has several.

    Raises:
        ValueError: a package or a file is missing or broken, no token ends a response, or the
            template is no template. The message names the file.
    """

    def __init__(self, directory: str | os.PathLike[str], template_name: str = "default"):
        tokenizers = _library()
        folder = pathlib.Path(directory).expanduser()
        self._folder = folder
        try:
            source = (folder / "tokenizer.json").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"tokenizer.json cannot be read: {error}") from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(source)
        except Exception as error:  # The library raises nothing narrower.
            raise ValueError(f"{folder / 'tokenizer.json'} is no tokenizer: {error}") from error
        # Otherwise a long prompt would be cut, or a short one padded, without a word.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings = read_object(folder / _CONFIG)
        model = read_object(folder / "config.json")
        generation = read_object(folder / "generation_config.json")
        self._named = {name: _token_text(settings.get(name)) for name in _NAMED_TOKENS}
        self._stop_ids = self._find_stop_ids(generation, model)
        self._pad_id = self._find_pad_id(generation, model)
        # A model can have rows for more ids than its tokenizer knows.
        rows = model.get("vocab_size")
        known = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._vocab_size = max(known, rows if isinstance(rows, int) else 0)
        text = load_template(folder, settings, template_name)
        self._template = None if text is None else compile_template(text, folder)
        self._control = self._find_control(text or "")
        self._control_ids = frozenset(self._control.values())

    @property
    def vocab_size(self) -> int:
        """Number of ids, at least `vocab_size` of the model's `config.json`."""
        return self._vocab_size

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a response, in the order of the file that names them."""
        return self._stop_ids

    @property
    def pad_id(self) -> int:
        """The id of padding; the first stop id where the directory names none."""
        return self._pad_id

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be called."""
        return self._template is not None

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none of them a control id."""
        self._tokenizer.encode_special_tokens = True
        # Some control tokens are not special to the library; no piece has a whole one.
        pieces = self._pieces(text)
        ids = [i for piece in pieces for i in self._encode(piece)]
        # A vocabulary of whole strings can have a control token as an ordinary piece.
        return [i for i in ids if i not in self._control_ids]

    def encode_prompt(self, text: str) -> list[int]:
        """The ids that a model is to go on from: `text` as what the user says.

        Without a chat template it is the text with whatever the tokenizer puts before one, such as
        a token for its begin.
        """
        if self._template is not None:
            return self.chat([{"role": "user", "content": text}])
        empty = self._tokenizer.encode("", add_special_tokens=True).ids
        before = [i for i in empty if i not in self._stop_ids or i == self._id("bos_token")][:1]
        return before + self.encode(text)

    def chat(self, messages: Sequence[Mapping[str, str]], **variables: Any) -> list[int]:
        """The ids of a conversation, ready for the assistant's answer.

        Args:
            messages: each with "role" and "content", both of them text that a user may have
                written.
            **variables: further variables of the template, such as `enable_thinking`.

        Raises:
            ValueError: there is no chat template, or it refuses the messages.
        """
        words = "".join(text for message in messages for text in message.values())
        if self._is_harmless(words):
            self._tokenizer.encode_special_tokens = False
            return self._encode(self.render(messages, **variables))
        # Broken before the template sees them, so that whole ones in its text are its own.
        gap = next(chr(code) for code in _BREAKS if chr(code) not in words)
        broken = [
            {key: gap.join(self._pieces(text)) for key, text in message.items()}
            for message in messages
        ]
        assert self._control_pattern is not None
        ids = []
        for i, part in enumerate(self._control_pattern.split(self.render(broken, **variables))):
            ids += [self._control[part]] if i % 2 else self.encode(part.replace(gap, ""))
        return ids

    def render(self, messages: Sequence[Mapping[str, str]], **variables: Any) -> str:
        """The text of a conversation as the template writes it, control tokens included.

        Raises:
            ValueError: there is no chat template, or it refuses the messages.
        """
        if self._template is None:
            raise ValueError(f"{self._folder} has no chat template")
        import jinja2

        given = {"messages": messages, "add_generation_prompt": True, **self._named, **variables}
        try:
            return self._template.render(**given)
        except (*_TEMPLATE_ERRORS, jinja2.TemplateError) as error:
            raise ValueError(f"the chat template of {self._folder} fails: {error}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens and unknown ids are left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def __reduce__(self) -> NoReturn:
        """Refused: a process reads the directory itself."""
        raise TypeError("an HfTokenizer is not pickled; make it anew from its directory")

    def _encode(self, text: str) -> list[int]:
        """The library's ids, none added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _is_harmless(self, words: str) -> bool:
        """Whether no control token can come out of a user's words."""
        if self._control_pattern is None:
            return True
        added = self._tokenizer.get_added_tokens_decoder()
        # These are looked for after characters were replaced by others that look like them.
        is_hidden = any(added[i].normalized for i in self._control_ids)
        return not is_hidden and not self._control_pattern.search(words)

    def _pieces(self, text: str) -> list[str]:
        """`text` cut within each control token, so that no piece has a whole one."""
        if self._control_pattern is None:
            return [text]
        pieces, start = [], 0
        while match := self._control_pattern.search(text, start):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        return [*pieces, text[start:]]

    @functools.cached_property
    def _control_pattern(self) -> re.Pattern[str] | None:
        """Finds control tokens, the longest first."""
        words = sorted(self._control, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, words)) + ")") if words else None

    def _find_control(self, template: str) -> dict[str, int]:
        """Control tokens and their ids."""
        return {
            token.content: i
            for i, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
            or i in self._stop_ids
            or (token.content.strip() and token.content in template)
        }

    def _find_stop_ids(self, *sources: Mapping[str, Any]) -> tuple[int, ...]:
        """The ids of the first source that names any."""
        for source in sources:
            found = source.get("eos_token_id")
            listed = found if isinstance(found, list) else [found]
            ids = [i for i in listed if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
            if ids:
                return tuple(dict.fromkeys(ids))
        end = self._id("eos_token")
        if end is None:
            raise ValueError(
                "no token ends a response: give eos_token_id "
                f"in generation_config.json or eos_token in {_CONFIG}"
            )
        return (end,)

    def _find_pad_id(self, *sources: Mapping[str, Any]) -> int:
        """The id of padding."""
        named = [self._id("pad_token"), *(source.get("pad_token_id") for source in sources)]
        ids = [i for i in named if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
        return ids[0] if ids else self._stop_ids[0]

    def _id(self, name: str) -> int | None:
        """The id of `eos_token` and the like."""
        text = self._named[name]
        return None if text is None else self._tokenizer.token_to_id(text)


def _library() -> Any:
    """The library tokenizers, on first use."""
    try:
        import jinja2  # noqa: F401
        import tokenizers
    except ImportError as error:
        raise ValueError(
            f"task.tokenizer_dir needs packages that are not installed ({error}): run "
            "`pip install -e '.[data]'` in the project's folder"
        ) from error
    return tokenizers


def _token_text(value: Any) -> str | None:
    """A token as `tokenizer_config.json` writes it: a text, or an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None
