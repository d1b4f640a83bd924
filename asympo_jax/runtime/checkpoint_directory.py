"""Orbax's managers of a directory of checkpoints, for one process and for several."""

import pathlib

import jax
import orbax.checkpoint as ocp

# Orbax renames old checkpoints into it before they are deleted: half of one never has its name.
DELETED = ".deleted"
_ITEMS = ("state", "snapshots", "groups", "run")


def open_manager(
    directory: pathlib.Path, keep: int, is_owner: bool, num_processes: int = 1
) -> ocp.CheckpointManager:
    """What writes; all processes take part in each checkpoint.

    Args:
        directory: of the checkpoints, on a file system that all processes see.
        keep: newest ones kept.
        is_owner: whether what was left half written may be removed.
        num_processes: that write.
    """
    together = ocp.options.MultiprocessingOptions()
    if num_processes > 1:
        # Named, they wait for each other through the key-value store, which any thread may do, and
        # not in a program on their devices, which would come in no order with the learner's.
        together = ocp.options.MultiprocessingOptions(active_processes=set(range(num_processes)))
        directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=num_processes == 1,
        cleanup_tmp_directories=is_owner,
        todelete_subdir=DELETED,
        multiprocessing_options=together,
    )
    return ocp.CheckpointManager(directory, options=options, item_names=_ITEMS)


def open_reader(directory: pathlib.Path) -> ocp.CheckpointManager:
    """What reads in this process, which is one of several, without the others."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    options = ocp.CheckpointManagerOptions(
        create=False, read_only=True, multiprocessing_options=alone
    )
    return ocp.CheckpointManager(directory, options=options, item_names=_ITEMS)
