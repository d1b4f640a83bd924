"""What a signal does to a command, to its processes, and to what it has saved."""

import ast
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import types
from typing import Any

import pytest
from tiny_runs import TIMEOUT_S, TINY

from asympo_jax import endings, interrupts, processes, training
from asympo_jax.config import default_config, resolve
from asympo_jax.runtime.private_directories import make_private_directory

PRELUDE = """
    import signal, sys, os, time
    from asympo_jax import interrupts
    def say(word):
        print(word, flush=True)
    def hang():  # as C code does that no exception ends
        words = "hangs"
        while True:
            try:
                words, word = "", words
                say(word)
                time.sleep(3600)
            except BaseException as error:
                words = type(error).__name__
"""


def test_exit_codes_are_told_alike_by_the_constants_the_help_and_the_table():
    constants = {0, *(code for name, code in vars(endings).items() if name.isupper())}
    root = pathlib.Path(__file__).parents[1]
    source = (root / "asympo_jax" / "train.py").read_text()
    helps = (ast.get_docstring(ast.parse(source)) or "").partition("Exit codes: ")[2]
    assert {int(code) for code in re.findall(r"(?:^|· *\n?)(\d+) ", helps)} == constants
    table = (root / "docs" / "faults.md").read_text()
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)} == constants


def program(text: str) -> subprocess.Popen[str]:
    """A program that has installed the handlers, once it has said so."""
    source = textwrap.dedent(PRELUDE) + textwrap.dedent(text)
    started = subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "hangs\n"
    return started


@pytest.mark.parametrize(
    ("number", "code", "word", "given"),
    [
        (signal.SIGINT, 130, "interrupted", "interrupts.install('carry on', 0.2)"),
        (
            signal.SIGTERM,
            143,
            "terminated",
            "interrupts.install('carry on', 3600.0); interrupts.allow(0.2)",
        ),
    ],
)
def test_a_command_that_does_not_end_after_a_signal_ends_by_itself_when_its_time_is_up(
    number, code, word, given
):
    started = program(f"{given}\nhang()")
    started.send_signal(number)
    _, stderr = started.communicate(timeout=TIMEOUT_S)
    assert started.returncode == code
    assert stderr == f"error: {word} not in time; carry on\n"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_cleans_up_and_ends_at_once(tmp_path, first, second, code):
    precious = tmp_path / "in_the_ram_disk"
    precious.touch()
    started = program(f"""
        interrupts._SAME_S = 0.0
        interrupts.install('carry on', 3600.0)
        with interrupts.cleaning(lambda: os.unlink({str(precious)!r})):
            hang()
    """)
    started.send_signal(first)
    assert started.stdout is not None
    assert started.stdout.readline() in ("KeyboardInterrupt\n", "Terminated\n")
    started.send_signal(second)
    started.communicate(timeout=TIMEOUT_S)
    assert started.returncode == code
    assert not precious.exists()


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_terminal_may_send_its_signal_twice_and_a_scheduler_and_a_wrapper_theirs_at_once(name):
    started = program(f"""
        interrupts._SAME_S = 3600.0
        interrupts.install('carry on', 3600.0)
        with interrupts.asking(lambda: say('asked'), 3600.0):
            say('hangs')
            sys.stdin.readline()
            for _ in range(1000):  # so that the thread has heard of some
                os.kill(os.getpid(), signal.{name})
                time.sleep(0)
        sys.exit(75 if interrupts.is_asked() else 1)
    """)
    assert started.stdin is not None and started.stdout is not None
    started.send_signal(signal.Signals[name])
    assert started.stdout.readline() == "asked\n"
    started.send_signal(signal.Signals[name])
    started.stdin.write("the end\n")
    started.communicate(timeout=TIMEOUT_S)
    assert started.returncode == 75


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_what_cleans_up_after_a_signal_is_not_broken_off_by_the_same_one(number):
    started = program(f"""
        interrupts._SAME_S = 3600.0
        interrupts.install('carry on', 3600.0)
        try:
            say('hangs')
            time.sleep(3600)
        except interrupts.Terminated:
            for _ in range(100):
                os.kill(os.getpid(), {number:d})
        sys.exit(7)
    """)
    started.send_signal(number)
    started.communicate(timeout=TIMEOUT_S)
    assert started.returncode == 7


def test_an_end_at_once_comes_although_what_cleans_up_hangs():
    started = program("""
        interrupts._LEAVE_S = 0.1
        interrupts.install('carry on', 0.1)
        with interrupts.cleaning(lambda: time.sleep(3600)):
            hang()
    """)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=TIMEOUT_S)
    assert started.returncode == 143


def test_a_command_that_failed_ends_with_its_code_although_a_thread_hangs():
    started = program("""
        import threading
        from asympo_jax import command
        from asympo_jax.endings import RunFailed
        threading.Thread(target=time.sleep, args=(3600,)).start()
        say('hangs')
        def main():
            raise RunFailed('it says why')
        command._guard(main, '')
    """)
    _, stderr = started.communicate(timeout=TIMEOUT_S)
    assert started.returncode == 1
    assert stderr == "error: it says why\n"


@pytest.mark.parametrize(
    ("signalled", "ending"),
    [(interrupts.Terminated, endings.Stopped), (KeyboardInterrupt, endings.Interrupted)],
)
def test_a_signal_in_the_last_evaluation_stops_a_run_that_has_saved_all(signalled, ending):
    def last(*_: object) -> None:
        raise signalled

    run: Any = training._Run(resolve(default_config()), *[None] * 4)  # pyright: ignore
    state = types.SimpleNamespace(update=7, policy=None)
    with pytest.raises(ending, match=r"after update 7 of .* is saved"):
        run._finish(types.SimpleNamespace(last=last), None, state)


