"""A sweep: one experiment repeated over the values of some of its fields.

    WORKDIR/<run>/            one directory a run, as `train` leaves it, without its checkpoints
    WORKDIR/jobs/             config and output of each run, and the cause if it failed
    WORKDIR/warmup/           shared by all runs
    WORKDIR/results/          compact results, what `report` reads and what is worth keeping

A run whose result is there is not repeated; one that was cut off goes on or starts anew, whichever
its directory allows, and ends with the same bits.
"""

import json
import pathlib
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asympo_jax import workdirs
from asympo_jax.config import resolve
from asympo_jax.runtime import placement
from asympo_jax.sweep_config import Case

_TERMINATE_TIMEOUT_S = 20.0


def job_file(workdir: pathlib.Path, case: Case, suffix: str) -> pathlib.Path:
    """A file of a run that is the sweep's: `json` its config, `log` its output, `failure`."""
    return workdir / "jobs" / f"{case.name}.{suffix}"


class Laboratory:
    """Runs the cases that have no result yet, several at a time, each on cores of its own.

    Args:
        runs: of the sweep.
        workdir: of the sweep.
        num_processes: runs at a time.
        environment: of the processes.
        say: takes a line for the person who waits.
    """

    def __init__(
        self,
        runs: Sequence[Case],
        workdir: pathlib.Path,
        num_processes: int,
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ):
        """Finds out what is done.

        Raises:
            ValueError: the directory has runs of another sweep.
        """
        self._workdir = workdir
        self._num_processes = num_processes
        self._environment = dict(environment)
        self._say = say
        self._num_cases = len(runs)
        self._missing = [run for run in runs if self._result(run) is None]
        self._waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
        for run in self._missing:
            self._waiting.put(run)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._num_ended = 0
        self._failed: list[str] = []

    def run(self) -> list[str]:
        """Runs what is missing; returns the names of runs that failed."""
        done = self._num_cases - len(self._missing)
        self._say(
            f"{self._num_cases} runs: {done} done before, {len(self._missing)} to do, "
            f"{self._num_processes} at a time"
        )
        self._start = time.monotonic()
        cores = placement.available_cores()
        threads = [
            threading.Thread(target=self._work, args=(_share(cores, i, self._num_processes),))
            for i in range(self._num_processes)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C and SIGTERM, too
            self._stop()
            for thread in threads:
                thread.join()
            raise
        return self._failed

    def _work(self, cores: list[int]) -> None:
        """Runs cases until none waits or the sweep is stopped."""
        placement.pin(cores)  # this thread, and so the processes that it starts
        while True:
            try:
                case = self._waiting.get_nowait()
            except queue.Empty:
                return
            start = time.monotonic()
            code = self._train(case)
            if code is None:
                return
            self._tell(case, code, time.monotonic() - start)

    def _train(self, case: Case) -> int | None:
        """Runs one case to its end; None if the sweep was stopped."""
        config_path = job_file(self._workdir, case, "json")
        config_path.parent.mkdir(exist_ok=True)
        config_path.write_text(json.dumps(case.config.to_dict(), indent=2, sort_keys=True) + "\n")
        command = [sys.executable, "-m", "asympo_jax.train"]
        command += [f"--config={config_path}", f"--workdir={self._workdir / case.name}"]
        with job_file(self._workdir, case, "log").open("wb") as log:
            with self._lock:
                if self._stopped:
                    return None
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    process_group=0,  # Ctrl-C reaches the sweep alone, which ends its runs
                )
                self._running.add(process)
            code = process.wait()
        with self._lock:
            self._running.discard(process)
            return None if self._stopped else code

    def _tell(self, case: Case, code: int, seconds: float) -> None:
        """Accounts for a run that ended."""
        failure = job_file(self._workdir, case, "failure")
        if code == 0:
            shutil.rmtree(self._workdir / case.name / "checkpoints", ignore_errors=True)
            failure.unlink(missing_ok=True)
            result = self._result(case)
            assert result is not None
            words = f"accuracy {result['eval/accuracy']:.3f}"
        else:
            log = job_file(self._workdir, case, "log")
            lines = log.read_text(errors="replace").splitlines()
            cause = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
            failure.write_text(cause + "\n")
            words = f"failed, {cause}"
        with self._lock:
            self._num_ended += 1
            if code:
                self._failed.append(case.name)
            left = len(self._missing) - self._num_ended
            left_s = (time.monotonic() - self._start) / self._num_ended * left
            number = self._num_cases - left
            self._say(
                f"[{number}/{self._num_cases}] {case.name}: {words} · {seconds:.0f} s"
                + (f" · {left_s / 60:.0f} min left" if left else "")
            )

    def _result(self, case: Case) -> dict[str, Any] | None:
        """The result of a case that is done.

        Raises:
            ValueError: its directory has a run of another config.
        """
        return workdirs.result(self._workdir / case.name, resolve(case.config))

    def _stop(self) -> None:
        """Ends the runs; each cleans up after itself, or is killed."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _TERMINATE_TIMEOUT_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _share(cores: list[int], index: int, count: int) -> list[int]:
    """The cores of process `index`: as many for each, shared only if there are too few."""
    if count >= len(cores):
        return [cores[index % len(cores)]]
    each = len(cores) // count
    return cores[index * each : (index + 1) * each]
