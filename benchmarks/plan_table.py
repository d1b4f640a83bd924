"""Whether the models of the paper fit: a table of configs and slices of TPUs.

    python benchmarks/plan_table.py                    # by arithmetic, a minute
    python benchmarks/plan_table.py --compile          # by the TPU compiler, too

Each config is planned on all chips of each slice, by `learner.fsdp`, its samplers on a chip each.
What does not fit is changed as the plan says until it does, by estimate; the compiler is given what
comes out. What it says is kept in docs/plan_table.json, row by row, and a row that is there is not
compiled again. Prints the table of docs/plan.md.
"""

import argparse
import copy
import dataclasses
import json
import pathlib
import runpy
import sys
from typing import Any

from asympo_jax.plan import compiled, fitting, memory, topology
from asympo_jax.plan.subject import Subject, make_subject

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = ("math_qwen3_1p7b", "math_llama3p2_3b", "math_qwen3_4b")
SLICES = ("v5e:4x4", "v5p:2x2x1", "v6e:2x4")


def main() -> None:
    """Plans, compiles if asked to, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compile", action="store_true", help="by the TPU compiler, too")
    parser.add_argument("--kept", type=pathlib.Path, default=ROOT / "docs" / "plan_table.json")
    parser.add_argument("--slices", default=",".join(SLICES), help="of these kinds one a process")
    given = parser.parse_args()
    kept = json.loads(given.kept.read_text()) if given.kept.exists() else {}
    rows = []
    for name in CONFIGS:
        for slice_name in given.slices.split(","):
            row = planned(name, topology.slice_named(slice_name))
            key = f"{name} {slice_name}"
            found = kept.get(key, {})
            if found.get("flags") != row["flags"]:
                found = {"flags": row["flags"]}
            if given.compile:
                for part, size in compile_missing(row, found):
                    found[part] = size
                    kept[key] = found
                    given.kept.write_text(json.dumps(kept, indent=1) + "\n")
            rows.append(row | found)
    print_rows(rows)


def planned(name: str, wanted: topology.Slice) -> dict[str, Any]:
    """A config on a slice, changed until it fits by estimate."""
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
    topology.spread_over(config, wanted)
    flags: dict[str, Any] = {"learner.fsdp": config.learner.fsdp}
    if wanted.num_hosts > 1:  # each writes its part, and none has a copy whole
        config.runtime.snapshot_dir = flags["runtime.snapshot_dir"] = "/of/all/hosts"
    subject = make_subject(config, wanted.num_hosts)
    if config.learner.micro_batch > 1:
        flags["learner.micro_batch"] = config.learner.micro_batch
    learner = fitting.learner_that_fits(subject, wanted.hbm_bytes)
    if learner is not None and learner.fsdp == config.learner.fsdp:
        for field in dataclasses.fields(learner):
            value = getattr(learner, field.name)
            if value != config.learner[field.name]:
                config.learner[field.name] = flags[f"learner.{field.name}"] = value
    lanes = fitting.lanes_that_fit(subject, wanted.hbm_bytes)
    if lanes is not None and lanes != subject.engine.num_lanes:
        config.sampler.lanes = flags["sampler.lanes"] = lanes
    subject = make_subject(copy.deepcopy(config), wanted.num_hosts)
    return {
        "config": name,
        "slice": wanted,
        "subject": subject,
        "flags": flags,
        "learner_estimate": sum(memory.learner_sizes(subject).values()),
        "sampler_estimate": sum(memory.sampler_sizes(subject).values()),
    }


def compile_missing(row: dict[str, Any], found: dict[str, Any]) -> Any:
    """The sizes of the programs that were not compiled yet, one after the other."""
    subject: Subject = row["subject"]
    for part, traced_on in (("learner", compiled.step_on), ("sampler", compiled.segment_on)):
        if part in found:
            continue
        devices = topology.devices_of(row["slice"])
        try:
            size: Any = compiled.extrapolated(subject, traced_on(devices)).together
        except compiled.TooLarge as refused:
            size = f"more than {refused.needed}"
        sys.stderr.write(f"{row['config']} {row['slice'].name} {part}: {size}\n")
        yield part, size


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table, in Markdown."""
    print("| config | slice | GiB of a chip | learner, estimate · compiled | sampler | with |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        sizes = [
            _gib(row[f"{part}_estimate"]) + (f" · {_gib(row[part])}" if part in row else "")
            for part in ("learner", "sampler")
        ]
        flags = " ".join(f"`{name}={value}`" for name, value in row["flags"].items())
        hbm = _gib(row["slice"].hbm_bytes)
        cells = [f"`{row['config']}`", f"`{row['slice'].name}`", hbm, *sizes, flags]
        print(f"| {' | '.join(cells)} |")


def _gib(size: Any) -> str:
    """Bytes, or the words for what the compiler refused."""
    return f"{size / 2**30:.1f}" if isinstance(size, int) else str(size)


if __name__ == "__main__":
    main()
