"""Tasks that tests name by import path, as a user names theirs."""

import os
import pathlib
import signal
import struct
import sys
import time
from typing import Any

import jax.numpy as jnp

from asympo_jax.objectives import Objective
from asympo_jax.runtime import local, snapshots
from asympo_jax.sampling import engine
from asympo_jax.tasks import Task
from asympo_jax.tasks.arithmetic import Arithmetic


class Digits(Arithmetic):
    """Rewards the share of digits, so that an untrained model has something to learn."""

    def reward(self, prompt, text):
        return sum(character.isdigit() for character in text) / max(1, len(text))


def replaced(owner: Any, name: str, by: Any) -> Any:
    """What an attribute was before it is what a moment hooks into."""
    before = getattr(owner, name)
    setattr(owner, name, by)
    return before


def in_sampler() -> bool:
    """Whether this is a sampler's process; the learner grades too, when it evaluates."""
    spec = sys.modules["__main__"].__spec__
    return spec is not None and spec.name == "asympo_jax.sample"


class RaisesInSampler(Digits):
    def reward(self, prompt, text):
        if in_sampler():
            raise RuntimeError("the grader fell over")
        return super().reward(prompt, text)


class RaisesInEvaluation(Digits):
    def correct(self, prompt, text):
        raise RuntimeError("the grader fell over")


class FailsOnSome(Digits):
    """Grading is late for a response that starts with 3, dies for 7, raises for 2 and 9."""

    grades_in_pool = True

    def correct(self, prompt, text):
        if text.startswith("3"):
            raise TimeoutError
        if text.startswith("7"):
            os._exit(3)
        if text.startswith(("9", "2")):
            raise RuntimeError("the grader fell over")
        return super().correct(prompt, text)


class AnswersNumbers(Digits):
    def answer(self, text) -> Any:
        return 7


class RaisesUntilMended(Digits):
    """Its 60th reward raises, unless there is the file $MENDED."""

    calls = 0

    def reward(self, prompt, text):
        self.calls += 1
        if self.calls == 60 and not pathlib.Path(os.environ["MENDED"]).exists():
            raise RuntimeError("the grader fell over")
        return super().reward(prompt, text)


class OtherPromptsInSampler(Digits):
    """As data that were changed after the run was started."""

    def train_prompt(self, index):
        return super().train_prompt((index + in_sampler()) % self.num_train)


class NanInSampler(Digits):
    def reward(self, prompt, text):
        return float("nan") if in_sampler() else super().reward(prompt, text)


class KillsSampler(Digits):
    def reward(self, prompt, text):
        if in_sampler():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reward(prompt, text)


class DiesInActor(Digits):
    """Kills the first actor of Ray that grades a second lease; no other process may know of Ray.

    It leaves in $DIED_AT where the processes of the Ray cluster listen, and their commands.
    """

    calls = 0

    def reward(self, prompt, text):
        main = getattr(sys.modules["__main__"], "__file__", "")
        if not main.endswith("default_worker.py"):
            # A learner that has joined a cluster of its own has set this before.
            assert "ray" not in sys.modules or "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" in os.environ
            return super().reward(prompt, text)
        self.calls += 1
        noted = pathlib.Path(os.environ["DIED_AT"])
        if self.calls == 20 and not (noted / "listening").exists():
            listening, commands = of_cluster()
            (noted / "commands").write_text("\n".join(commands))
            (noted / "listening").write_text("\n".join(listening))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reward(prompt, text)


def of_cluster() -> tuple[list[str], list[str]]:
    """Where the processes that have this one's token, and who started them, listen; commands."""
    token, pids = os.environ["RAY_AUTH_TOKEN"].encode(), set()
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if token in (entry / "environ").read_bytes():
                pids |= {entry.name, (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]}
        except OSError:
            continue
    inodes, commands = set(), []
    for pid in pids:
        try:
            commands.append((pathlib.Path("/proc") / pid / "cmdline").read_text())
            links = [os.readlink(link) for link in (pathlib.Path("/proc") / pid / "fd").iterdir()]
        except OSError:
            continue
        inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return [line[1] for line in lines if line[3] == "0A" and line[9] in inodes], commands


