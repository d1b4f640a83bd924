"""Responses a second: ours, transformers' `generate` and Tunix's sampler on the same work.

    python benchmarks/sampler.py --peers=tunix,transformers
    python benchmarks/sampler.py --peers=tunix,transformers --vocab_size=151936
    python benchmarks/sampler.py --peers=tunix,transformers --mixed

8 prompts of 32 tokens get 8 responses of 96 each, at temperature 1, all of the vocabulary in the
draw and nothing that ends a response early. `--mixed`: 80 prompts get 8 responses each, of which
1 % are eight times as long as the others (12 and 96 tokens); the peers are batch-synchronous and
take ten batches of 64, each to its longest, ours refills what is finished. Tokens are those that
were asked for. Prints a table and, as its last line, JSON.
"""

import dataclasses
import sys

import comparison
import counts
from paired import OURS, Side
from workload import MixedLengths

PEERS = ("tunix", "transformers")


def main() -> int:
    """Measures and prints."""
    parser = comparison.parser(__doc__, PEERS)
    parser.add_argument("--mixed", action="store_true", help="few responses are long")
    parser.add_argument("--caches", default="static,dynamic", help="of transformers")
    parser.add_argument("--compile", action="store_true", help="transformers with torch.compile")
    arguments = parser.parse_args()
    names = comparison.peers(arguments, PEERS)
    work = comparison.workload(arguments)
    task = "mixed" if arguments.mixed else "sampler"
    mixed = (
        MixedLengths(num_prompts=6, lanes=2, short=2, long=6) if arguments.tiny else MixedLengths()
    )
    shared = {"mixed": dataclasses.asdict(mixed)} if arguments.mixed else {}

    def variants(name: str) -> list[Side]:
        if name == "tunix":
            return [Side("tunix", name, task, shared)]
        caches = arguments.caches.split(",")
        found = [
            Side(f"transformers, {c} cache", name, task, shared | {"cache": c}) for c in caches
        ]
        if arguments.compile:
            options = shared | {"cache": "static", "compile": True}
            found.append(Side("transformers, compiled", name, task, options))
        return found

    sides = comparison.sides_of([Side(OURS, OURS, task, shared)], names, variants)
    needed = None if arguments.mixed else counts.sampling(work)
    return comparison.compare(task, sides, work, arguments, needed)


if __name__ == "__main__":
    sys.exit(main())
