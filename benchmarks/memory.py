"""Peak memory of each side's process: a sampler, a learner and a whole update, one by one.

    python benchmarks/memory.py --peers=torch,trl,tunix
    python benchmarks/memory.py --peers=torch,trl,tunix --vocab_sizes=151936 --tasks=learner

Every side runs by itself: libraries, parameters, compilation, two updates. What is quoted is the
largest resident set of its process from start to end, libraries and compiler included, and beside
it what the libraries alone took. Peers' learners take all 64 sequences at once, and 8; ours 8.
Linux only. Prints a table and, as its last line, JSON.
"""

import argparse
import json
import sys

import comparison
import tables
from paired import OURS, Side
from workload import Workload

PEERS = ("torch", "transformers", "trl", "tunix")
DOES = {
    "sampler": (OURS, "transformers", "tunix"),
    "learner": (OURS, "torch", "trl", "tunix"),
    "end_to_end": (OURS, "trl", "tunix"),
}


def main() -> int:
    """Measures and prints."""
    parser = comparison.parser(__doc__, PEERS)
    parser.add_argument("--tasks", default="learner", help=f"of {', '.join(DOES)} (learner)")
    parser.add_argument("--vocab_sizes", default=None, help="(4096,151936)")
    parser.add_argument("--micro_batches", default=None, help="of the peers (8, and all at once)")
    arguments = parser.parse_args()
    tasks = arguments.tasks.split(",")
    if unknown := sorted(set(tasks) - set(DOES)):
        parser.error(f"--tasks={unknown[0]}: must be of {', '.join(DOES)}")
    arguments.alone, arguments.repeats = True, 1
    names = comparison.peers(arguments, PEERS)
    default = "64" if arguments.tiny else "4096,151936"
    failed, records = False, []
    for vocab_size in comparison.integers(arguments.vocab_sizes or default):
        arguments.vocab_size = vocab_size
        work = comparison.workload(arguments)
        sides = [side for task in tasks for side in sides_of(task, names, work, arguments)]
        measured = comparison.measure(sides, work, arguments, warmups=1)
        failed |= any(one.failure for one in measured.values())
        print(f"\nvocabulary {vocab_size}")
        print(f"{'':34}{'libraries':>12}{'peak':>12}{'ours/peak':>12}")
        for side in sides:
            one, ours = measured[side.name], measured[f"{side.task}: {OURS}"]
            if not one.peak_bytes:
                print(f"{side.name:34}failed: {one.failure}")
                continue
            imported = one.ready["imported_bytes"]
            ratio = ours.peak_bytes / one.peak_bytes
            sizes = f"{imported / 1e9:>9.2f} GB{one.peak_bytes / 1e9:>9.2f} GB"
            print(f"{side.name:34}{sizes}{ratio:>12.2f}")
            records.append(
                {
                    "vocab_size": vocab_size,
                    "side": side.name,
                    "peak_bytes": one.peak_bytes,
                    "imported_bytes": imported,
                    "ours_memory": ratio,
                    "versions": one.ready["versions"],
                }
            )
    machine = tables.machine()
    print(json.dumps({"benchmark": "memory", "rows": records, "machine": machine}))
    return int(failed)


def sides_of(
    task: str, names: list[str], work: Workload, arguments: argparse.Namespace
) -> list[Side]:
    """The sides of one task; ours is the first."""
    found = []
    for peer in (OURS, *names):
        if peer not in DOES[task]:
            continue
        if peer == OURS:
            options = [
                ("", {} if task == "sampler" else {"micro_batch": min(8, work.num_sequences)})
            ]
        elif task == "sampler":
            options = [("", {"cache": "static"} if peer == "transformers" else {})]
        else:
            sizes = comparison.micro_batches(arguments, work)
            options = [(f", {m} at once", {"micro_batch": m}) for m in sizes]
        found += [Side(f"{task}: {peer}{label}", peer, task, chosen) for label, chosen in options]
    return found


if __name__ == "__main__":
    sys.exit(main())
