"""Updates a second: ours, plain torch, TRL's loss and Tunix's learner on the same work.

    python benchmarks/learner.py --peers=torch,trl,tunix
    python benchmarks/learner.py --peers=torch,trl,tunix --vocab_size=151936 --alone

Forward, backward and Adam over 64 sequences of 32 prompt and 96 response tokens with given
advantages. Each peer is measured with each of `--micro_batches`, the number of sequences that go
through at once. All sides load one decoder, and must give one mean log-prob to one response. `ours,
full logits` is our own decoder under the usual loss: logits of all responses at once, log-softmax.
Tokens are all positions, prompts too. Prints a table and, as its last line, JSON.
"""

import sys

import comparison
import counts
from paired import OURS, Side

PEERS = ("torch", "trl", "tunix")


def main() -> int:
    """Measures and prints."""
    parser = comparison.parser(__doc__, PEERS)
    parser.add_argument("--micro_batches", default=None, help="of the peers (8, and all at once)")
    parser.add_argument("--objective", default="asympo", help="ours (asympo)")
    parser.add_argument("--our_micro_batch", type=comparison.positive, default=8, help="(8)")
    parser.add_argument("--full_logits", action="store_true", help="our own with full logits too")
    arguments = parser.parse_args()
    names = comparison.peers(arguments, PEERS)
    work = comparison.workload(arguments)
    sizes = comparison.micro_batches(arguments, work)
    micro_batch = min(arguments.our_micro_batch, work.num_sequences)
    ours = [
        Side(OURS, OURS, "learner", {"objective": arguments.objective, "micro_batch": micro_batch})
    ]
    if arguments.full_logits:
        ours.append(Side("ours, full logits", OURS, "learner_full_logits"))

    def variants(name: str) -> list[Side]:
        return [Side(f"{name}, {m} at once", name, "learner", {"micro_batch": m}) for m in sizes]

    sides = comparison.sides_of(ours, names, variants)
    return comparison.compare("learner", sides, work, arguments, counts.update(work))


if __name__ == "__main__":
    sys.exit(main())
