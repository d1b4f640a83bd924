"""Browses the sampled responses that a run wrote into its rollouts/.

    python -m asympo_jax.inspect DIR
    python -m asympo_jax.inspect DIR --max_reward=0 --sort=-tokens --num=3

Works while the run goes on. What a model wrote is printed with its control characters written out,
so that nothing of it reaches the terminal as a command.

Exit codes: 0 done · 2 wrong input.
"""

import argparse
import dataclasses
import math
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Sequence

from asympo_jax.printable import visible
from asympo_jax.report import rollouts
from asympo_jax.report.rollouts import Sample
from asympo_jax.runtime.files import not_a_run

_RANGES = {"reward": float, "tokens": int, "lag": int}
_ORDERS = ("update", *_RANGES)
_DEFAULT_NUM = 10


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which samples are wanted.

    Attributes:
        bounds: field -> lowest and highest value, None for no bound.
        substring: of the prompt.
    """

    bounds: dict[str, tuple[float | None, float | None]]
    substring: str

    def takes(self, sample: Sample) -> bool:
        """Whether a sample is; one whose reward is not known fits no bound on it."""
        for field, (low, high) in self.bounds.items():
            value = getattr(sample, field)
            if low is not None and not value >= low:
                return False
            if high is not None and not value <= high:
                return False
        return self.substring in sample.prompt

    def words(self) -> str:
        """What was asked for, as flags."""
        flags = [
            f"--{side}_{field}={bound:g}"
            for field, pair in self.bounds.items()
            for side, bound in zip(("min", "max"), pair, strict=True)
            if bound is not None
        ]
        return " ".join(flags + ([f"--prompt={self.substring!r}"] if self.substring else []))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the samples that are asked for; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        text = _show(parsed)
    except ValueError as error:
        sys.stderr.write(f"error: {' '.join(visible(str(error)).split())}\n")
        return 2
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`; Python's own end would write again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=globals().get("PROGRAM", "python -m asympo_jax.inspect"),  # `asympo` gives its own
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", help="directory of a run, at work or ended")
    for field, kind in _RANGES.items():
        for side in ("min", "max"):
            words = f"{'lowest' if side == 'min' else 'highest'} {field} shown"
            parser.add_argument(f"--{side}_{field}", type=kind, metavar="N", help=words)
    parser.add_argument("--update", metavar="U or FROM:TO", help="trained on by these updates")
    parser.add_argument("--prompt", metavar="TEXT", default="", help="a part of the prompt")
    parser.add_argument(
        "--num",
        type=int,
        default=_DEFAULT_NUM,
        metavar="N",
        help=f"at most so many; 0 for all (default: {_DEFAULT_NUM})",
    )
    parser.add_argument(
        "--sort",
        choices=[f"{sign}{order}" for order in _ORDERS for sign in ("", "-")],
        default="-update",
        help="ascending, or descending with a minus (--sort=-reward; default: -update)",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line, nothing else")
    return parser


def _show(parsed: argparse.Namespace) -> str:
    """What is printed.

    Raises:
        ValueError: wrong input, naming it and what is allowed.
    """
    wanted = _filter(parsed)
    first, last = _updates(parsed.update)
    if parsed.num < 0:
        raise ValueError(f"--num={parsed.num}: must be 0, for all, or positive")
    directory = pathlib.Path(parsed.directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: is not a directory")
    files = rollouts.files(directory)
    if not files and not (directory / "config.json").exists():
        raise ValueError(f"{directory}: {not_a_run(directory)}")
    samples, num_unreadable = [], 0
    for update, path in files.items():
        if first <= update <= last:
            found, bad = rollouts.read(update, path)
            samples += found
            num_unreadable += bad
    chosen = sorted(filter(wanted.takes, samples), key=_key(parsed.sort))
    shown = chosen[: parsed.num or None]
    if parsed.json:
        return "".join(f"{one.as_json()}\n" for one in shown)
    if not shown:
        return _nothing(list(files), samples, parsed.update, wanted)
    footer = f"{len(shown)} of {len(chosen)} samples"
    if len(chosen) < len(samples):
        footer += f" that fit, of {len(samples)}"
    if num_unreadable:
        footer += f"; {num_unreadable} lines cannot be read"
    return "\n".join(map(_readable, shown)) + f"\n{footer}\n"


def _filter(parsed: argparse.Namespace) -> Filter:
    """The bounds that are given.

    Raises:
        ValueError: no value is within them.
    """
    bounds = {}
    for field in _RANGES:
        low, high = getattr(parsed, f"min_{field}"), getattr(parsed, f"max_{field}")
        for side, bound in (("min", low), ("max", high)):
            if bound is not None and not math.isfinite(bound):
                raise ValueError(f"--{side}_{field}={bound}: must be a finite number")
        if low is not None and high is not None and low > high:
            raise ValueError(f"--min_{field}={low:g}: must be at most --max_{field}={high:g}")
        bounds[field] = low, high
    return Filter(bounds, parsed.prompt)


def _updates(text: str | None) -> tuple[float, float]:
    """The first and the last update of `U` or `FROM:TO`, of which either may be left out."""
    match = re.fullmatch(r"(\d+)|(\d*):(\d*)", text or ":", re.ASCII)
    if match is None:
        raise ValueError(f"--update={text}: must be a number, or two as in 10:20, 10: or :20")
    alone, low, high = match.groups()
    if alone is not None:
        return int(alone), int(alone)
    first, last = int(low or 0), int(high) if high else math.inf
    if first > last:
        raise ValueError(f"--update={text}: the first must be at most the last")
    return first, last


def _key(order: str):
    """What samples are sorted by; those of one prompt stay together, unknown rewards come last."""
    field, sign = order.lstrip("-"), -1.0 if order.startswith("-") else 1.0

    def key(sample: Sample) -> tuple[float, int]:
        value = getattr(sample, field)
        return (sign * value if math.isfinite(value) else math.inf), sample.ticket

    return key


def _nothing(
    updates: Sequence[int], samples: Sequence[Sample], asked: str | None, wanted: Filter
) -> str:
    """A sentence on what there is instead."""
    if not updates:
        return (
            "the run has written no samples yet; log.rollouts_every_updates says after which "
            "updates it does\n"
        )
    if not samples:
        there = f"{updates[0]} to {updates[-1]}" if len(updates) > 1 else str(updates[0])
        which = f"no samples of --update={asked}" if asked else "no line that can be read"
        return f"{which}; there are files of {len(updates)} updates, {there}\n"
    spans = []
    for field in _RANGES:
        values = [getattr(one, field) for one in samples if math.isfinite(getattr(one, field))]
        spans.append(f"{field} {min(values):g} to {max(values):g}" if values else f"no {field}")
    return f"none of {len(samples)} samples fits {wanted.words()}; they have {', '.join(spans)}\n"


def _readable(sample: Sample) -> str:
    """A sample for people."""
    reward = f"{sample.reward:.3g}" if math.isfinite(sample.reward) else "not known"
    head = (
        f"update {sample.update} · ticket {sample.ticket} · reward {reward} · "
        f"{sample.tokens} tokens, {visible(sample.stop)} · lag {sample.lag}"
    )
    texts = (
        textwrap.indent(visible(text, kept="\n"), mark, lambda _: True)
        for text, mark in ((sample.prompt, "  > "), (sample.response, "    "))
    )
    return "\n".join((head, *texts)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
