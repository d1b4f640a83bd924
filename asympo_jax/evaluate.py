"""Evaluates a checkpoint of a run, or a Hugging Face directory, on held-out prompts.

    python -m asympo_jax.evaluate --workdir=DIR [--update=U]
    python -m asympo_jax.evaluate --hf_dir=HF_DIR --config=FILE [--config.FIELD=VALUE] --out=DIR

Prints greedy accuracy, avg@k, pass@j and maj@k with 95 % intervals over prompts, and writes
evaluation.json, and evaluation.jsonl with every response, to --out or the run's directory.
"""

from typing import Any

from absl import flags

from asympo_jax import command, evaluation, evaluation_report

_CONFIG = command.define_config_flag(
    "With --hf_dir: the config that names the task and the lengths."
)
flags.declare_key_flag("config")
_PATHS = (
    flags.DEFINE_string("workdir", None, "Directory of a run; or give --hf_dir."),
    flags.DEFINE_string("hf_dir", None, "Hugging Face directory; its config.json says the shape."),
    flags.DEFINE_string("out", None, "Directory to write to. Without it, the run's."),
)
_OTHERS = (
    flags.DEFINE_enum(
        "platform", None, ["cpu", "cuda", "tpu"], "jax platform. Without it, the config's."
    ),
    flags.DEFINE_integer("update", None, "Update of the checkpoint. Without it, the newest.", 0),
    flags.DEFINE_integer("num_prompts", None, "Held-out prompts. Without it, the config's.", 1),
    flags.DEFINE_integer("samples", None, "Responses a prompt, k. Without it, the config's.", 1),
    flags.DEFINE_float(
        "temperature", None, "Of the draws; 0 is greedy alone. Without it, the config's."
    ),
    flags.DEFINE_integer("top_k", None, "Most probable tokens kept. Without it, the config's."),
    flags.DEFINE_float("top_p", None, "Probability mass kept. Without it, the config's."),
    flags.DEFINE_integer("seed", 0, "Seed of the draws; 0 draws as training does.", 0, 2**32 - 1),
    flags.DEFINE_integer(
        "max_rows", None, "Responses worked at once. Without it, the config's.", 1
    ),
)


def main() -> None:
    """Loads the parameters, samples, grades, writes, prints."""
    with command.refusals():
        fields: dict[str, Any] = {flag.name: flag.value for flag in _OTHERS}
        fields |= {flag.name: command.directory(flag) for flag in _PATHS if flag.present}
        config = _CONFIG.value if "hf_dir" in fields or command.config_is_given() else None
        prepared = evaluation.prepare(evaluation.Request(config=config, **fields))
    command.tell(evaluation_report.table(prepared.run()))


if __name__ == "__main__":
    command.run(main, advice="nothing was written")
