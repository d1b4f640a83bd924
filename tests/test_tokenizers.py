"""Tokenizers give back every text, and no text becomes a control id."""

import json
import pickle
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from asympo_jax.tokenizers import BpeTokenizer, CharTokenizer, train_bpe

SETTINGS = hypothesis.settings(deadline=None, derandomize=True)
TEXTS = ["She sold 48 clips in April.", "She sold 24 clips in May.", "How many clips? 48+24=72"] * 3


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    pytest.importorskip("tokenizers")
    return train_bpe(TEXTS, vocab_size=300)


@hypothesis.given(st.text())
@SETTINGS
@hypothesis.example(" leading and trailing ")
@hypothesis.example("e\u0301 \u00e9 \u200d \x00 \r\n\t \U0001f9ee \u0663 1234567")
def test_any_unicode_text_survives_bpe(bpe: BpeTokenizer, text: str):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert all(2 <= i < bpe.vocab_size for i in ids)


@pytest.mark.parametrize("text", ["<|pad|>", "<|end|>", "a<|end|>b", "<|end|><|pad|> <|end|>"])
def test_control_tokens_in_a_text_stay_text(bpe: BpeTokenizer, text: str):
    assert min(bpe.encode(text)) >= 2
    assert bpe.decode(bpe.encode(text)) == text


def test_encoding_adds_nothing_and_decoding_leaves_control_ids_out(bpe: BpeTokenizer):
    ids = bpe.encode("48 clips")
    assert bpe.encode("") == []
    assert bpe.stop_ids == (1,)
    assert bpe.decode([0, *ids, 1, 0, 0]) == "48 clips"


def test_decoding_accepts_the_arrays_that_samplers_hold(bpe: BpeTokenizer):
    response: Any = np.asarray(bpe.encode("48 clips"), np.int32)
    assert bpe.decode(response) == "48 clips"


def test_half_a_character_decodes_to_a_replacement(bpe: BpeTokenizer):
    assert bpe.decode(bpe.encode("\u00e9")[:1]) == "\ufffd"


def test_words_are_merged_and_digits_are_not(bpe: BpeTokenizer):
    assert len(bpe.encode(" clips")) == 1
    assert len(bpe.encode("4824")) == 4
    assert bpe.encode("4824") == [i for digit in "4824" for i in bpe.encode(digit)]


def test_training_twice_gives_the_same_ids(bpe: BpeTokenizer):
    again = train_bpe(iter(TEXTS), vocab_size=300)
    assert bpe.same_ids(again)
    assert again.encode("She sold 72.") == bpe.encode("She sold 72.")
    assert not bpe.same_ids(train_bpe(TEXTS, vocab_size=270))


def test_the_vocabulary_has_the_size_asked_for_or_what_the_texts_give(bpe: BpeTokenizer):
    assert train_bpe(TEXTS, vocab_size=270).vocab_size == 270
    assert 270 < bpe.vocab_size <= 300
    assert train_bpe([], vocab_size=300).vocab_size == 258


@pytest.mark.parametrize("vocab_size", [0, 257, 100_001])
def test_a_vocabulary_without_every_byte_or_beyond_reason_is_refused(vocab_size: int):
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=rf"vocab_size={vocab_size}: must be from 258 to 100000"):
        train_bpe(TEXTS, vocab_size)


def test_a_saved_tokenizer_reads_back_the_same(bpe: BpeTokenizer, tmp_path):
    bpe.save(tmp_path / "tokenizer.json")
    read = BpeTokenizer.from_file(tmp_path / "tokenizer.json")
    assert bpe.same_ids(read)
    assert read.encode("48<|end|>") == bpe.encode("48<|end|>")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_pickled_tokenizer_still_defuses_control_tokens(bpe: BpeTokenizer):
    copy = pickle.loads(pickle.dumps(bpe))
    assert copy.encode("48<|end|>") == bpe.encode("48<|end|>")


def _without_control_tokens(text: str) -> str:
    return json.dumps(json.loads(text) | {"added_tokens": []})


def _with_a_token_that_is_not_special(text: str) -> str:
    parsed = json.loads(text)
    parsed["added_tokens"][1]["special"] = False
    return json.dumps(parsed)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text[: len(text) // 2], "is not a tokenizer of train_bpe"),
        (lambda _: "", "is not a tokenizer of train_bpe"),
        (lambda _: "[]", "it has no model"),
        (lambda _: "{}", "it has no model"),
        (_without_control_tokens, "added tokens must be"),
        (_with_a_token_that_is_not_special, "added tokens must be"),
    ],
)
def test_a_file_that_is_no_such_tokenizer_is_refused_by_name(bpe, tmp_path, change, complaint):
    path = tmp_path / "tokenizer.json"
    bpe.save(path)
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=complaint) as caught:
        BpeTokenizer.from_file(path)
    assert str(path) in str(caught.value)


@SETTINGS
@hypothesis.given(st.text("0123456789+-*=;#"))
def test_any_text_of_its_alphabet_survives_the_character_tokenizer(text: str):
    tokenizer = CharTokenizer("0123456789+-*=;#")
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert all(2 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode([0, *ids, *tokenizer.stop_ids, 0]) == text


def test_the_character_tokenizer_counts_its_control_ids():
    assert CharTokenizer("ab").vocab_size == 4
    assert CharTokenizer("ab").encode("ba") == [3, 2]


def test_the_character_tokenizer_names_what_it_cannot_encode():
    with pytest.raises(ValueError, match=r"\['c', 'd'\], allowed are 'ab'"):
        CharTokenizer("ab").encode("dabc")


def test_an_alphabet_with_a_repeat_is_refused():
    with pytest.raises(ValueError, match="must not repeat characters, got 'aba'"):
        CharTokenizer("aba")
