"""Full disks, links and half-written files: what is told, what is kept, what is refused."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
from full_disks import no_room

from asympo_jax import beginning, workdirs
from asympo_jax.config import default_config, resolve
from asympo_jax.endings import InUse, RunFailed
from asympo_jax.runtime import metrics
from asympo_jax.runtime.events import EventWriter
from asympo_jax.runtime.files import Lines, replace
from asympo_jax.runtime.lockstep import Lockstep
from asympo_jax.runtime.metrics import MetricsWriter, read_metrics
from asympo_jax.runtime.snapshots import SnapshotStore
from asympo_jax.tokenizers import CharTokenizer
from asympo_jax.types import Group

PATIENCE_S = 60.0

CONFIG = resolve(default_config())


@pytest.mark.parametrize("result", [None, 6])
def test_a_run_that_is_to_end_before_its_newest_checkpoint_is_refused(tmp_path, result):
    config: Any = default_config()
    config.num_updates = 7
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(resolve(config).source))
    if result is not None:
        whole = {"updates": result, "eval/accuracy": 0.5, "eval/accuracy_greedy": 0.5}
        text = json.dumps(whole | {"parameters_sha256": "0", "wall_s": 1.0})
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"num_updates=7: .* of 8 updates; .* longer, not shorter"):
        workdirs.prepare(tmp_path, resolve(config))
    config.num_updates = 8
    assert workdirs.prepare(tmp_path, resolve(config)) is None


def test_what_a_killed_run_left_half_written_is_removed_by_the_next_and_nothing_else(tmp_path):
    (tmp_path / "rollouts").mkdir()
    gone = [".config.json.12", ".task.json.12", ".metrics.jsonl.3", ".result.json.3"]
    gone += ["rollouts/.update_00000002.jsonl.7"]
    kept = [
        ".lock",
        ".gitignore",
        ".metrics.jsonl.old",
        ".mine.12",
        "rollouts/update_00000001.jsonl",
    ]
    for name in gone + kept:
        (tmp_path / name).touch()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.source))
    workdirs.prepare(tmp_path, CONFIG)
    assert not any((tmp_path / name).exists() for name in gone)
    assert all((tmp_path / name).exists() for name in kept)


@pytest.mark.parametrize("update", ["1e999", "NaN", "null"])
def test_a_line_of_metrics_whose_update_is_no_number_is_refused_by_its_line(tmp_path, update):
    (tmp_path / "metrics.jsonl").write_text(f'{{"update": {update}}}\n{{"update": 1}}\n')
    with pytest.raises(metrics.MetricsRefused, match="line 1"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_hugging_face_directory_that_turns_out_to_be_broken_is_one_sentence(
    tmp_path, monkeypatch
):
    def broken(*_: object) -> None:
        raise ValueError("has values that are not finite")

    monkeypatch.setattr("asympo_jax.beginning.initial_params", broken)
    config = dataclasses.replace(CONFIG, hf_dir=tmp_path)
    nothing: Any = None
    checkpointer: Any = types.SimpleNamespace(latest=lambda: None)
    store = SnapshotStore(tmp_path, "run")
    given = (config, nothing, tmp_path, store, checkpointer, lambda: None, None, Lockstep())
    with pytest.raises(RunFailed, match="not finite"):
        beginning.take_up(*given)


def test_metrics_that_cannot_be_written_are_told_once_counted_and_written_later(tmp_path):
    told = []
    writer = MetricsWriter(tmp_path, 0, tensorboard=True, warn=told.append)
    writer.write(1, {"loss": 1.0})
    with no_room():
        writer.write(2, {"loss": 2.0}, {"lag": [0, 1]})
        writer.write(3, {"loss": 3.0})
    failures = writer.metrics()["log/failures"]
    writer.write(4, {"loss": 4.0})
    writer.close()
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert failures == writer.metrics()["log/failures"] >= 2
    assert sum("metrics.jsonl: cannot be written" in words for words in told) == 1
    assert len(told) <= 2, "one for each file"


def test_events_go_on_in_another_file_after_one_that_could_not_be_written(tmp_path, monkeypatch):
    """Which is tried now and then, and leaves no empty files."""
    from tensorboardX.event_file_writer import EventsWriter

    now = [0.0]
    events = EventWriter(tmp_path / "tensorboard", 0, clock=lambda: now[0])

    def write_all(updates) -> int:
        """How many of them raised."""
        num_failed = 0
        for now[0] in updates:
            try:
                events.write(int(now[0]), {"loss": 1.0}, {})
            except OSError:
                num_failed += 1
        return num_failed

    assert write_all(range(1, 3)) == 0
    with monkeypatch.context() as broken:
        broken.setattr(EventsWriter, "flush", lambda *_: os.write(-1, b""))
        assert write_all(range(3, 63)) == 2
    assert write_all(range(63, 200)) == 0
    events.close()
    sizes = [path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()]
    assert len(sizes) == 3 and all(sizes)


def test_a_full_disk_gets_no_empty_file_of_events(tmp_path):
    events = EventWriter(tmp_path / "tensorboard", 0)
    with no_room():
        events.write(1, {"loss": 1.0}, {})
        events.close()
    assert not list((tmp_path / "tensorboard").iterdir())


def test_a_file_is_written_whatever_the_locale_and_the_text(tmp_path):
    program = f"""
