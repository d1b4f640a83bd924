"""A sweep: one experiment repeated over the values of some of its fields.

    WORKDIR/<run>/            one directory a run, as `train` leaves it, without its checkpoints
    WORKDIR/jobs/             config and output of each run, and why it failed if it did
    WORKDIR/warmup/           shared by all runs
    WORKDIR/compiled/         compiled programs, shared by all runs
    WORKDIR/results/          compact results, what `report` reads and what is worth keeping

A run whose result is there is not repeated; one that was cut off goes on or starts anew, whichever
its directory allows, and ends with the same bits: every learner has as many cores as the others.
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
from concurrent import futures
from typing import Any

from asympo_jax import interrupts, workdirs
from asympo_jax.config import read_json, resolve
from asympo_jax.endings import DIVERGED, FAILED
from asympo_jax.runtime import placement
from asympo_jax.sweep_config import Case


def job_file(workdir: pathlib.Path, case: Case, suffix: str) -> pathlib.Path:
    """A file of a run that is the sweep's: `json` its config, `log` its output, `failure`."""
    return workdir / "jobs" / f"{case.name}.{suffix}"


def result(workdir: pathlib.Path, case: Case) -> dict[str, Any] | None:
    """The result of a run that is done, None if it is not.

    Raises:
        ValueError: its directory has a run of another config, or one evaluated otherwise.
    """
    directory = workdir / case.name
    config = resolve(case.config)
    found = workdirs.result(directory, config)
    if found is not None:
        before, now = (
            c.get("eval", {}) for c in (read_json(directory / "config.json"), config.source)
        )
        for name in sorted(now.keys() | before.keys()):
            if before.get(name) != now.get(name):
                raise ValueError(
                    f"eval.{name}={now.get(name)!r}: {directory} was evaluated with "
                    f"{before.get(name)!r}; use another workdir"
                )
    return found


class Laboratory:
    """Runs the cases that have no result yet, several at a time, each on cores of its own.

    Args:
        cases: of the sweep.
        workdir: of the sweep.
        num_processes: runs at a time.
        environment: of the processes.
        say: takes a line for the person who waits.
        ended: called after each run that ended, by one thread at a time.

    Attributes:
        end_s: seconds from SIGTERM, at most, until a run has saved and ended.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        workdir: pathlib.Path,
        num_processes: int,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        ended: Callable[[], object],
    ):
        """Finds out what is done.

        Raises:
            ValueError: the directory has runs of another sweep, or on another number of cores.
        """
        self._workdir = workdir
        self._environment = dict(environment)
        self._say = say
        self._ended = ended
        self._num_cases = len(cases)
        self._missing = [case for case in cases if result(workdir, case) is None]
        graces = (resolve(case.config).checkpoint.grace_s for case in self._missing)
        self.end_s = max(graces, default=0.0) + interrupts.END_S
        cores = placement.available_cores()
        self._shares = [_share(cores, i, num_processes) for i in range(num_processes)]
        learner_cores, _ = placement.split_cores(self._shares[0])
        self._require_same_cores(len(learner_cores))
        self._waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
        for case in self._missing:
            self._waiting.put(case)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._num_ended = 0
        self._failed: list[str] = []
        self._start = time.monotonic()

    def run(self) -> list[str]:
        """Runs what is missing; returns the names of runs that failed.

        Raises:
            OSError: a process cannot be started, or a file of the sweep not be written.
        """
        done = self._num_cases - len(self._missing)
        self._say(
            f"{self._num_cases} runs: {done} done before, {len(self._missing)} to do, "
            f"{len(self._shares)} at a time"
        )
        self._start = time.monotonic()
        threads = futures.ThreadPoolExecutor(len(self._shares))
        try:
            workers = [threads.submit(self._work, share) for share in self._shares]
            for worker in futures.as_completed(workers):
                worker.result()  # or raises what went wrong in it
        except BaseException:  # Ctrl-C and SIGTERM, too
            self._stop()
            raise
        finally:
            threads.shutdown()
        return self._failed

    def kill(self) -> None:
        """Kills the runs; what they started ends by itself."""
        for process in list(self._running):
            process.kill()

    def _require_same_cores(self, learner_cores: int) -> None:
        """Refuses to go on with another number of cores, on which sums have other bits."""
        path = self._workdir / "jobs" / "learner_cores"
        if path.exists():
            before = path.read_text().strip()
            if self._missing and before != str(learner_cores):
                raise ValueError(
                    f"--processes={len(self._shares)}: gives the learner of a run {learner_cores} "
                    f"cores, where those of {self._workdir} had {before}; must be as many"
                )
        else:
            path.parent.mkdir(exist_ok=True)
            workdirs.replace(path, f"{learner_cores}\n")

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
            words = self._settle(case, code)
            with self._lock:
                self._tell(case, f"{words} · {time.monotonic() - start:.0f} s")
                self._ended()

    def _train(self, case: Case) -> int | None:
        """Runs one case to its end; None if the sweep was stopped."""
        job_file(self._workdir, case, "failure").unlink(missing_ok=True)
        config_path = job_file(self._workdir, case, "json")
        text = json.dumps(case.config.to_dict(), indent=2, sort_keys=True) + "\n"
        workdirs.replace(config_path, text)
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

    def _settle(self, case: Case, code: int) -> str:
        """Keeps what became of a run that ended; returns it in words."""
        if code == 0:
            shutil.rmtree(self._workdir / case.name / "checkpoints", ignore_errors=True)
            found = result(self._workdir, case)
            if found is None:
                raise OSError(f"{self._workdir / case.name}: the run ended without a result.json")
            return f"accuracy {found['eval/accuracy']:.3f}"
        self._failed.append(case.name)
        if code < 0:
            cause = f"killed by signal {-code}"
        else:
            log = job_file(self._workdir, case, "log")
            lines = log.read_text(errors="replace").splitlines()
            cause = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
        if code in (FAILED, DIVERGED) or code < 0:  # others never began, and say nothing of a run
            failure = {"cause": cause, "diverged": code == DIVERGED}
            workdirs.replace(job_file(self._workdir, case, "failure"), json.dumps(failure) + "\n")
        return f"failed, {cause}"

    def _tell(self, case: Case, words: str) -> None:
        """A line for a run that ended."""
        self._num_ended += 1
        left = len(self._missing) - self._num_ended
        left_s = (time.monotonic() - self._start) / self._num_ended * left
        self._say(
            f"[{self._num_cases - left}/{self._num_cases}] {case.name}: {words}"
            + (f" · {left_s / 60:.0f} min left" if left else "")
        )

    def _stop(self) -> None:
        """Ends the runs; each cleans up after itself, or is killed."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        try:
            for process in running:
                process.terminate()
            deadline = time.monotonic() + self.end_s
            for process in running:
                process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:  # after a second Ctrl-C, too
            for process in running:
                process.kill()


def _share(cores: list[int], index: int, count: int) -> list[int]:
    """The cores of process `index`: as many for each, shared only if there are too few."""
    if count >= len(cores):
        return [cores[index % len(cores)]]
    each = len(cores) // count
    return cores[index * each : (index + 1) * each]
