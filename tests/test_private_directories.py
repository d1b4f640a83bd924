"""Directories of a run: private, locked, and swept once nobody has them."""

import fcntl
import os
import pathlib
import shutil
import stat

import numpy as np
import pytest

from asympo_jax.runtime.private_directories import make_private_directory, remove_if_unused
from asympo_jax.runtime.snapshots import SnapshotStore


def test_the_directory_is_private_and_goes_away(tmp_path):
    directory, lock = make_private_directory(str(tmp_path), "abc")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    store = SnapshotStore(directory, "abc")
    store.write(0, {"w": np.zeros(3)})
    shutil.rmtree(directory)
    assert not directory.exists()
    lock.close()


def test_directories_of_killed_runs_are_removed_and_those_in_use_stay(tmp_path):
    killed, lock = make_private_directory(str(tmp_path), "killed")
    lock.close()  # what the end of a process does
    alive, lock = make_private_directory(str(tmp_path), "alive")
    newest, newest_lock = make_private_directory(str(tmp_path), "newest")
    assert (killed.exists(), alive.exists(), newest.exists()) == (False, True, True)
    lock.close()
    newest_lock.close()


def test_a_directory_that_another_run_removed_before_it_was_locked_is_made_again(
    tmp_path, monkeypatch
):
    lock_file, removed = fcntl.flock, []

    def flock(file, operation):
        if not removed:
            removed.extend(tmp_path.glob("*"))
            shutil.rmtree(removed[0])
        lock_file(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    directory, lock = make_private_directory(str(tmp_path), "abc")
    with lock:
        assert list(tmp_path.glob("*")) == [directory] != removed


def test_a_directory_whose_removal_was_cut_short_is_removed_and_no_other_one_is(tmp_path):
    cut, foreign, empty = (tmp_path / f"asympo-{name}" for name in ("cut", "jax", "empty"))
    for directory in (cut, foreign, empty):
        directory.mkdir()
    store = SnapshotStore(cut, "cut")
    store.write_base({"w": np.zeros(3)})
    store.write(7, {"w": np.zeros(3)})
    (cut / ".v00000008.1-of-2.safetensors.99").touch()
    (foreign / "v00000007.safetensors").touch()
    (foreign / "notes.txt").touch()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "v00000007.safetensors").touch()
    (tmp_path / "asympo-link").symlink_to(linked)
    directory, lock = make_private_directory(str(tmp_path), "newest")
    with lock:
        assert not cut.exists() and directory.exists()
        assert len(list(foreign.iterdir())) == 2 and empty.exists()
        assert list(linked.iterdir())


@pytest.mark.parametrize(
    ("name", "words"),
    [("notes.txt", b""), ("v00000007.safetensors", b"host"), ("base.safetensors", b"\xff")],
)
def test_a_lock_that_nobody_holds_does_not_make_a_directory_ours(tmp_path, name, words):
    """It has other files as well, or is another host's, whose locks may not be seen here."""
    directory = tmp_path / "asympo-other"
    directory.mkdir()
    (directory / "lock").write_bytes(words)
    (directory / name).touch()
    assert not remove_if_unused(directory)
    assert {path.name for path in directory.iterdir()} == {"lock", name}


def test_a_directory_that_cannot_be_locked_is_not_left(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="no locks"):
        make_private_directory(str(tmp_path), "abc")
    assert not list(tmp_path.iterdir())


def test_nothing_of_another_user_is_opened(tmp_path, monkeypatch):
    """Whose lock may be a pipe, on which an open would wait for ever."""
    other = tmp_path / "asympo-other"
    other.mkdir()
    os.mkfifo(other / "lock")
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    opened = []
    monkeypatch.setattr(os, "open", lambda *given: opened.append(given))
    assert not remove_if_unused(other)
    assert not opened and other.exists()


def test_the_lock_of_a_directory_is_removed_last(tmp_path, monkeypatch):
    killed, lock = make_private_directory(str(tmp_path), "killed")
    (killed / "v00000007.safetensors").touch()
    lock.close()
    unlinked, unlink = [], pathlib.Path.unlink

    def note(path):
        unlinked.append(path.name)
        unlink(path)

    monkeypatch.setattr(pathlib.Path, "unlink", note)
    assert remove_if_unused(killed)
    assert unlinked == ["v00000007.safetensors", "lock"]


def test_a_directory_that_goes_away_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    opens, removed = pathlib.Path.open, []

    def remove_first(path, *given):
        if not removed:
            removed.append(path.parent)
            shutil.rmtree(path.parent)
        return opens(path, *given)

    monkeypatch.setattr(pathlib.Path, "open", remove_first)
    directory, lock = make_private_directory(str(tmp_path), "abc")
    with lock:
        assert list(tmp_path.iterdir()) == [directory] != removed
