"""Makes a tiny random model as a Hugging Face directory.

    python -m asympo_jax.tiny --family=qwen3 --out=runs/tiny/qwen3

It has the architecture, the chat template's form and the files of the real ones, so that whatever
is done with those can be tried on a laptop, without a download. Nothing was trained but its
tokenizer, on the few problems that come with the package; it knows nothing.
"""

from absl import flags

from asympo_jax import command, tiny_models

_FAMILY = flags.DEFINE_enum(
    "family", "qwen3", sorted(tiny_models.FAMILIES), "Architecture of the model."
)
_OUT = flags.DEFINE_string("out", None, "Directory to write; new or empty.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random parameters.", lower_bound=0)


def main() -> None:
    """Writes the directory, says what is in it."""
    with command.refusals():
        out = command.directory(_OUT)
        tiny_models.write_tiny(out, _FAMILY.value, _SEED.value)
    command.tell(f"{out}: a random {_FAMILY.value}, with tokenizer and chat template\n")


if __name__ == "__main__":
    command.run(main)
