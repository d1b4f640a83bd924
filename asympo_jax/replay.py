"""Trains again on the batches that a run recorded (`log.record_batches`).

    python -m asympo_jax.replay --workdir=DIR [--from=U --to=V] [--config.objective.name=OTHER]

With the run's own objective it does updates U + 1 to V again, bit for bit, and says whether they
are as they were recorded; with another it shows what that would have made of the same stale data.
Writes DIR/replay/OBJECTIVE/metrics.jsonl.
"""

from typing import Any

from absl import flags

from asympo_jax import command, replaying

command.define_config_flag(
    "Only --config.FIELD=VALUE: fields of objective or advantage that differ from the run's."
)
flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_BATCH = flags.DEFINE_string(
    "batch", None, "One file to replay, such as that of an update that was skipped."
)
_UPDATES = {
    "first": flags.DEFINE_integer(
        "from", None, "Updates done before, 0 or those of a checkpoint.", 0
    ),
    "last": flags.DEFINE_integer(
        "to", None, "Updates done after. Without it, all that are recorded.", 1
    ),
}


def main() -> None:
    """Checks, replays, prints a table."""
    with command.refusals():
        fields: dict[str, Any] = {name: flag.value for name, flag in _UPDATES.items()}
        if _BATCH.present:
            fields["batch"] = command.directory(_BATCH)
        prepared = replaying.prepare(
            replaying.Request(command.directory(_WORKDIR), fields=command.fields_given(), **fields)
        )
    prepared.start_device()
    for line in prepared.run():
        command.tell(f"{line}\n")


if __name__ == "__main__":
    command.run(main, advice="the run is as it was")
