"""The view of a run on a terminal: what it shows, and that it leaves the terminal whole."""

import contextlib
import io
import os
import pty
import queue
import re
import signal
import subprocess
import sys
import threading

import pytest
from tiny_runs import TIMEOUT_S

from asympo_jax import live, progress
from asympo_jax.progress import Progress, say

METRICS = {
    "reward/mean": 0.614, "lag/mean": 16.0, "idle/learner": 0.02, "idle/sampler": 0.4,
    "update/skipped": 0.0, "time/update_s": 0.48, "time/sample_s": 0.24, "time/train_s": 0.47,
    "pipeline/ideal_fraction": 0.98,
}  # fmt: skip
HIDDEN_CURSOR, OTHER_SCREEN = "\x1b[?25l", "\x1b[?1049h"
HOSTILE = ("1+1=\x1b[2J", "2\r\x9b31m" + "long" * 200, 0.5)


class Terminal(io.StringIO):
    """Standard error on a terminal; once `gone` it cannot be written."""

    gone = False

    def isatty(self):
        return True

    def write(self, text):
        if self.gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def text_of(terminal):
    """What was drawn, without the sequences that colour it and move the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def show(view, update=40, answer=None):
    view.show(update, METRICS, 0.48, "55 s left", answer)


@pytest.mark.parametrize(
    ("stream", "term", "wanted"),
    [
        (Terminal(), "xterm", True),
        (Terminal(), "dumb", False),
        (Terminal(), "", False),
        (io.StringIO(), "xterm", False),
        (None, "xterm", False),
    ],
)
def test_a_view_is_drawn_on_a_terminal_that_can_move_its_cursor(stream, term, wanted):
    assert live.is_wanted(stream, {"TERM": term}) is wanted


def test_a_closed_stream_is_no_terminal():
    stream = io.StringIO()
    stream.close()
    assert not live.is_wanted(stream, {"TERM": "xterm"})


def test_a_view_shows_what_a_person_waits_for(terminal):
    with live.View(150, "asympo on arithmetic, lag 16", terminal) as view:
        show(view, answer=("1+1=", "2", 1.0))
    text = text_of(terminal)
    for words in (
        "asympo on arithmetic, lag 16", "update 40/150", "55 s left · lag 16", "samplers wait 40%",
        "the learner is the bottleneck", "0.98 of the ideal", "reward 1  1+1= 2",
    ):  # fmt: skip
        assert words in text
    for row in live.large("0.61").splitlines():
        assert row in text


def test_numbers_that_are_large_have_rows_of_one_length():
    for number in ("0123456789", "-0.5", "27%"):
        rows = live.large(number).splitlines()
        assert len(rows) == 3 and len({len(row) for row in rows}) == 1


def test_on_a_narrow_terminal_numbers_are_small_and_no_line_is_too_long(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with live.View(150, "asympo", terminal) as view:
        show(view)
    text = text_of(terminal)
    assert "27%" in text and max(map(len, text.splitlines())) <= 40


def test_the_cursor_stays_and_no_other_screen_is_opened(terminal):
    with live.View(150, "asympo", terminal) as view:
        show(view)
    assert HIDDEN_CURSOR not in terminal.getvalue() and OTHER_SCREEN not in terminal.getvalue()


def test_an_answer_cannot_steer_the_terminal(terminal):
    with live.View(150, "asympo\x1b[2J", terminal) as view:
        show(view, answer=HOSTILE)
    drawn = terminal.getvalue()
    assert "\x1b[2J" not in drawn and "\x9b" not in drawn
    text = text_of(terminal)
    assert "1+1=\\x1b[2J" in text and "2\\r\\x9b31m" in text


def test_colours_are_left_out_where_they_are_not_wanted(terminal, monkeypatch):
    def coloured():
        return re.search(r"\x1b\[[0-9;]*(3[0-9]|38;)[0-9;]*m", terminal.getvalue())

    with live.View(150, "asympo", terminal) as view:
        show(view)
    assert coloured()
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    with live.View(150, "asympo", terminal) as view:
        show(view)
    assert not coloured()


def test_lines_appear_above_the_view_and_standard_error_is_itself_again_after_it(terminal):
    before = sys.stderr
    with pytest.raises(KeyboardInterrupt), live.View(150, "asympo", terminal) as view:
        show(view)
        say("sampler 1 is started again")
        raise KeyboardInterrupt
    assert sys.stderr is before
    text = text_of(terminal)
    assert text.count("sampler 1 is started again") == 1
    assert text.index("sampler 1 is started again") < text.rindex("update 40/150")
    assert terminal.getvalue().endswith("\n")


def test_a_terminal_that_is_gone_ends_no_run(terminal):
    with live.View(150, "asympo", terminal) as view:
        show(view)
        terminal.gone = True
        show(view)
        seen = len(terminal.getvalue())
        terminal.gone = False
        show(view)
        assert len(terminal.getvalue()) == seen, "given up: what could not be written would pile up"
        terminal.gone = True
        say("nobody sees this")
    terminal.gone = False


@pytest.mark.parametrize("name", ["is_ours", "can_take_more"])
def test_a_terminal_that_is_a_shells_again_or_does_not_read_is_not_drawn_on(
    terminal, monkeypatch, name
):
    with live.View(150, "asympo", terminal) as view:
        show(view)
        seen = len(terminal.getvalue())
        with monkeypatch.context() as patched:
            patched.setattr(live, name, lambda stream: False)
            show(view)
            assert len(terminal.getvalue()) == seen
        show(view)
        assert len(terminal.getvalue()) > seen


def test_a_terminal_whose_other_end_does_not_read_takes_no_more():
    controller, other = pty.openpty()
    os.set_blocking(other, False)
    with open(other, "w") as stream:
        assert live.can_take_more(stream) and live.is_ours(stream)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(other, b"x" * 4096)
        assert not live.can_take_more(stream)
        os.close(controller)


def test_words_of_a_model_in_a_message_cannot_steer_the_terminal(capsys):
    say("error: no answer in \x1b[2J\x9b31m two\nlines")
    assert capsys.readouterr().err == "error: no answer in \\x1b[2J\\x9b31m two\nlines\n"


class Seen:
    """A view that notes what it is told."""

    def __init__(self):
        self.updates = []

    def show(self, update, metrics, accuracy, left, answer):
        self.updates.append((update, accuracy, answer))


def test_a_view_is_drawn_four_times_a_second_at_most_and_only_then_asks_for_an_answer(capsys):
    now, asked, seen = [0.0], [], Seen()
    progress = Progress(100, clock=lambda: now[0], view=seen)
    progress.evaluated(0, {"eval/accuracy": 0.25, "eval/accuracy_greedy": 0.5})
    before = capsys.readouterr().err
    for update in range(1, 101):
        now[0] += 0.125
        progress.update(update, METRICS, lambda: asked.append(1) or ("", "", 1.0))
    assert [update for update, *_ in seen.updates] == [*range(1, 100, 2), 100]
    assert len(asked) == len(seen.updates)
    assert seen.updates[0][1:] == (0.25, ("", "", 1.0))
    assert "0.250" in before and capsys.readouterr().err == ""


def test_a_run_on_a_terminal_that_is_interrupted_says_so_below_its_view(runner, tmp_path):
    controller, terminal = pty.openpty()
    command = runner.command(tmp_path, num_updates=100_000)
    environment = runner.environment | {"TERM": "xterm", "COLUMNS": "90"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=terminal, env=environment
    )  # fmt: skip
    os.close(terminal)
    told = b""
    try:
        while b"last answer" not in told:
            told += os.read(controller, 4096)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                told += os.read(controller, 4096)
            except OSError:  # the other end is closed
                break
        assert process.wait(TIMEOUT_S) == 130
    finally:
        process.kill()
        process.communicate()
        os.close(controller)
    text = told.decode()
    assert HIDDEN_CURSOR not in text and OTHER_SCREEN not in text
    *above, last = text.strip().splitlines()
    assert "is saved; the same command carries on" in last
    assert "╰" in above[-1]


def test_it_is_told_until_the_first_update_that_there_is_none_yet(monkeypatch):
    said = queue.Queue()
    monkeypatch.setattr(progress, "say", said.put)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_SIGNS", 0.01)
    told = Progress(100)
    with told.waiting():
        (thread,) = (one for one in threading.enumerate() if one.name == "waiting")
        assert said.get(timeout=TIMEOUT_S).startswith("no update yet: ")
        told.update(1, METRICS)
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    with Progress(100).waiting():  # a run that fails before
        (thread,) = (one for one in threading.enumerate() if one.name == "waiting")
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
