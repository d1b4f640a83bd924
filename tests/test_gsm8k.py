"""GSM8K: prepared from two small files of made-up problems, then read by the task."""

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
from hf_directories import write_directory

from asympo_jax.tasks import make_task
from asympo_jax.tasks.gsm8k import Gsm8k
from asympo_jax.tasks.gsm8k_prepare import main
from asympo_jax.tasks.math import Math

ROOT = pathlib.Path(__file__).parents[1]
LONG_STORY = "There was a baker who liked to count. " * 8
TRAIN = [
    (
        "A crow has 3 shiny nails and finds 5 more. How many nails has it?",
        "It has 3 + 5 = <<3+5=8>>8 nails.\n#### 8",
    ),
    (
        "Tomás sells 2 kites at $600 each. How many dollars does he get?",
        "He gets 2 × 600 = $<<2*600=1200>>1,200.\n#### 1,200",
    ),
    (
        "It is 4 degrees and gets 9 degrees colder. How warm is it?",
        "4 - 9 = <<4-9=-5>>-5.\n#### -5",
    ),
    (
        f"{LONG_STORY}He baked 6 loaves and ate 2. How many are left?",
        "6 - 2 = <<6-2=4>>4 loaves are left.\n#### 4",
    ),
    ("Half of the 9 cups are full. How many is that?", "9 / 2 = <<9/2=4.5>>4.5.\n#### 4.5"),
]
TEST = [
    ("A frog jumps 7 times 2 feet. How far is that?", "7 * 2 = <<7*2=14>>14 feet.\n#### 14"),
    ("A jar has 10 beans; 1 falls out. How many stay?", "10 - 1 = <<10-1=9>>9 stay.\n#### 9"),
]


