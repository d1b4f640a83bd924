"""How a side of a comparison talks to the script that compares: lines of JSON.

A side is a process of its own, with an environment of its own. After set-up and warm-up it says
`ready`; then it does one repeat for each line `run`, and says how long it took; at `stop` it says
how much memory it had at its peak. Its standard output carries that and nothing else: what
libraries print goes to standard error. The standard library and NumPy alone.
"""

import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

from workload import Workload


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a side has set up.

    Attributes:
        run: does repeat number n, waits for its end, returns the tokens (or other units) worked.
        num_parameters: of the decoder; None where there is none.
        imported_bytes: peak of memory once the libraries were imported.
        facts: whatever else is worth a record, such as a check of the result.
    """

    run: Callable[[int], float]
    num_parameters: int | None
    imported_bytes: int
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


Prepare = Callable[[str, Workload, dict[str, Any]], Prepared]


def serve(prepare: Prepare, packages: Iterable[str]) -> None:
    """Speaks for one side until `stop`.

    Args:
        prepare: (task, workload, options) -> what to repeat.
        packages: whose versions are recorded.
    """
    replies = _claim_stdout()
    request = json.loads(sys.argv[1])
    prepared = prepare(request["task"], Workload(**request["workload"]), request["options"])
    for number in range(request["warmups"]):
        prepared.run(number)

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    reply(
        event="ready",
        versions={name: metadata.version(name) for name in packages},
        num_parameters=prepared.num_parameters,
        imported_bytes=prepared.imported_bytes,
        facts=prepared.facts,
    )
    number = request["warmups"]
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        start, start_cpu = time.perf_counter(), time.process_time()
        tokens = prepared.run(number)
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
        reply(event="repeat", seconds=seconds, cpu_s=cpu_s, tokens=tokens)
        number += 1
    reply(event="stopped", peak_bytes=peak_bytes())
    # Some libraries have threads that would keep the process from its end.
    os._exit(0)


def peak_bytes() -> int:
    """The largest resident set of this process until now, on Linux."""
    # Not from `getrusage`: there a process starts with the peak of the one that started it.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _claim_stdout() -> Any:
    """The standard output as it was, while whoever writes to it now writes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies
