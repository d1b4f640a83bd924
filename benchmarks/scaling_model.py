"""Throughput against chips: a model of a run on TPU v5p, for decoders of 4, 32 and 235 billion.

    python benchmarks/scaling_model.py --picture=docs/scaling_chips.png

Prints the tables of docs/scaling.md and draws its picture. Nothing here was measured on a TPU:
FLOPs and bytes are counted from the shapes, peaks of the chip are the published ones, the shares of
them that are reached are assumed, and what one core hands over is read from docs/hand_over.json,
which `hand_over.py` measured.
"""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

from asympo_jax.models import PRESETS, ModelConfig, counts

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
_BF16, _STATE = 2, 16  # bytes of a parameter: for a sampler; parameter, gradient and two moments


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip of a TPU v5p has, as published, and what is assumed to be reached.

    Attributes:
        flops: bfloat16, a second.
        hbm: bytes.
        hbm_bytes_s: of HBM, a second.
        network_bytes_s: of the data center's network, a second.
        train_share: of the FLOPs, that the learner reaches.
        decode_share: of the bandwidth of HBM, and of the FLOPs, that a decode step reaches.
        occupancy: share of a sampler's rows that are at work.
        usable: share of HBM.
    """

    flops: float = 459e12
    hbm: float = 95e9
    hbm_bytes_s: float = 2765e9
    network_bytes_s: float = 50e9 / 8
    train_share: float = 0.4
    decode_share: float = 0.6
    occupancy: float = 0.7
    usable: float = 0.8


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder.

    Attributes:
        name: for people.
        shape: of what a token uses; experts that it does not use are left out.
        parameters: all of them.
    """

    name: str
    shape: ModelConfig
    parameters: float

    @property
    def position_bytes(self) -> int:
        """Keys and values of a token."""
        shape = self.shape
        return 2 * shape.num_layers * shape.num_kv_heads * shape.head_width * _BF16


@dataclasses.dataclass(frozen=True)
class Batch:
    """An update's batch: lengths assumed, of tokens.

    Attributes:
        responses: of all prompts together.
        group_size: responses to a prompt.
        prompt: mean length.
        response: mean length.
        longest: response.
        rows: responses that a chip of a sampler decodes at once.
    """

    responses: int = 4096
    group_size: int = 8
    prompt: int = 256
    response: int = 1024
    longest: int = 3072
    rows: int = 64

    @property
    def tokens(self) -> int:
        """Response tokens of an update."""
        return self.responses * self.response


def decoders() -> list[Decoder]:
    """The three of the tables; shapes as in the published config.json of each."""
    dense = ModelConfig(
        151936, 64, 5120, 64, 8, 128, 25600, 1e6, qk_norm=True, tied_head=False, dtype="bfloat16"
    )
    # 8 experts of 1536 of the 128 of a layer.
    active = dataclasses.replace(dense, num_layers=94, width=4096, num_kv_heads=4, mlp_width=12288)
    unused = 94 * 120 * 3 * 4096 * 1536
    small = PRESETS["qwen3_4b"]
    return [
        Decoder("4 B", small, counts.num_parameters(small)),
        Decoder("32 B", dense, counts.num_parameters(dense)),
        Decoder("235 B (22 B active)", active, counts.num_parameters(active) + unused),
    ]


def learner_work(decoder: Decoder, batch: Batch, chip: Chip) -> float:
    """Chip-seconds of an update: forward twice, as blocks are computed again, and backward."""
    lengths = counts.Lengths(
        batch.responses // batch.group_size, batch.group_size, batch.prompt, batch.response
    )
    flops = 4 * counts.forward_flops(decoder.shape, lengths)
    return flops / (chip.flops * chip.train_share)


def sampler_chips(decoder: Decoder, batch: Batch, chip: Chip) -> int:
    """The fewest chips, a power of two, with room for the parameters and the caches of rows."""
    room = chip.hbm * chip.usable - batch.rows * batch.longest * decoder.position_bytes
    num_chips = 1
    while decoder.parameters * _BF16 / num_chips > room:
        num_chips *= 2
    return num_chips


