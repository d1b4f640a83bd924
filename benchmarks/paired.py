"""Sides of a comparison as processes, measured in turns so that all see the same machine.

Each side is a `peer_*.py` in an environment of its own that speaks `protocol`. In every round each
side does one repeat while the others wait for their turn; rounds begin with another side each. What
is quoted are medians over rounds, and medians of the ratios within rounds. Where the sides have no
room beside each other they are measured one after the other instead (`alone`), and ratios are of
medians.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workload import Workload

HERE = pathlib.Path(__file__).resolve().parent
VENVS = HERE / ".venvs"
OURS = "ours"

# Environment of each side that is not ours; see environment.sh.
ENVIRONMENTS = {"torch": "transformers", "transformers": "transformers"}
ENVIRONMENTS |= {"trl": "trl", "tunix": "tunix"}


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: in tables.
        peer: whose `peer_*.py` it is.
        task: what that is to do.
        options: what it may choose, such as `micro_batch`.
    """

    name: str
    peer: str
    task: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Measured:
    """What was measured of a side.

    Attributes:
        seconds: of each repeat.
        cpu_s: the same of all threads' time on a core, which other work on the machine stretches
            less.
        tokens: worked in one repeat.
        ready: what it said of itself.
        peak_bytes: largest resident set of its process, from start to end.
        failure: why it has no numbers, or fewer; None if all went well.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_s: list[float] = dataclasses.field(default_factory=list)
    tokens: float = 0.0
    ready: dict[str, Any] = dataclasses.field(default_factory=dict)
    peak_bytes: int = 0
    failure: str | None = None

    @property
    def per_s(self) -> float:
        """Tokens a second, by the median repeat."""
        return self.tokens / statistics.median(self.seconds)


class Failed(Exception):
    """A side that ended, or did not answer in time."""


def python_of(peer: str) -> str:
    """The interpreter of a peer's environment.

    Raises:
        ValueError: the environment is missing.
    """
    if peer not in ENVIRONMENTS:
        return sys.executable
    environment = ENVIRONMENTS[peer]
    python = VENVS / environment / "bin" / "python"
    if not python.exists():
        raise ValueError(
            f"--peers={peer}: its environment {python.parents[1]} is missing, which "
            f"`bash benchmarks/environment.sh {environment}` makes"
        )
    return str(python)


def peers_of(text: str, allowed: Sequence[str]) -> list[str]:
    """The peers that a person named, separated by commas, all with an environment.

    Raises:
        ValueError: an unknown peer, or one without its environment.
    """
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in allowed:
            raise ValueError(f"--peers={name}: must be of {', '.join(allowed)}")
        python_of(name)
    return names


class _Process:
    """A running side."""

    def __init__(self, side: Side, work: Workload, warmups: int, log: pathlib.Path):
        request = {
            "task": side.task,
            "workload": dataclasses.asdict(work),
            "options": dict(side.options),
            "warmups": warmups,
        }
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
        # Only ours sees the package: a peer's environment must do without.
        environment["PYTHONPATH"] = "" if side.peer in ENVIRONMENTS else os.pathsep.join(paths)
        self._log = log
        script = str(HERE / f"peer_{side.peer}.py")
        with log.open("w", encoding="utf-8") as errors:
            self._popen = subprocess.Popen(
                [python_of(side.peer), script, json.dumps(request)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def ask(self, line: str | None, deadline_s: float) -> dict[str, Any]:
        """The next reply, after a line unless it is None.

        Raises:
            Failed: it ended, or did not answer in time.
        """
        assert self._popen.stdin is not None and self._popen.stdout is not None
        try:
            if line is not None:
                self._popen.stdin.write(line + "\n")
                self._popen.stdin.flush()
            ready, _, _ = select.select([self._popen.stdout], [], [], deadline_s)
            if not ready:
                raise Failed(f"no answer within {deadline_s:.0f} s")
            text = self._popen.stdout.readline()
        except BrokenPipeError:
            text = ""
        if not text:
            raise Failed(f"ended with status {self._popen.wait()}: {self._last_words()}")
        return json.loads(text)

    def end(self) -> None:
        """Ends it, however it is."""
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _last_words(self) -> str:
        """The last line that it wrote."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "nothing was written"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        repeats: rounds.
        warmups: repeats of each side before it is ready; the first compiles.
        alone: one side after the other instead of in turns.
        deadline_s: longest wait for a set-up or a repeat.
        logs: folder of what the sides write to standard error.
    """

    repeats: int
    warmups: int
    alone: bool
    deadline_s: float
    logs: pathlib.Path


def measure(sides: Sequence[Side], work: Workload, plan: Plan) -> dict[str, Measured]:
    """Measures all sides; a side that fails is recorded as such, and the others go on."""
    measured = {side.name: Measured() for side in sides}
    for together in [[side] for side in sides] if plan.alone else [list(sides)]:
        _measure_together(together, work, plan, measured)
    return measured


def _measure_together(
    sides: list[Side], work: Workload, plan: Plan, measured: dict[str, Measured]
) -> None:
    """Measures sides in turns."""
    running: dict[str, _Process] = {}

    def attempt(side: Side, line: str | None) -> dict[str, Any]:
        try:
            return running[side.name].ask(line, plan.deadline_s)
        except Failed as failure:
            measured[side.name].failure = str(failure)
            running.pop(side.name).end()
            return {}

    try:
        for side in sides:
            print(f"… {side.name}", file=sys.stderr)
            log = plan.logs / f"{side.name.replace(' ', '_').replace('/', '_')}.log"
            running[side.name] = _Process(side, work, plan.warmups, log)
            # One after the other: set-up uses all cores, too.
            measured[side.name].ready = attempt(side, None)
        for turn in range(plan.repeats):
            first = turn % len(sides)
            for side in sides[first:] + sides[:first]:
                if side.name in running and (reply := attempt(side, "run")):
                    measured[side.name].seconds.append(reply["seconds"])
                    measured[side.name].cpu_s.append(reply["cpu_s"])
                    measured[side.name].tokens = reply["tokens"]
        for side in sides:
            if side.name in running:
                measured[side.name].peak_bytes = attempt(side, "stop").get("peak_bytes", 0)
    finally:
        for process in running.values():
            process.end()


@contextlib.contextmanager
def model_directory(work: Workload) -> Iterator[Workload]:
    """The workload with its decoder written to a directory, which is removed in the end."""
    with tempfile.TemporaryDirectory() as folder:
        directory = str(pathlib.Path(folder) / "model")
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        subprocess.run(
            [sys.executable, str(HERE / "write_model.py"), work.to_json(), directory],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)},
            check=True,
        )
        yield dataclasses.replace(work, model_dir=directory)
