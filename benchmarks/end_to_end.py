"""A whole update in one process: sample 64 responses, grade them, train on them.

    python benchmarks/end_to_end.py --peers=trl,tunix
    python benchmarks/end_to_end.py --peers=trl --vocab_size=151936 --alone

The reward is the share of even tokens. Ours samples, makes the batch and takes a step of `asympo`,
or of `--objective=grpo` with the behaviour log-probs that it needs; TRL's GRPOTrainer and Tunix's
GRPO learner do one step of their training loops, without a KL term. Nothing overlaps on any side.
Each peer is measured with each of `--micro_batches`. Prints a table and, as its last line, JSON.
"""

import sys

import comparison
from paired import OURS, Side

PEERS = ("trl", "tunix")


def main() -> int:
    """Measures and prints."""
    parser = comparison.parser(__doc__, PEERS)
    parser.add_argument("--micro_batches", default=None, help="of the peers (8, and all at once)")
    parser.add_argument("--objective", choices=("asympo", "grpo"), default="asympo", help="ours")
    parser.add_argument("--caches", default="dynamic", help="of TRL's generation: dynamic, static")
    arguments = parser.parse_args()
    names = comparison.peers(arguments, PEERS)
    work = comparison.workload(arguments)
    options = {"objective": arguments.objective, "micro_batch": min(8, work.num_sequences)}
    ours = [Side(OURS, OURS, "end_to_end", options)]

    def variants(name: str) -> list[Side]:
        sizes = comparison.micro_batches(arguments, work)
        caches = arguments.caches.split(",") if name == "trl" else [""]
        return [
            Side(
                f"{name}, {m} at once" + (f", {cache} cache" if cache else ""),
                name,
                "end_to_end",
                {"micro_batch": m} | ({"cache": cache} if cache else {}),
            )
            for m in sizes
            for cache in caches
        ]

    sides = comparison.sides_of(ours, names, variants)
    return comparison.compare("end_to_end", sides, work, arguments, None)


if __name__ == "__main__":
    sys.exit(main())
