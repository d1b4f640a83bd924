"""A task whose grading does what the response says, most of it bad."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from asympo_jax.tasks.arithmetic import Arithmetic


def _hang():
    while True:
        time.sleep(3600)


def _note_pid(path, pid):
    pathlib.Path(path).write_text(str(pid))


def _deaf():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _hang()


class Obeys(Arithmetic):
    """`hang`, `die`, … and a number for a reward of that number."""

    calls = 0

    def reward(self, prompt, text):
        word, _, argument = text.partition(" ")
        Obeys.calls += 1
        match word:
            case "hang":
                _hang()
            case "spin":
                return float(len(str(9**9**9)))  # one call in C that answers to no signal
            case "deaf":
                _deaf()
            case "fork":
                child = os.fork()
                if child:
                    _note_pid(argument, child)
                _hang()
            case "child_then_die":
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
                _note_pid(argument, child.pid)
                os._exit(3)
            case "copy":
                os.fork()  # both go on
                return 0.5
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(0)
            case "chatter":
                os.write(1, b'{"value": 1.0}\n' * 1000)
                return 0.25
            case "pid":
                _note_pid(argument, os.getpid())
                _hang()
            case "raise":
                raise RuntimeError("the grader fell over")
            case "late":
                raise TimeoutError("a soft one")
            case "memory":
                raise MemoryError
            case "count":
                return float(Obeys.calls)
            case "length":
                return float(len(text))
        return float(word)

    def correct(self, prompt, text):
        return self.reward(prompt, text) > 2


class CannotStart(Arithmetic):
    def __init__(self):
        os._exit(5)
