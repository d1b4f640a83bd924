"""A task whose grading does what the response says, most of it bad."""

import contextlib
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


def _spin(base: int = 9):
    """One call in C that answers to no signal."""
    return base**9**9  # a parameter, because pyright works literals out, too, and as slowly


def _note_pid(path, pid):
    pathlib.Path(path).write_text(str(pid))


def _deaf():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _hang()


def _daemon():
    """A process in a session of its own, without its parent's environment, whose parent is gone."""
    reads, writes = os.pipe()
    parent = os.fork()
    if not parent:
        sleeps = [sys.executable, "-c", "import time; time.sleep(3600)"]
        child = subprocess.Popen(sleeps, start_new_session=True, env={}, close_fds=False)
        os.write(writes, str(child.pid).encode())
        os._exit(0)
    os.waitpid(parent, 0)
    return int(os.read(reads, 20))


class Obeys(Arithmetic):
    """`hang`, `die`, … and a number for a reward of that number."""

    calls = 0
    spoilt = False

    def reward(self, prompt, text):
        word, _, argument = text.partition(" ")
        Obeys.calls += 1
        match word:
            case "hang":
                _hang()
            case "spin":
                _spin()
            case "deaf":
                _deaf()
            case "fork":
                child = os.fork()
                if child:
                    _note_pid(argument, child)
                _hang()
            case "child_then_die":
                _note_pid(argument, _daemon())
                os._exit(3)
            case "daemon":
                _note_pid(argument, _daemon())
                _hang()
            case "forget":
                _note_pid(argument, _daemon())
                return 0.75
            case "unguarded":
                os.kill(os.getppid(), int(argument))
                _hang()
            case "closes":
                os.closerange(3, 1024) if argument == "all" else os.close(int(argument))
                return 0.25
            case "copy":
                os.fork()  # both go on
                return 0.5
            case "spoil":
                Obeys.spoilt = True
                os.environ["SPOILT"] = "yes"
                os.chdir("/")
                signal.signal(signal.SIGALRM, signal.SIG_IGN)
                return 0.5
            case "spoilt":
                alarm = signal.getsignal(signal.SIGALRM)
                is_old = (os.getcwd() != "/", alarm == signal.SIG_DFL, "SPOILT" not in os.environ)
                return float(not all(is_old) or Obeys.spoilt)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(0)
            case "chatter":
                os.write(1, b'{"value": 1.0}\n' * 1000)
                return 0.25
            case "pid":
                _note_pid(argument, os.getpid())
                _spin()
            case "says":
                for descriptor in range(3, 64):
                    with contextlib.suppress(OSError):
                        os.write(descriptor, argument.encode())
                _hang()
            case "allocate":
                return float(len(bytearray(2**33)))
            case "platform":
                return float(os.environ["JAX_PLATFORMS"] == argument)
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


class StartsAfter(Obeys):
    """Ends the first processes that make it."""

    def __init__(self, home: str, num_failed: int):
        attempt = len(os.listdir(home))
        (pathlib.Path(home) / str(attempt)).touch()
        if attempt < num_failed:
            os._exit(5)
        super().__init__()


class Slow(Arithmetic):
    """Rewards the share of digits; now and then, what begins with a 7 cannot be graded in time."""

    def reward(self, prompt, text):
        if text.startswith("7"):
            raise TimeoutError
        return sum(character.isdigit() for character in text) / max(1, len(text))

    def correct(self, prompt, text):
        return super().reward(prompt, text) >= 1


class OneInFour(Slow):
    """Does not grade one response of each group of four."""

    calls = 0

    def reward(self, prompt, text):
        OneInFour.calls += 1
        if OneInFour.calls % 4 == 0:
            raise TimeoutError
        return 1.0