def _write_raw(directory: pathlib.Path, train=TRAIN, test=TEST) -> pathlib.Path:
    directory.mkdir(exist_ok=True)
    for name, problems in (("train", train), ("test", test)):
        lines = [json.dumps({"question": q, "answer": a}) for q, a in problems]
        (directory / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return directory


def _command(raw: pathlib.Path, data_dir: pathlib.Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "asympo_jax.tasks.gsm8k", f"--raw={raw}", f"--data_dir={data_dir}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def _contents(directory: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> pathlib.Path:
    return _write_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def data_dir(raw: pathlib.Path, tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("data") / "prepared"
    ended = _command(raw, directory)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0] == (
        f"Wrote: 5 train and 2 test problems in {directory / 'gsm8k'}"
    )
    assert ended.stdout.splitlines()[-1] == f"Use task.data_dir={directory}"
    return directory


@pytest.fixture(scope="module")
def task(data_dir: pathlib.Path) -> Gsm8k:
    found = make_task("gsm8k", data_dir=str(data_dir))
    assert isinstance(found, Gsm8k)
    return found


def _prompts(task: Gsm8k) -> list:
    train = [task.train_prompt(i) for i in range(task.num_train)]
    return train + [task.eval_prompt(i) for i in range(task.num_eval)]


def test_the_task_asks_the_problems_of_both_files(data_dir: pathlib.Path):
    task = Gsm8k(data_dir=str(data_dir), max_prompt_tokens=10_000)
    assert (task.num_train, task.num_train_left_out) == (5, 0)
    assert (task.num_eval, task.num_eval_left_out) == (2, 0)
    train = {task.train_prompt(i).text: task.train_prompt(i).answer for i in range(5)}
    test = {task.eval_prompt(i).text: task.eval_prompt(i).answer for i in range(2)}
    assert train == {f"Question: {q}\nAnswer:": a.split("#### ")[1] for q, a in TRAIN}
    assert test == {f"Question: {q}\nAnswer:": a.split("#### ")[1] for q, a in TEST}
    assert [prompt.index for prompt in _prompts(task)] == [0, 1, 2, 3, 4, 0, 1]


def test_prompts_that_are_too_long_are_left_out_and_counted(data_dir: pathlib.Path):
    every = Gsm8k(data_dir=str(data_dir), max_prompt_tokens=10_000)
    lengths = sorted(len(every.tokenizer.encode(prompt.text)) for prompt in _prompts(every))
    longest, next_longest = lengths[-1], lengths[-2]
    assert Gsm8k(str(data_dir), max_prompt_tokens=longest).num_train == 5
    for limit in (longest - 1, next_longest):
        task = Gsm8k(data_dir=str(data_dir), max_prompt_tokens=limit)
        assert (task.num_train, task.num_train_left_out) == (4, 1)
        assert (task.num_eval, task.num_eval_left_out) == (2, 0)
        assert not any(LONG_STORY in prompt.text for prompt in _prompts(task))
        assert not any(LONG_STORY in task.demonstration(i)[0] for i in range(20))
        assert [prompt.index for prompt in _prompts(task)] == [0, 1, 2, 3, 0, 1]


def test_every_demonstration_earns_1_and_only_for_its_own_prompt(task: Gsm8k):
    prompts = {task.train_prompt(i).text: task.train_prompt(i) for i in range(task.num_train)}
    for index in range(task.num_train):
        text, response = task.demonstration(index)
        rewards = {p.text: task.reward(p, response) for p in prompts.values()}
        assert rewards == {other: float(other == text) for other in prompts}
        assert task.correct(prompts[text], response)


def test_demonstrations_are_solutions_without_the_notes_of_the_calculator(task: Gsm8k):
    shown = dict(task.demonstration(i) for i in range(task.num_train))
    assert shown[f"Question: {TRAIN[1][0]}\nAnswer:"] == (" He gets 2 × 600 = $1,200.\n#### 1,200")
    assert not any("<<" in response or ">>" in response for response in shown.values())


def test_demonstrations_show_each_training_problem_once_an_epoch_in_a_new_order(task: Gsm8k):
    train = {task.train_prompt(i).text for i in range(task.num_train)}
    epochs = [
        [task.demonstration(epoch * task.num_train + i)[0] for i in range(task.num_train)]
        for epoch in range(6)
    ]
    assert all(set(epoch) == train for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_demonstrations_are_pure_in_an_index_of_any_size(task: Gsm8k, data_dir: pathlib.Path):
    other = Gsm8k(data_dir=str(data_dir))
    for index in (10**40, 0, 3, 2**64, 0):
        assert task.demonstration(index) == other.demonstration(index)


def test_the_tokenizer_is_trained_on_the_training_split_alone(task: Gsm8k):
    assert [len(task.tokenizer.encode(word)) for word in ("Question", " nails")] == [1, 1]
    assert len(task.tokenizer.encode(" frog")) > 1
    assert 258 < task.tokenizer.vocab_size <= 2048


def test_a_wrong_or_unmarked_answer_earns_0(task: Gsm8k):
    prompt = next(p for p in _prompts(task) if p.answer == "8")
    assert task.reward(prompt, " 3 + 5 = 8.\n#### 8") == 1.0
    assert task.reward(prompt, " 3 + 5 = 8.") == 0.0
    assert task.reward(prompt, " 3 + 5 = 8.\n#### 9") == 0.0


@pytest.mark.parametrize("index", [-1, 5])
def test_there_is_no_prompt_outside_a_split(task: Gsm8k, index: int):
    with pytest.raises(IndexError):
        task.train_prompt(index)
    with pytest.raises(IndexError):
        task.eval_prompt(index)


def test_preparing_again_changes_nothing_and_says_so(raw: pathlib.Path, data_dir: pathlib.Path):
    before = _contents(data_dir)
    ended = _command(raw, data_dir)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Already there:") == 2
    assert "Wrote" not in ended.stdout
    assert _contents(data_dir) == before


def test_a_preparation_that_was_cut_short_is_finished(
    raw: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path, capsys
):
    options = [f"--raw={raw}", f"--data_dir={tmp_path}"]
    (tmp_path / "gsm8k" / "incomplete.X_1.0.0").mkdir(parents=True)
    (tmp_path / "gsm8k" / "incomplete.X_1.0.0" / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="not prepared there"):
        Gsm8k(data_dir=str(tmp_path))
    assert main(options) == 0
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="not prepared there"):
        Gsm8k(data_dir=str(tmp_path))
    assert main(options) == 0
    said = capsys.readouterr().out
    assert "Already there: 5 train and 2 test problems" in said
    assert (tmp_path / "tokenizer.json").read_bytes() == (data_dir / "tokenizer.json").read_bytes()
    there = Gsm8k(data_dir=str(tmp_path))
    assert _prompts(there) == _prompts(Gsm8k(data_dir=str(data_dir)))


def test_a_directory_with_other_contents_is_refused_and_left_alone(
    raw: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path, capsys
):
    before = _contents(data_dir)
    other = _write_raw(tmp_path / "other", train=TRAIN[:-1])
    assert main([f"--raw={other}", f"--data_dir={data_dir}"]) == 2
    assert "has GSM8K records of other files" in capsys.readouterr().err
    assert main([f"--raw={raw}", f"--data_dir={data_dir}", "--vocab_size=260"]) == 2
    assert "has another vocabulary than this --vocab_size gives" in capsys.readouterr().err
    assert _contents(data_dir) == before


def test_missing_files_end_the_command_with_2_and_one_sentence(tmp_path: pathlib.Path):
    ended = _command(tmp_path / "nowhere", tmp_path / "data")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert f"{tmp_path / 'nowhere' / 'train.jsonl'} cannot be read" in ended.stderr
    assert not (tmp_path / "data").exists()


GOOD = json.dumps({"question": "1 + 1?", "answer": "#### 2"})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (GOOD.encode() + b"\n{", "line 2 is not JSON"),
        (GOOD.encode() + b"\n\n", "line 2 is not JSON"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"[1]", "line 1 must be an object"),
        (b'{"question": "1 + 1?"}', "line 1 must be an object"),
        (GOOD[:-1].encode() + b', "id": 3}', "line 1 must be an object"),
        (b'{"question": 1, "answer": "#### 2"}', "must be texts"),
        (b'{"question": "1 + 1?", "answer": "2"}', "must end in one '#### NUMBER'"),
        (b'{"question": "1 + 1?", "answer": "#### two"}', "must end in one '#### NUMBER'"),
        (b'{"question": "1 + 1?", "answer": "#### 1\\n#### 2"}', "must end in one"),
        (b'{"question": "1 + 1? \\ud83d", "answer": "#### 2"}', "half a character"),
        (json.dumps(dict(zip(("question", "answer"), TEST[0], strict=True))).encode(), "share 1"),
    ],
)
def test_a_malformed_file_is_refused_by_its_line(
    content: bytes, complaint: str, tmp_path: pathlib.Path, capsys
):
    raw = _write_raw(tmp_path / "raw")
    (raw / "train.jsonl").write_bytes(content)
    assert main([f"--raw={raw}", f"--data_dir={tmp_path / 'data'}"]) == 2
    said = capsys.readouterr()
    assert complaint in said.err
    assert "train.jsonl" in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "data").exists()


