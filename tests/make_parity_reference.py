"""Writes tests/data/parity: tiny directories, and what transformers makes of them.

    python tests/make_parity_reference.py

Needs the extra [parity]. The tests that read it then need neither torch nor transformers.
"""

import itertools
import pathlib
import shutil

import numpy as np
import parity_cases

DIRECTORY = pathlib.Path(__file__).parent / "data" / "parity"
# Rounding may not decide a greedy token.
LEAST_LEAD = 1e-3
# The same token over and over shows little.
LEAST_TOKENS = 9


def main() -> None:
    """Writes all of it anew."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    for name, case in parity_cases.CASES.items():
        made = (write(case, seed, DIRECTORY / name) for seed in itertools.count())
        lead, num_tokens = next(
            (lead, num_tokens)
            for lead, num_tokens in made
            if lead > LEAST_LEAD and num_tokens >= LEAST_TOKENS
        )
        print(f"{name}: {num_tokens} greedy tokens, each leads by {lead:.4f} at least")  # noqa: T201


def write(case: parity_cases.Case, seed: int, directory: pathlib.Path) -> tuple[float, int]:
    """Writes a directory and its reference; the least lead of its greedy tokens, their number."""
    shutil.rmtree(directory, ignore_errors=True)
    parity_cases.write_oracle(case, parity_cases.make_oracle(case, seed), directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    oracle = parity_cases.load_oracle(directory)
    greedy, lead = parity_cases.oracle_greedy(oracle)
    logits = parity_cases.oracle_logits(oracle)
    np.savez_compressed(directory / "reference.npz", logits=logits, greedy=greedy)
    return lead, len(np.unique(greedy))


if __name__ == "__main__":
    main()