import pathlib
from asympo_jax.runtime.files import replace
replace(pathlib.Path({str(tmp_path / "file")!r}), chr(0xe9) + chr(0x4e2d) + chr(0xd83d))
"""
    environment = {"PYTHONPATH": ":".join(sys.path), "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONUTF8"] = "0"
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert (tmp_path / "file").read_bytes() == "\u00e9\u4e2d\\ud83d".encode()


def test_a_failure_while_samples_are_written_leaves_none_of_them(tmp_path):
    told = []
    writer = MetricsWriter(tmp_path, 0, tensorboard=False, warn=told.append)
    tokenizer = CharTokenizer("0123456789+=")
    ids = np.array(tokenizer.encode("1="), np.int32)
    zeros = np.zeros(1, np.float32)
    group = Group(0, 0, ids, ids[None], np.array([2], np.int32), np.zeros(1, np.int8), zeros)
    with no_room():
        writer.write_rollouts(1, [group], tokenizer)
    writer.write_rollouts(2, [group], tokenizer)
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["update_00000002.jsonl"]
    assert len(told) == writer.metrics()["log/failures"] == 1


def test_metrics_that_cannot_be_read_are_put_aside_and_the_run_goes_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('garbage\n{"update": 1}\n')
    told = []
    writer = MetricsWriter(tmp_path, 1, tensorboard=False, warn=told.append)
    writer.write(2, {"loss": 1.0})
    writer.close()
    assert [line["update"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2]
    assert (tmp_path / "metrics.damaged.jsonl").read_text().startswith("garbage")
    assert len(told) == 1 and "line 1" in told[0]


def test_lines_that_a_full_disk_cut_short_are_whole_in_the_end(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b'whole\n{"torn')
    lines = Lines(path)
    lines.append("a" * 10)
    with no_room(20), pytest.raises(OSError, match="File too large"):
        lines.append("b" * 10)
    assert path.read_text() == "whole\n" + "a" * 10 + "\n"
    lines.append("c")
    lines.close()
    assert path.read_text().split() == ["whole", "a" * 10, "b" * 10, "c"]


def test_lines_that_wait_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("asympo_jax.runtime.files._MAX_WAITING", 3)
    lines = Lines(tmp_path / "no" / "directory")
    for number in range(5):
        with pytest.raises(OSError, match="No such file"):
            lines.append(str(number))
    assert (lines.num_waiting, lines.num_lost) == (3, 2)


def test_no_link_is_followed_where_a_file_is_written(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("metrics.jsonl", "result.json", ".lock"):
        (workdir / name).symlink_to(outside)
    with pytest.raises(OSError, match="symbolic links"):
        Lines(workdir / "metrics.jsonl").append("line")
    with pytest.raises(ValueError, match=r"\.lock cannot be opened"):
        workdirs.lock(workdir)
    replace(workdir / "result.json", "{}")
    assert outside.read_text() == "precious"
    assert not (workdir / "result.json").is_symlink()


@pytest.mark.parametrize("name", ["checkpoints", "rollouts", "metrics.jsonl"])
def test_a_workdir_with_a_link_that_leads_out_of_it_is_refused(tmp_path, name):
    workdir, outside = tmp_path / "run", tmp_path / "elsewhere"
    workdir.mkdir()
    outside.mkdir()
    (workdir / name).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"'{name}' is a link to .*elsewhere"):
        workdirs.prepare(workdir, resolve(default_config()))
    (workdir / name).unlink()
    (tmp_path / "linked").symlink_to(workdir)
    assert workdirs.prepare(tmp_path / "linked", resolve(default_config())) is None


def test_a_workdir_without_room_for_the_config_is_refused(tmp_path):
    with no_room(), pytest.raises(ValueError, match=r"workdir=.*: cannot be written"):
        workdirs.prepare(tmp_path, resolve(default_config()))
    assert not list(tmp_path.iterdir())


def test_a_second_run_is_refused_by_process_and_host_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "a-host")
    with (
        workdirs.lock(tmp_path),
        pytest.raises(InUse, match=rf"process id {os.getpid()} on a-host") as refused,
    ):
        workdirs.lock(tmp_path)
    assert refused.value.exit_code == 75, "later the same command may work"
    workdirs.lock(tmp_path).close()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, RunFailed),
        (errno.EDQUOT, RunFailed),
        (errno.EIO, RunFailed),
        (errno.ESTALE, RunFailed),
        (errno.EACCES, ValueError),
        (errno.ENOLCK, ValueError),
    ],
)
def test_what_may_pass_is_a_failure_that_is_tried_again_and_no_wrong_input(
    tmp_path, monkeypatch, number, kind
):
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    calls = [
        ("fcntl.flock", lambda: workdirs.lock(tmp_path)),
        ("tempfile.TemporaryFile", lambda: workdirs.check_writable("workdir", tmp_path)),
        ("asympo_jax.workdirs.replace", lambda: workdirs.prepare(tmp_path, CONFIG)),
    ]
    for name, call in calls:
        with monkeypatch.context() as broken:
            broken.setattr(name, fails)
            with pytest.raises(kind, match=rf"workdir=.*{os.strerror(number)}") as refused:
                call()
        assert type(refused.value) is kind and "in use" not in str(refused.value)


def test_evaluations_that_were_kept_are_known(tmp_path):
    lines = [{"update": 0, "eval/accuracy": 0.5}, {"update": 1}, {"update": 2, "eval/accuracy": 1}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert metrics.MetricsWriter(tmp_path, 1, tensorboard=False).evaluated == {0}