def step_s(decoder: Decoder, batch: Batch, chip: Chip) -> float:
    """Seconds of a decode step: parameters and caches are read once, or the FLOPs take longer."""
    shape, num_chips = decoder.shape, sampler_chips(decoder, batch, chip)
    context = batch.prompt / batch.group_size + batch.response / 2  # prompts are shared
    cache = batch.rows * context * decoder.position_bytes
    read_s = (decoder.parameters * _BF16 / num_chips + cache) / chip.hbm_bytes_s
    flops = counts.layer_flops(shape) + counts.head_flops(shape)
    flops += counts.attention_flops(shape, batch.prompt + batch.response / 2)
    return max(read_s, batch.rows * flops / chip.flops) / chip.decode_share


def sampler_work(decoder: Decoder, batch: Batch, chip: Chip) -> float:
    """Chip-seconds of decoding the responses of an update."""
    tokens_s = batch.rows / step_s(decoder, batch, chip) * chip.occupancy
    return batch.tokens / tokens_s


def lease_s(decoder: Decoder, batch: Batch, chip: Chip) -> float:
    """Seconds from a lease to its groups: those of the longest response."""
    return batch.longest * step_s(decoder, batch, chip)


def learner_share(decoder: Decoder, batch: Batch, chip: Chip) -> float:
    """The learner's share of the chips with which neither side waits for the other."""
    train, sample = learner_work(decoder, batch, chip), sampler_work(decoder, batch, chip)
    return train / (train + sample)


def update_s(
    decoder: Decoder, batch: Batch, chip: Chip, num_chips: float, lag: int, publish_s: float
) -> dict[str, float]:
    """Least seconds of an update by each thing that bounds it; it takes the largest of them.

    Args:
        decoder: of the learner and the samplers.
        batch: of an update.
        chip: of all.
        num_chips: of learner and samplers together, split by `learner_share`.
        lag: bound of the run.
        publish_s: from the end of an update until samplers have its parameters.
    """
    train, sample = learner_work(decoder, batch, chip), sampler_work(decoder, batch, chip)
    balanced = (train + sample) / num_chips
    around = balanced + publish_s + lease_s(decoder, batch, chip)
    return {"chips": balanced, "lag": around / (lag + 1), "publishing": publish_s}


def publish_times(decoder: Decoder, chip: Chip, measured: dict[str, float]) -> dict[str, float]:
    """Seconds to write a snapshot: one core all of it, or every host of the learner its part."""
    size = decoder.parameters * _BF16
    written = size / (measured["snapshot, written: MB/s"] * 1e6)
    hosts = max(1.0, size * _STATE / _BF16 / (4 * chip.hbm * chip.usable))
    return {"one core": written, "every host": size / (hosts * 4 * chip.network_bytes_s)}


