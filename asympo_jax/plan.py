"""Says what a run will need before it is started; no device is touched.

    python -m asympo_jax.plan --config=FILE [--config.FIELD=VALUE] [--device_memory=16GiB] [--json]
    python -m asympo_jax.plan --config=FILE --topology=v5e:4x4

Prints parameters, memory of each device, FLOPs, bytes of what learner and samplers hand over, and
the bounds on lag and queue. With --device_memory it says what does not fit and what would; with
--topology the TPU compiler says how much memory of a chip of that slice the programs use.
"""

from absl import flags
from ml_collections import config_flags

from asympo_jax import command, plan_estimate, plan_fitting, plan_topology
from asympo_jax.plan_subject import SHAPES, make_subject, shape_named_by
from asympo_jax.progress import say

_CONFIG = command.define_config_flag()
flags.declare_key_flag("config")
_SHAPE = flags.DEFINE_enum(
    "shape",
    None,
    list(SHAPES),
    "Published shape of the decoder, where model.hf_dir is not set. Without it, the one that the "
    "config file's name ends with.",
)
_MEMORY = flags.DEFINE_string("device_memory", None, "Memory of a device, such as 16GiB.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "A slice of TPUs, such as v5e:4x4.")
_JSON = flags.DEFINE_bool("json", False, "Print everything as one JSON object.")


def main() -> None:
    """Resolves the config, adds up, compiles where that is asked for, prints."""
    with command.refusals():
        config, shape, notes = _CONFIG.value, _SHAPE.value, []
        if shape is None and config.model.hf_dir is None:
            shape = shape_named_by(config_flags.get_config_filename(flags.FLAGS["config"]))
        wanted = None
        if _TOPOLOGY.value is not None:
            wanted = plan_topology.slice_named(_TOPOLOGY.value)
            plan_topology.check_compiler()
            notes += plan_topology.spread_over(config, wanted)
        available = 0 if _MEMORY.value is None else plan_fitting.device_memory(_MEMORY.value)
        subject = make_subject(config, shape)
    lines = plan_estimate.lines_of(subject)
    if available:
        notes += plan_fitting.sentences(subject, available)
    if wanted is not None:
        say(f"compiling for {wanted.name}, of the accelerator type {wanted.accelerator_type}")
        with command.refusals():
            lines += plan_topology.compiled_lines(subject, wanted)
    made = plan_estimate.Plan(subject.config.source, shape, lines, notes)
    command.tell(made.as_json() if _JSON.value else made.as_text())


if __name__ == "__main__":
    command.run(main, advice="nothing was written")