def test_what_has_saved_all_and_does_not_end_after_a_signal_says_that_it_has_saved():
    started = program("""
        interrupts.install('carry on', 0.2)
        with interrupts.asking(lambda: None, 3600.0):
            pass
        hang()
    """)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=TIMEOUT_S)
    assert started.returncode == 75


@pytest.mark.parametrize(
    ("number", "end_s", "grace_s", "code"),
    [
        (signal.SIGTERM, 3600.0, 0.2, 143),
        (signal.SIGINT, 3600.0, 0.2, 130),
        (signal.SIGINT, 0.2, 3600.0, 130),  # a person waits no longer than for any other end
    ],
)
def test_what_is_asked_to_end_has_its_grace_time_and_no_more(number, end_s, grace_s, code):
    started = program(f"""
        interrupts.install('carry on', {end_s})
        with interrupts.asking(lambda: say('asked'), {grace_s}):
            hang()
    """)
    started.send_signal(number)
    stdout, stderr = started.communicate(timeout=TIMEOUT_S)
    assert stdout == "asked\n"
    assert started.returncode == code
    told, last = stderr.splitlines()
    assert told.startswith(f"{signal.Signals(number).name}: ") and " 0.2 s at most" in told
    assert last.endswith("not in time; carry on")


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "after all was saved"])
def test_ctrl_c_gives_no_more_time_to_what_has_saved_whenever_it_is_heard_of(is_late):
    started = program(f"""
        look, is_saved = interrupts.select.select, {[] if is_late else [True]}
        def late(*args):
            found = look(*args)
            while found[0] and not is_saved:
                time.sleep(0.01)
            return found
        interrupts.select.select = late
        interrupts.install('carry on', 3600.0)
        with interrupts.asking(lambda: say('asked'), 0.5):
            say('hangs')
            while not interrupts.is_asked():
                time.sleep(0.01)
        is_saved.append(True)
        hang()
    """)
    started.send_signal(signal.SIGINT)
    started.communicate(timeout=TIMEOUT_S)
    assert started.returncode == 130


def test_what_has_saved_in_its_grace_time_and_does_not_end_says_that_it_has_saved():
    started = program("""
        interrupts.install('carry on', 0.2)
        with interrupts.asking(lambda: say('asked'), 3600.0):
            say('hangs')
            while not interrupts.is_asked():
                time.sleep(0.01)
        hang()
    """)
    started.send_signal(signal.SIGTERM)
    stdout, _ = started.communicate(timeout=TIMEOUT_S)
    assert stdout == "asked\nhangs\n"
    assert started.returncode == 75


def test_a_sampler_ignores_signals_and_ends_with_its_learner_whose_snapshots_it_removes(
    tmp_path,
):
    directory, lock = make_private_directory(str(tmp_path), "run")
    (directory / "v00000000.safetensors").touch()
    source = f"""
        import socket, pathlib
        from asympo_jax import processes
        processes._GONE_S = 0.0
        ours, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            theirs.close()
            class Given:
                fd = ours.fileno()
                class store:
                    directory = pathlib.Path({str(directory)!r})
            processes.end_with_learner(Given)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(os.getpid(), number)
            say("hangs")
            while True:
                time.sleep(3600)
        ours.close()
        for line in sys.stdin:
            break
        theirs.close()
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    source = textwrap.dedent(PRELUDE) + textwrap.dedent(source)
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdin is not None and started.stdout is not None
        assert started.stdout.readline() == "hangs\n"
        assert directory.exists()
        lock.close()
        started.stdin.write("the learner is gone\n")
        started.stdin.close()
        assert started.stdout.readline() == "1\n"
    assert not directory.exists()


def test_a_process_that_ends_by_itself_removes_what_a_killed_learner_left(tmp_path, monkeypatch):
    """Also where the lock of the learner is free only a moment after its pipe is closed."""
    directory, lock = make_private_directory(str(tmp_path), "run")
    (directory / "v00000000.safetensors").touch()
    waits = []

    def wait(seconds):
        waits.append(directory.exists())
        lock.close()

    monkeypatch.setattr(processes.time, "sleep", wait)
    processes.remove_left_behind(directory)
    assert waits == [True] and not directory.exists()


def test_a_directory_that_is_refused_is_not_written_to(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt"):
        training.prepare(resolve(default_config()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_who_stops_a_run_is_told_whether_it_begins_anew(tmp_path):
    fields = {**TINY, "runtime.name": "sync", "runtime.snapshot_dir": str(tmp_path / "snapshots")}
    config = default_config()
    config.update_from_flattened_dict(fields)
    training.prepare(resolve(config), tmp_path / "run").lock.close()
    assert interrupts.advice() == interrupts.BEGINS_ANEW
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    training.prepare(resolve(config), tmp_path / "run").lock.close()
    assert interrupts.advice() == interrupts.CARRIES_ON


def test_who_ends_a_process_at_once_is_told_the_newest_advice():
    started = program("""
        interrupts.install('carry on', 0.1)
        interrupts.advise('begin anew')
        hang()
    """)
    started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=TIMEOUT_S)[1].endswith("not in time; begin anew\n")
