"""Writes a checkpoint as a Hugging Face directory.

    python -m asympo_jax.export --workdir=runs/math --out=runs/math_hf

Other engines and transformers load it. The tokenizer is not part of a run: its files are copied
from the directory that the run's model came from (`model.hf_dir`), or from the one that `--like`
names. LoRA adapters are merged into the weights, or with `--adapters` written alone, in the form of
the PEFT library.
"""

from absl import flags

from asympo_jax import command, experiment, models, states, workdirs
from asympo_jax.config import resolve

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_OUT = flags.DEFINE_string("out", None, "Directory to write; new or empty.", required=True)
_UPDATE = flags.DEFINE_integer(
    "update", None, "Update of the checkpoint. Without it, the newest.", lower_bound=0
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Type of the tensors written."
)
_LIKE = flags.DEFINE_string(
    "like",
    None,
    "Hugging Face directory whose tokenizer files and special tokens are copied. Without it, the "
    "run's model.hf_dir.",
)
_ADAPTERS = flags.DEFINE_bool("adapters", False, "Write a LoRA run's adapters alone, in float32.")


def main() -> None:
    """Reads the checkpoint, writes the directory, says what is in it."""
    with command.refusals():
        workdir, out = command.directory(_WORKDIR), command.directory(_OUT)
        resolved = resolve(workdirs.read_config(workdir))
        parts = experiment.build_parts(resolved)
        if _ADAPTERS.value:
            _check_adapters(resolved.lora)
        state = states.load_state(resolved, parts, workdir, _UPDATE.value)
        like = resolved.hf_dir if _LIKE.value is None else command.directory(_LIKE)
        if _ADAPTERS.value:
            models.save_adapters(parts.model, resolved.lora, state.params, out, resolved.hf_dir)
        else:
            models.save(
                models.Model(parts.model, models.merge(state.policy)),
                out,
                like=like,
                dtype=_DTYPE.value,
                stop_ids=parts.task.tokenizer.stop_ids,
            )
    command.tell(f"{out}: {workdir} after {int(state.update)} updates, {_DTYPE.value}\n")
    if like is None:
        command.tell("no tokenizer is in it, as the run has no model.hf_dir to copy one from\n")


def _check_adapters(lora: models.LoraConfig) -> None:
    """Refuses what `--adapters` does not go with."""
    if not lora.rank:
        raise ValueError("--adapters: the run has lora.rank=0 and no adapters, leave it out")
    if _LIKE.value is not None or _DTYPE.value != "float32":
        raise ValueError("--adapters: writes no tokenizer and float32, leave --like, --dtype out")


if __name__ == "__main__":
    command.run(main)
