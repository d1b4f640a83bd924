"""Says what a run will need before it is started; no device is touched.

    python -m asympo_jax.plan --config=FILE [--config.FIELD=VALUE] [--device_memory=16GiB] [--json]
    python -m asympo_jax.plan --config=FILE --topology=v5e:4x4 [--all_layers]

Prints parameters, memory of each device, FLOPs, bytes of what learner and samplers hand over, and
the bounds on lag and queue. With --device_memory it says what does not fit and what would; with
--topology the TPU compiler says how much memory of a chip of that slice the programs use.
"""

from absl import flags

from asympo_jax import command
from asympo_jax.plan import compiled, estimate, fitting, topology
from asympo_jax.plan.subject import make_subject
from asympo_jax.progress import say

_CONFIG = command.define_config_flag()
flags.declare_key_flag("config")
_MEMORY = flags.DEFINE_string("device_memory", None, "Memory of a device, such as 16GiB.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "A slice of TPUs, such as v5e:4x4.")
_ALL_LAYERS = flags.DEFINE_bool(
    "all_layers",
    False,
    "With --topology: compile all layers at once and as a run does, which takes long, instead of "
    "few from which the rest follows, with the least effort.",
)
_JSON = flags.DEFINE_bool("json", False, "Print everything as one JSON object.")


def main() -> None:
    """Resolves the config, adds up, compiles where that is asked for, prints."""
    with command.refusals():
        config, notes = _CONFIG.value, []
        wanted = None
        if _TOPOLOGY.value is not None:
            wanted = topology.slice_named(_TOPOLOGY.value)
            topology.check_compiler()
            notes += topology.spread_over(config, wanted)
        elif _ALL_LAYERS.value:
            raise ValueError("--all_layers: goes with --topology, which compiles")
        available = 0 if _MEMORY.value is None else fitting.device_memory(_MEMORY.value)
        subject = make_subject(config, 1 if wanted is None else wanted.num_hosts)
    lines = estimate.lines_of(subject)
    if wanted is not None:
        available = available or wanted.hbm_bytes
    if available:
        notes += fitting.sentences(subject, available)
    if wanted is not None:
        say(f"compiling for {wanted.name}, of the accelerator type {wanted.accelerator_type}")
        with command.refusals():
            lines += compiled.compiled_lines(subject, wanted, _ALL_LAYERS.value)
    made = estimate.Plan(subject.config.source, lines, notes)
    command.tell(made.as_json() if _JSON.value else made.as_text())


if __name__ == "__main__":
    command.run(main, advice="nothing was written")
