"""Text to token ids and back.

Every tokenizer here has the ids `pad_id` 0 (never drawn on purpose, never scored) and one or more
stop ids; encoding never adds special tokens by itself.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, Self

# The control tokens of a `BpeTokenizer`, in the order of their ids.
_CONTROL_TOKENS = ("<|pad|>", "<|end|>")


class Tokenizer(Protocol):
    """What the rest of the system needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; ids are 0 … vocab_size − 1."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a response; the first one is appended to demonstrations."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """The ids that a model is to go on from, with what a chat template puts around `text`."""
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are left out."""
        ...


class CharTokenizer(Tokenizer):
    """One id a character: 0 is padding, 1 ends a response, characters follow.

    Args:
        alphabet: the characters, without repeats.
    """

    def __init__(self, alphabet: str):
        if len(set(alphabet)) != len(alphabet):
            raise ValueError(f"alphabet must not repeat characters, got {alphabet!r}")
        self._alphabet = alphabet
        self._ids = {character: i + 2 for i, character in enumerate(alphabet)}

    @property
    def vocab_size(self) -> int:
        """Characters plus padding and stop."""
        return len(self._alphabet) + 2

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The one stop id, 1."""
        return (1,)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`.

        Raises:
            ValueError: a character outside the alphabet.
        """
        unknown = sorted(set(text) - self._ids.keys())
        if unknown:
            raise ValueError(f"text has {unknown!r}, allowed are {self._alphabet!r}")
        return [self._ids[character] for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; padding and stop are left out."""
        return "".join(self._alphabet[i - 2] for i in ids if i >= 2)


class BpeTokenizer(Tokenizer):
    """Byte-level BPE: 0 is padding, 1 ends a response, and any text survives the round trip.

    User text never becomes a control id: `<|end|>` in it is encoded as its characters.

    Args:
        tokenizer_json: a tokenizer in the file format of the library `tokenizers`, as `train_bpe`
            makes it: its only added tokens are padding (0) and stop (1), both special.

    Raises:
        ValueError: not JSON, no model, or other added tokens.
    """

    def __init__(self, tokenizer_json: str):
        import tokenizers

        # Looked at first because the library's own complaint is a bare Exception.
        parsed = json.loads(tokenizer_json)
        if not isinstance(parsed, dict) or "model" not in parsed:
            raise ValueError("it has no model")
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        added = {
            i: (token.content, token.special)
            for i, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        expected = {i: (token, True) for i, token in enumerate(_CONTROL_TOKENS)}
        if added != expected:
            raise ValueError(f"added tokens must be {expected}, got {added}")
        # Not part of the file format: without it `<|end|>` in a text would become id 1.
        self._tokenizer.encode_special_tokens = True

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a `tokenizer.json`.

        Raises:
            ValueError: the file is not such a tokenizer.
            OSError: it cannot be read.
        """
        try:
            return cls(pathlib.Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not a tokenizer of train_bpe: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json`, whole or not at all."""
        partial = pathlib.Path(f"{os.fspath(path)}.{os.getpid()}.partial")
        partial.write_text(self._tokenizer.to_str(), encoding="utf-8")
        os.replace(partial, path)

    @property
    def vocab_size(self) -> int:
        """Control tokens, the 256 bytes and the merges."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The one stop id, 1."""
        return (1,)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, all of them 2 or more."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; padding and stop are left out, split UTF-8 becomes U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def same_ids(self, other: "BpeTokenizer") -> bool:
        """Whether both give every token the same id."""
        return self._tokenizer.get_vocab() == other._tokenizer.get_vocab()

    def __reduce__(self) -> tuple[Any, ...]:
        """Through the constructor: the library's own pickling forgets `encode_special_tokens`."""
        return type(self), (self._tokenizer.to_str(),)


class TextStream:
    """Text of ids that come one by one; what it gives adds up to the text of them all.

    A character whose bytes are spread over several ids comes with the last of them.

    Args:
        decode: ids to text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._first = 0  # Ids before it do not change the text of those to come.
        self._told = 0  # The text of the ids before it was given.

    def push(self, token: int) -> str:
        """The text that one more id completes; often empty."""
        self._ids.append(token)
        text = self._new_text()
        # An id without text, such as a special one, is no first word whose space may be dropped.
        if not text or text.endswith("\ufffd"):
            return ""
        self._first, self._told = self._told, len(self._ids)
        return text

    def end(self) -> str:
        """The rest, where the last character is not whole."""
        text, self._told = self._new_text(), len(self._ids)
        return text

    def _new_text(self) -> str:
        """The text after what was given; decoded with ids before it, whose spaces it needs."""
        known = self._decode(self._ids[self._first : self._told])
        return self._decode(self._ids[self._first :])[len(known) :]


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """A byte-level BPE of at most `vocab_size` ids, trained on `texts`; deterministic.

    Digits stay one token each, so that a number is read the same way wherever it stands. Few or
    short texts can have fewer pairs to merge than ids to give.

    Raises:
        ValueError: vocab_size is not from 258 (control tokens and bytes) to 100000.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    smallest = len(_CONTROL_TOKENS) + 256
    if not smallest <= vocab_size <= 100_000:
        raise ValueError(f"vocab_size={vocab_size}: must be from {smallest} to 100000")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BpeTokenizer(tokenizer.to_str())
