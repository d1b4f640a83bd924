"""Prepares GSM8K from its two public files, without a network: records and a tokenizer.

Decisions. The records are those of the stock tensorflow-datasets builder, under its own name, so
that `tfds.data_source("gsm8k", …)` reads them. Nothing is remembered about an earlier call: what
lies in the directory is compared with what this call would write, so a call that was killed is
finished by the next one, and a directory with other contents is refused and left as it is.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import sys
from collections.abc import Sequence

from asympo_jax.tasks import grading
from asympo_jax.tasks.gsm8k import (
    TOKENIZER_FILE,
    Problem,
    has_records,
    import_tfds,
    load_problems,
)
from asympo_jax.tokenizers import BpeTokenizer, train_bpe

_SPLITS = ("train", "test")


def load_raw(path: pathlib.Path) -> list[Problem]:
    """The problems of a published file, one JSON object a line.

    Raises:
        ValueError: the file is missing, empty, or a line is not such a problem.
    """
    problems = []
    try:
        with path.open(encoding="utf-8") as lines:
            for i, line in enumerate(lines, start=1):
                problems.append(_parse_line(line, f"{path} line {i}"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error
    if not problems:
        raise ValueError(f"{path} is empty")
    return problems


def prepare(raw: pathlib.Path, data_dir: pathlib.Path, vocab_size: int) -> list[str]:
    """Writes what is not there yet and returns what it did, one sentence an item.

    Raises:
        ValueError: raw files missing or malformed, a directory with other contents, a bad
            vocabulary size, a missing package.
    """
    import_tfds()  # says what is missing before anything is read
    splits = {split: load_raw(raw / f"{split}.jsonl") for split in _SPLITS}
    shared = {p.question for p in splits["train"]} & {p.question for p in splits["test"]}
    if shared:
        raise ValueError(f"{raw}: train.jsonl and test.jsonl share {len(shared)} questions")
    tokenizer = train_bpe((p.prompt() + p.solution for p in splits["train"]), vocab_size)
    return [
        _write_records(raw, data_dir, splits),
        _write_tokenizer(data_dir / TOKENIZER_FILE, tokenizer),
    ]


def main(arguments: Sequence[str]) -> int:
    """The command line; 0 when the data are there, 2 after one sentence on what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m asympo_jax.tasks.gsm8k",
        description="Prepares GSM8K from train.jsonl and test.jsonl, without a network.",
        allow_abbrev=False,
    )
    parser.add_argument("--raw", required=True, help="directory of train.jsonl and test.jsonl")
    parser.add_argument("--data_dir", required=True, help="directory to write, task.data_dir")
    parser.add_argument("--vocab_size", type=int, default=2048, help="ids of the tokenizer")
    options = parser.parse_args(arguments)
    directory = pathlib.Path(options.data_dir).expanduser()
    try:
        done = prepare(pathlib.Path(options.raw).expanduser(), directory, options.vocab_size)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in [*done, f"Use task.data_dir={directory}"]))
    return 0


def _parse_line(line: str, where: str) -> Problem:
    """The problem of one line; refuses whatever the stock builder or the grader would trip on."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or row.keys() != {"question", "answer"}:
        raise ValueError(f"{where} must be an object with 'question' and 'answer', nothing else")
    if not (isinstance(row["question"], str) and isinstance(row["answer"], str)):
        raise ValueError(f"{where}: 'question' and 'answer' must be texts")
    problem = Problem(row["question"], row["answer"])
    try:
        (problem.question + problem.answer).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} has half a character: {error.reason}") from error
    one_mark = problem.answer.count(f"{grading.MARK} ") == 1
    if not one_mark or grading.parse_number(problem.number) is None:
        raise ValueError(f"{where}: 'answer' must end in one '{grading.MARK} NUMBER'")
    return problem


def _write_records(
    raw: pathlib.Path, data_dir: pathlib.Path, splits: dict[str, list[Problem]]
) -> str:
    """Builds the records unless they are there; reads them back to compare."""
    there = has_records(data_dir)
    if not there:
        _build_records(raw, data_dir)
    for split, problems in splits.items():
        if collections.Counter(load_problems(data_dir, split)) != collections.Counter(problems):
            raise ValueError(
                f"{data_dir} has GSM8K records of other files than {raw}: choose another --data_dir"
            )
    counts = " and ".join(f"{len(splits[split])} {split}" for split in _SPLITS)
    return f"{'Already there' if there else 'Wrote'}: {counts} problems in {data_dir / 'gsm8k'}"


def _build_records(raw: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Runs the stock builder on local files; it writes beside and renames."""
    tfds = import_tfds()
    from tensorflow_datasets.core import registered
    from tensorflow_datasets.text.gsm8k import Gsm8k as StockGsm8k

    with registered.skip_registration():

        class LocalGsm8k(StockGsm8k):
            name = "gsm8k"

            def _split_generators(self, dl_manager):
                del dl_manager  # Nothing is downloaded.
                return {s: self._generate_examples(raw / f"{s}.jsonl") for s in _SPLITS}

    tfds.disable_progress_bar()
    builder = LocalGsm8k(data_dir=data_dir, file_format="array_record")
    # Otherwise a machine with a network would take the public copy instead of these files.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(None):  # It announces a download that does not happen.
        builder.download_and_prepare(download_config=config)


def _write_tokenizer(path: pathlib.Path, tokenizer: BpeTokenizer) -> str:
    """Saves the tokenizer unless the same one is there."""
    what = f"tokenizer of {tokenizer.vocab_size} ids in {path}"
    if not path.exists():
        tokenizer.save(path)
        return f"Wrote: {what}"
    if not tokenizer.same_ids(BpeTokenizer.from_file(path)):
        raise ValueError(
            f"{path} has another vocabulary than this --vocab_size gives: choose another --data_dir"
        )
    return f"Already there: {what}"