def test_a_bad_vocabulary_size_ends_the_command_with_2(
    raw: pathlib.Path, tmp_path: pathlib.Path, capsys
):
    assert main([f"--raw={raw}", f"--data_dir={tmp_path}", "--vocab_size=100"]) == 2
    assert "vocab_size=100: must be from 258" in capsys.readouterr().err


def test_data_that_are_not_there_are_named_with_the_command_that_makes_them(data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"task\.data_dir is not set: .*asympo_jax\.tasks\.gsm8k"):
        make_task("gsm8k")
    missing = str(tmp_path)
    shutil.copy(data_dir / "tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match="GSM8K is not prepared there") as caught:
        make_task("gsm8k", data_dir=missing)
    assert f"task.data_dir='{missing}'" in str(caught.value)
    command = f"python -m asympo_jax.tasks.gsm8k --raw=DIR_OF_JSONL --data_dir={missing}"
    assert command in str(caught.value)


def test_records_without_random_access_are_refused(data_dir: pathlib.Path, tmp_path: pathlib.Path):
    for path, content in _contents(data_dir).items():
        copy = tmp_path / str(path.relative_to(data_dir)).replace("array_record", "tfrecord")
        copy.parent.mkdir(parents=True, exist_ok=True)
        is_info = path.name == "dataset_info.json"
        copy.write_bytes(content.replace(b"array_record", b"tfrecord") if is_info else content)
    with pytest.raises(ValueError, match="in a format without random access"):
        Gsm8k(data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("max_prompt_tokens", "complaint"),
    [(0, "must be at least 1"), (1, "leaves none of the 5 problems of split 'train'")],
)
def test_a_limit_that_leaves_no_prompt_is_refused(data_dir, max_prompt_tokens, complaint):
    with pytest.raises(
        ValueError, match=rf"task.max_prompt_tokens={max_prompt_tokens}: {complaint}"
    ):
        make_task("gsm8k", data_dir=str(data_dir), max_prompt_tokens=max_prompt_tokens)


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record", "tokenizers"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    package: str, data_dir: pathlib.Path, monkeypatch
):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"(?s){package}.*pip install -e '.\[data\]'"):
        make_task("gsm8k", data_dir=str(data_dir))


