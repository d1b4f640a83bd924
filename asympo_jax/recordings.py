"""Which recorded batches a replay takes, and whether they fit the experiment."""

import pathlib
from collections.abc import Sequence

from asympo_jax.runtime import batches
from asympo_jax.settings import ExperimentConfig


def select(
    workdir: pathlib.Path, checkpoints: Sequence[int], first: int | None, last: int | None
) -> tuple[int, list[pathlib.Path]]:
    """Where a replay starts, and the files of its batches in order.

    Args:
        workdir: of the run.
        checkpoints: updates of which there is a state, ascending; 0 is among them.
        first: updates done before; None for as few as can be.
        last: updates done with the last one; None for all that were recorded.

    Raises:
        ValueError: no batches are recorded, one is missing, or there is no state to start from.
    """
    versions = batches.recorded_versions(workdir)
    if not versions:
        raise ValueError(
            f"workdir={workdir}: has no recorded batches; --config.log.record_batches=N keeps "
            "those of the newest N updates of a run"
        )
    require_checkpoint(workdir, checkpoints, first)
    if first is None:
        possible = [update for update in checkpoints if update + 1 in versions]
        first = min(possible) if possible else checkpoints[0]
    wanted = range(first + 1, (max(versions) if last is None else last) + 1)
    missing = [version for version in wanted if version not in versions]
    if missing or not wanted:
        raise ValueError(
            f"workdir={workdir}: the batch of update {missing[0] if missing else first + 1} is not "
            f"recorded, those of {_ranges(versions)} are; a replay needs all from a checkpoint on "
            f"({list(checkpoints)}), or one with --batch"
        )
    return first, [batches.batch_path(workdir, version) for version in wanted]


def start_of(
    path: pathlib.Path, workdir: pathlib.Path, checkpoints: Sequence[int], first: int | None
) -> int:
    """Where the replay of one batch starts: as near before its update as can be.

    Raises:
        ValueError: the file holds no batch, or there is no state to start from.
    """
    version = batches.read_batch(path).version
    require_checkpoint(workdir, checkpoints, first)
    if first is not None:
        return first
    return max(update for update in checkpoints if update == 0 or update < version)


def require_checkpoint(
    workdir: pathlib.Path, checkpoints: Sequence[int], first: int | None
) -> None:
    """Refuses to start where there is no state."""
    if first is not None and first not in checkpoints:
        raise ValueError(
            f"--from={first}: workdir={workdir} has no checkpoint of that update, must be one of "
            f"{list(checkpoints)}"
        )


def check(config: ExperimentConfig, files: Sequence[pathlib.Path]) -> None:
    """Refuses batches of other sizes, or without what the objective needs.

    Raises:
        ValueError: naming the file, or the objective and what it needs.
    """
    room = config.sampler.max_prompt_tokens, config.sampler.max_response_tokens
    for path in files:
        groups = batches.read_batch(path).groups
        is_fitting = len(groups) == config.prompts_per_update and all(
            len(group.length_G) == config.group_size
            and len(group.prompt_S) <= room[0]
            and group.response_GT.shape[1] <= room[1]
            for group in groups
        )
        if not is_fitting:
            raise ValueError(
                f"{path}: must have {config.prompts_per_update} groups of {config.group_size} "
                f"responses, with up to {room[0]} tokens a prompt and {room[1]} a response"
            )
        has_logp = all(group.behaviour_logp_GT is not None for group in groups)
        if "behaviour" in config.objective.needs and not has_logp:
            raise ValueError(
                f"objective.name={config.source['objective']['name']!r}: needs behaviour "
                f"log-probs, which {path} does not have; a run records them with "
                "--config.sampler.record_behaviour_logp=True"
            )


def _ranges(versions: Sequence[int]) -> str:
    """Ascending numbers as ranges, such as `1-3, 7`."""
    known = set(versions)
    starts = [version for version in versions if version - 1 not in known]
    ends = [version for version in versions if version + 1 not in known]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in pairs)