def rows_of(measured: dict[str, Any], batch: Batch, chip: Chip) -> list[dict[str, Any]]:
    """A row a decoder: what each side takes, and where it ends."""
    found = []
    for decoder in decoders():
        train, sample = learner_work(decoder, batch, chip), sampler_work(decoder, batch, chip)
        publish = publish_times(decoder, chip, measured)
        least = decoder.parameters * _STATE / (chip.hbm * chip.usable)
        around_s = lease_s(decoder, batch, chip) + publish["every host"]
        found.append(
            {
                "decoder": decoder.name,
                "parameters": decoder.parameters,
                "snapshot_gb": decoder.parameters * _BF16 / 1e9,
                "learner_chip_s": train,
                "sampler_chip_s": sample,
                "learner_share": train / (train + sample),
                "learner_chips_least": least,
                "sampler_chips": sampler_chips(decoder, batch, chip),
                "tokens_s_chip": batch.tokens / (train + sample),
                "step_ms": 1e3 * step_s(decoder, batch, chip),
                "lease_s": lease_s(decoder, batch, chip),
                "publish_s": publish,
                # Chips up to which a lag keeps them busy: balanced (lag + 1) = balanced + around.
                "chips_by_lag": {
                    lag: (train + sample) * lag / around_s for lag in (1, 2, 8, 32, 128)
                },
                "chips_by_publishing": (train + sample) / publish["one core"],
            }
        )
    return found


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The tables, in Markdown."""
    heads = ["", *(row["decoder"] for row in rows)]
    lines = {
        "snapshot in bfloat16, GB": lambda r: f"{r['snapshot_gb']:,.0f}",
        "an update on the learner, chip-seconds": lambda r: f"{r['learner_chip_s']:,.0f}",
        "its responses on samplers, chip-seconds": lambda r: f"{r['sampler_chip_s']:,.0f}",
        "the learner's share of the chips": lambda r: f"{r['learner_share']:.0%}",
        "least chips of a learner": lambda r: f"{r['learner_chips_least']:.0f}",
        "chips of a sampler": lambda r: f"{r['sampler_chips']}",
        "trained tokens a second and chip": lambda r: f"{r['tokens_s_chip']:,.0f}",
        "decode step, ms": lambda r: f"{r['step_ms']:.1f}",
        "longest response, s": lambda r: f"{r['lease_s']:.0f}",
        "snapshot written by one core, s": lambda r: f"{r['publish_s']['one core']:,.0f}",
        "snapshot written by all hosts, s": lambda r: f"{r['publish_s']['every host']:.1f}",
        "chips that one core's snapshots keep busy": lambda r: f"{r['chips_by_publishing']:,.0f}",
        **{
            f"chips that lag {lag} keeps busy": lambda r, lag=lag: f"{r['chips_by_lag'][lag]:,.0f}"
            for lag in (1, 2, 8, 32, 128)
        },
    }
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, text in lines.items():
        print("| " + " | ".join([name, *map(text, rows)]) + " |")


def draw(measured: dict[str, Any], batch: Batch, chip: Chip, path: pathlib.Path) -> None:
    """Trained tokens a second against chips, a panel a decoder, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, 3, figsize=(13, 4.4), sharex=True, sharey=True, layout="constrained"
    )
    for panel, decoder in zip(panels, decoders(), strict=True):
        publish = publish_times(decoder, chip, measured)
        least = (1 + decoder.parameters * _STATE / (chip.hbm * chip.usable)) / learner_share(
            decoder, batch, chip
        )
        chips = [2**i for i in range(1, 17) if 2**i >= least]
        panel.plot(
            chips,
            [batch.tokens / update_s(decoder, batch, chip, n, 0, 0.0)["chips"] for n in chips],
            color="0.6", linestyle="--", label="chips alone",
        )  # fmt: skip
        for lag, colour in ((0, "#d95f02"), (2, "#e7b800"), (8, "#1b9e77"), (64, "#2b6cb0")):
            bounds = [update_s(decoder, batch, chip, n, lag, publish["every host"]) for n in chips]
            speeds = [batch.tokens / max(bound.values()) for bound in bounds]
            panel.plot(chips, speeds, color=colour, label=f"lag {lag}")
        panel.axhline(
            batch.tokens / publish["one core"], color="black", linestyle=":", linewidth=1,
            label="snapshots written by one core",
        )  # fmt: skip
        panel.set(xscale="log", yscale="log", title=decoder.name, xlabel="chips (TPU v5p)")
        panel.grid(True, which="major", alpha=0.3)
    panels[0].set_ylabel("trained tokens a second")
    panels[0].legend(fontsize=8)
    title = "a model, nothing measured on a TPU"
    figure.suptitle(f"Updates of {batch.responses} responses of {batch.response} tokens: {title}")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prints the tables, draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--picture", type=pathlib.Path, help="where it is drawn")
    parser.add_argument("--responses", type=int, default=4096, help="of an update (4096)")
    given = parser.parse_args()
    measured = json.loads((DOCS / "hand_over.json").read_text())
    batch, chip = Batch(responses=given.responses), Chip()
    print_rows(rows_of(measured, batch, chip))
    if given.picture is not None:
        draw(measured, batch, chip, given.picture)


if __name__ == "__main__":
    main()
