"""What a soak counts and measures besides what it checks."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import proc
import soak_checks

_FIRST_S, _LONG_S = 15.0, 30.0  # of a process: what says nothing on slopes, and what is enough
_ROLES = {"train": "learner", "sample": "samplers"}
_TICKETS = ("issued", "trained", "filtered", "failed")
_KINDS = ("timeouts", "deaths", "errors")


@dataclasses.dataclass
class _Fault:
    """What was injected: its kind, when it was over, whether an update came after that."""

    kind: str
    over: float
    is_survived: bool = False


class Counts:
    """Faults, failed gradings, memory and descriptors.

    Attributes:
        num_attempts: starts of the training command.
        ends: exit codes.
    """

    def __init__(self):
        """Nothing was seen yet."""
        self.num_attempts = 0
        self.ends: collections.Counter[int] = collections.Counter()
        self._faults: list[_Fault] = []
        self._failures = collections.Counter(dict.fromkeys(_KINDS, 0))
        self._grading: dict[str, float] = {}
        self._first_seen: dict[int, float] = {}
        self._points: dict[tuple[str, int], list[tuple[float, float, float]]] = {}

    @property
    def num_faults(self) -> int:
        """Those that were injected."""
        return len(self._faults)

    @property
    def num_survived(self) -> int:
        """Those after which an update came."""
        return sum(fault.is_survived for fault in self._faults)

    def start(self) -> None:
        """Counts an attempt, whose own counts begin anew."""
        self.num_attempts += 1
        self._grading = {}

    def inject(self, kind: str, over: float) -> None:
        """Counts a fault, which was over at a monotonic second."""
        self._faults.append(_Fault(kind, over))

    def progress(self, since: float, line: Mapping[str, Any]) -> None:
        """Takes note of the newest update, which came after a monotonic second."""
        for fault in self._faults:
            fault.is_survived |= fault.over < since
        for name in _KINDS:
            now = line.get(f"grading/{name}", 0.0)
            self._failures[name] += int(max(0.0, now - self._grading.get(name, 0.0)))
            self._grading[name] = now

    def measure(self, processes: Sequence[proc.Process], now: float) -> None:
        """Memory and descriptors of the learner and the samplers at a monotonic second."""
        for process in processes:
            if process.role in _ROLES:
                age_s = now - self._first_seen.setdefault(process.pid, now)
                self._points.setdefault((_ROLES[process.role], process.pid), []).append(
                    (age_s, process.resident_bytes / 2**20, process.num_descriptors)
                )

    def report(self, journal: soak_checks.Journal) -> dict[str, Any]:
        """All of it by name."""
        tickets = {name: int(journal.last.get(f"tickets/{name}", 0)) for name in _TICKETS}
        live = tickets["issued"] - sum(tickets[name] for name in _TICKETS[1:])
        injected = collections.Counter(fault.kind for fault in self._faults)
        return {
            "updates": journal.updates,
            "updates, with those redone": journal.num_read,
            "updates skipped": journal.num_skipped,
            "attempts": self.num_attempts,
            "ends by exit code": dict(sorted(self.ends.items())),
            "faults injected": self.num_faults,
            "faults survived": self.num_survived,
            "faults by kind": dict(sorted(injected.items())),
            "gradings failed": dict(self._failures),
            "tickets": {**tickets, "live": live},
            **self._slopes(),
        }

    def _slopes(self) -> dict[str, float | None]:
        """By role: MB and descriptors a minute, and of how many processes."""
        found: dict[str, float | None] = {}
        for role in _ROLES.values():
            series = [
                [point for point in points if point[0] >= _FIRST_S]
                for (name, _), points in self._points.items()
                if name == role and points[-1][0] > _LONG_S
            ]
            for column, unit in ((1, "MB/min"), (2, "descriptors/min")):
                value = soak_checks.slope([[(p[0] / 60, p[column]) for p in one] for one in series])
                found[f"{role}, {unit}"] = None if math.isnan(value) else round(value, 3)
            found[f"{role}, processes measured"] = len(series)
        return found