def test_a_models_tokenizer_and_a_template_of_the_config_ask_in_other_words(data_dir, tmp_path):
    folder = str(write_directory(tmp_path))
    plain = Gsm8k(str(data_dir), template="Q: {problem} {kept}\n")
    question = plain.eval_prompt(0).text.removeprefix("Q: ").removesuffix(" {kept}\n")
    assert question in dict(TEST)
    assert plain.tokenizer.decode(plain.tokenizer.encode_prompt("a")) == "a"
    chat = Gsm8k(str(data_dir), tokenizer_dir=folder)
    prompt = chat.eval_prompt(0)
    assert prompt.text.startswith(question) and "`#### `" in prompt.text
    assert prompt.answer == plain.eval_prompt(0).answer
    asked = chat.tokenizer.decode(chat.tokenizer.encode_prompt(prompt.text))
    assert asked == f"user\n{prompt.text}\nassistant\n"
    assert chat.demonstration(0)[0].startswith(tuple(q for q, _ in TRAIN))
    longest = max(len(chat.tokenizer.encode_prompt(chat.eval_prompt(i).text)) for i in (0, 1))
    with pytest.raises(ValueError, match=r"task\.max_prompt_tokens=.*leaves none"):
        Gsm8k(str(data_dir), max_prompt_tokens=longest // 2, tokenizer_dir=folder)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"template": "?"}, r"task\.template='\?': must hold \{problem\}"),
        ({"tokenizer_dir": "/nowhere"}, r"task\.tokenizer_dir='/nowhere': tokenizer\.json"),
    ],
)
def test_a_wrong_template_or_tokenizer_is_refused_by_name(data_dir, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        Gsm8k(str(data_dir), **options)


def test_the_task_math_reads_prepared_records_by_name_and_split(data_dir, tmp_path):
    options: dict[str, Any] = {
        "train_data": "tfds:gsm8k:train",
        "eval_data": "tfds:gsm8k:test",
        "tokenizer_dir": str(write_directory(tmp_path)),
        "problem_field": "question",
        "data_dir": str(data_dir),
    }
    task = Math(template="{problem}", **options)
    assert (task.num_train, task.num_eval) == (len(TRAIN), len(TEST))
    prompts = [task.train_prompt(i) for i in range(len(TRAIN))]
    assert {(p.text, p.answer) for p in prompts} == {
        (question, answer.rpartition("#### ")[2]) for question, answer in TRAIN
    }
    for change in ({"train_data": "tfds:gsm8k:dev"}, {"data_dir": str(tmp_path)}):
        expected = r"task\.train_data='tfds:gsm8k:.*' with task\.data_dir=.* cannot be read"
        with pytest.raises(ValueError, match=expected.replace("train_data", "(train|eval)_data")):
            Math(**{**options, **change})