class DiesInTurn(Digits):
    """Kills its sampler at the moments of $DIES_AT, one after the other, each once.

    It leaves a file in $DIED_AT for each. What it hooks into are the sampler's own stages.
    """

    def __init__(self):
        super().__init__()
        moments = os.environ["DIES_AT"].split() if in_sampler() else []
        self._died_at = pathlib.Path(os.environ["DIED_AT"])
        self._calls = 0
        left = [moment for moment in moments if not (self._died_at / moment).exists()]
        if left:
            self._moment = left[0]
            getattr(self, f"_dies_{self._moment}")()

    def _dies_idle(self):
        """Once all of an update is handed in; at lag 0 there is no lease until it is trained on."""

        def submit(client, *args, **kwargs):
            submit_really(client, *args, **kwargs)
            self._die_at_call(2)

        submit_really = replaced(local.LocalClient, "submit", submit)

    def _dies_rollout(self):
        """Between two segments of the second lease."""

        def collect(device, lanes):
            self._die_at_call(2)
            return collect_really(device, lanes)

        collect_really = replaced(engine._Device, "_collect", collect)

    def _dies_reading(self):
        """With the second snapshot read and not yet used."""

        def read_files(*given):
            found = read_really(*given)
            self._die_at_call(2)
            return found

        read_really = replaced(snapshots, "read_files", read_files)

    def _dies_submitting(self):
        """With half of the second submission sent."""

        def send_bytes(connection, frame):
            if len(frame) > 200:  # a submission
                self._die_at_call(2, lambda: self._send_half(connection, frame))
            send_really(connection, frame)

        send_really = replaced(local.Connection, "send_bytes", send_bytes)

    def _send_half(self, connection, frame):
        os.write(connection.fileno(), struct.pack("!i", len(frame)) + frame[: len(frame) // 2])

    def _die_at_call(self, number, last_act=lambda: None):
        self._calls += 1
        if self._calls == number:
            (self._died_at / self._moment).touch()
            last_act()
            os.kill(os.getpid(), signal.SIGKILL)


class WithoutDemonstrations(Digits):
    demonstration = Task.demonstration


class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


class SwallowsSignal(Digits):
    """Terminates its process where Python ignores exceptions."""

    def reward(self, prompt, text):
        Dying()
        return super().reward(prompt, text)


class Rarely(Digits):
    """Rewards few responses, so that many groups have nothing to teach."""

    def reward(self, prompt, text):
        return float(text.startswith("7"))


class CannotBeMade(Digits):
    def __init__(self):
        raise ZeroDivisionError


class ExitsInSampler(Digits):
    def reward(self, prompt, text):
        if in_sampler():
            raise SystemExit(0)
        return super().reward(prompt, text)


def share_of_nines(prompt, text):
    """A reward of a user's own."""
    return text.count("9") / max(1, len(text))


def scaled_weight(batch, factor=1.0):
    return jnp.full_like(batch.advantage_B, factor)[:, None]


scaled = Objective("scaled", scaled_weight)
divided = Objective("divided", scaled_weight, "constant", constant=7.0, kl_coefficient=0.1)


def weight_of_size(batch, fewest=0.0, most=-1.0):
    """1, but NaN for a batch of so many tokens."""
    num_tokens = batch.totals.num_tokens
    weight = jnp.where((fewest <= num_tokens) & (num_tokens <= most), jnp.nan, 1.0)
    return jnp.broadcast_to(weight, batch.advantage_B.shape)[:, None]


nan_at = Objective("nan_at", weight_of_size)


def length_of_text(prompt, text):
    """A reward that any response gets something of, and that differs within a group."""
    return float(len(text) % 5)


class HeldUp(Digits):
    """Cannot tell what is right in an evaluation before a file is there."""

    def correct(self, prompt, text):
        while not pathlib.Path(os.environ["GO_FILE"]).exists():
            time.sleep(0.01)
        return super().correct(prompt, text)


class HalfATokenizer:
    vocab_size, stop_ids = 3, (1,)

    def encode(self, text):
        return [2 for _ in text]

    def decode(self, ids):
        return "" * len(ids)


class OldTokenizer(Digits):
    """Has a tokenizer that is no `Tokenizer` by birth."""

    def __init__(self):
        super().__init__()
        self.tokenizer = HalfATokenizer()  # pyright: ignore[reportAttributeAccessIssue]


class RaisesInPool(Digits):
    """Unlike its accuracies, its rewards always raise."""

    def reward(self, prompt, text):
        raise RuntimeError("the grader fell over")

    def correct(self, prompt, text):
        return False


class Few(Digits):
    """Has fewer prompts than an update trains on."""

    def __init__(self):
        super().__init__()
        self.num_train = 3


class AllTheSame(Digits):
    """Rewards every response alike."""

    def reward(self, prompt, text):
        return 0.5
