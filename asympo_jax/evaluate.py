"""Evaluates the newest checkpoint of a run: `python -m asympo_jax.evaluate --workdir=DIR`.

Prints greedy accuracy and avg@k of sampled responses on held-out prompts, each with its standard
error over prompts, and writes them to DIR/evaluation.json.
"""

import json

from absl import flags

from asympo_jax import command, experiment, states, workdirs
from asympo_jax.config import resolve

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_PROMPTS = flags.DEFINE_integer(
    "num_prompts", None, "Held-out prompts; the config's if not given.", lower_bound=1
)
_SAMPLES = flags.DEFINE_integer("samples", 4, "Responses a prompt, the k of avg@k.", lower_bound=1)


def main() -> None:
    """Loads the parameters, samples, grades, prints."""
    with command.refusals():
        workdir = command.directory(_WORKDIR)
        config = workdirs.read_config(workdir)
        config.eval.num_prompts = _PROMPTS.value or config.eval.num_prompts
        config.eval.samples_per_prompt = _SAMPLES.value
        resolved = resolve(config)
        parts = experiment.build_parts(resolved)
        state = states.load_state(resolved, parts, workdir)
    evaluator = experiment.make_evaluator(resolved, parts)
    greedy, sampled = evaluator.greedy(state.policy), evaluator.sampled(state.policy)
    found = {
        "updates": int(state.update),
        "num_prompts": resolved.eval.num_prompts,
        "samples_per_prompt": _SAMPLES.value,
        "eval/accuracy_greedy": greedy.mean,
        "eval/accuracy_greedy_standard_error": greedy.standard_error,
        "eval/accuracy": sampled.mean,
        "eval/accuracy_standard_error": sampled.standard_error,
    }
    (workdir / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n")
    command.tell(
        f"{workdir} after {found['updates']} updates, "
        f"{resolved.eval.num_prompts} held-out prompts\n"
        f"  greedy    {greedy.mean:.3f} ± {greedy.standard_error:.3f}\n"
        f"  avg@{_SAMPLES.value:<4d} {sampled.mean:.3f} ± {sampled.standard_error:.3f}"
        f"  (sampled at temperature {resolved.sampler.temperature:g})\n"
    )


if __name__ == "__main__":
    command.run(main)
