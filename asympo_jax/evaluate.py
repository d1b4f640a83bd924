"""Evaluates a checkpoint of a run, or a Hugging Face directory, on held-out prompts.

    python -m asympo_jax.evaluate --workdir=DIR [--update=U]
    python -m asympo_jax.evaluate --hf_dir=HF_DIR --config=FILE [--config.FIELD=VALUE] --out=DIR

Prints greedy accuracy, avg@k, pass@j and maj@k with 95 % intervals over prompts, and writes
evaluation.json, and evaluation.jsonl with every response, to --out or the run's directory.
"""

from typing import Any

from absl import flags

from asympo_jax import command, evaluation, evaluation_report

_CONFIG = command.define_config_flag("With --hf_dir: the config that names the task and lengths.")
flags.declare_key_flag("config")
_PATHS = (
    flags.DEFINE_string("workdir", None, "Directory of a run, or give --hf_dir."),
    flags.DEFINE_string("hf_dir", None, "Hugging Face directory; its config.json says the shape."),
    flags.DEFINE_string("out", None, "Directory to write to; --workdir if not given."),
)
_OTHERS = (
    flags.DEFINE_enum("platform", None, ["cpu", "cuda", "tpu"], "Of jax; the config's by default."),
    flags.DEFINE_integer("update", None, "Of the checkpoint; the newest by default.", 0),
    flags.DEFINE_integer("num_prompts", None, "The config's by default.", 1),
    flags.DEFINE_integer("samples", None, "Responses a prompt, k; the config's by default.", 1),
    flags.DEFINE_float("temperature", None, "The config's by default; 0 is greedy alone."),
    flags.DEFINE_integer("top_k", None, "The config's by default."),
    flags.DEFINE_float("top_p", None, "The config's by default."),
    flags.DEFINE_integer("seed", 0, "Of the draws; 0 draws as training does.", 0, 2**32 - 1),
    flags.DEFINE_integer("max_rows", None, "Responses at once; the config's by default.", 1),
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
