"""Small directories in the form in which Hugging Face keeps tokenizers."""

import json
import pathlib
from typing import Any

import tokenizers

from asympo_jax.tokenizers import train_bpe

TEXTS = ["She sold 48 clips in April.", "user assistant system", "How many clips? 48+24=72"] * 3
CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and not enable_thinking %}\n"
    "        {{- '<think></think>' }}\n"
    "    {%- endif %}\n"
    "{%- endif %}\n"
)
SPECIAL = ("<|im_start|>", "<|im_end|>")
NOT_SPECIAL = ("<think>", "</think>", "<table>")


def write_directory(
    folder: pathlib.Path,
    template: Any = CHATML,
    generation=None,
    texts=TEXTS,
    **settings,
) -> pathlib.Path:
    """A byte-level BPE with ChatML's control tokens; `settings` go to tokenizer_config.json.

    An empty `generation` writes no generation_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library = tokenizers.Tokenizer.from_str(train_bpe(texts, 300)._tokenizer.to_str())
    library.add_special_tokens(list(SPECIAL))
    library.add_tokens(list(NOT_SPECIAL))
    library.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|pad|>", **settings}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if generation is None:
        generation = {"eos_token_id": [library.token_to_id("<|im_end|>"), 1]}
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
