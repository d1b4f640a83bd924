"""A run's directory: what is in it, whether it fits the config, what is left to do.

config.json  task.json  environment.jsonl  metrics.jsonl  timeline.jsonl  result.json
checkpoints/  rollouts/  batches/  replay/  report/  tensorboard/  wandb/
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import ml_collections

from asympo_jax.config import from_plain, read_json
from asympo_jax.endings import InUse, RunFailed
from asympo_jax.runtime.files import not_a_run, replace
from asympo_jax.settings import ExperimentConfig

# What may change between two calls on one workdir: what ticket order trains is the same, but for
# its last bits on another mesh of devices.
_FREE = (
    "num_updates",
    "eval.",
    "checkpoint.",
    "log.",
    "runtime.",
    "queue.",
    "reward.max_failed_share",
    "sampler.count",
    "learner.max_skipped_updates",
    "learner.data",
    "learner.fsdp",
    "learner.tensor",
    "warmup.dir",
)

# What another attempt may not find again: a full disk, a file system that fails or is gone.
_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)

# What a run that was killed leaves half written; others may be at work on other names.
_PARTIAL = re.compile(
    r"\.((?:config|task|result)\.json|\.attempt|metrics\.jsonl|update_\d+\.jsonl)\.\d+"
)


# What `result.json` must have.
_RESULT = {
    "updates": int,
    "eval/accuracy": float,
    "eval/accuracy_greedy": float,
    "parameters_sha256": str,
    "wall_s": float,
}


def check(
    workdir: pathlib.Path, config: ExperimentConfig, prompts_sha256: str | None = None
) -> dict[str, Any] | None:
    """The result of a complete run in the directory, None if there is none; writes nothing.

    Args:
        workdir: the directory.
        config: the experiment.
        prompts_sha256: of its task's prompts; None for prompts that are not looked at.

    Raises:
        ValueError: it cannot be used, has a link that leads out of it, or holds a run of another
            config or on other prompts.
    """
    _require_inside(workdir)
    found = result(workdir, config)
    if prompts_sha256 is not None and _has_begun(workdir):
        _require_same_prompts(workdir, config.task_name, prompts_sha256)
    return found


def prepare(
    workdir: pathlib.Path, config: ExperimentConfig, prompts_sha256: str | None = None
) -> dict[str, Any] | None:
    """Checks the locked directory and writes the config there; returns what `check` does.

    What a run that was killed left half written there is removed.

    Raises:
        ValueError: as `check`, or it cannot be written.
        RunFailed: it cannot be written now, as on a full disk.
    """
    found = check(workdir, config, prompts_sha256)
    for path in [*workdir.glob(".*"), *workdir.glob("rollouts/.*")]:
        if _PARTIAL.fullmatch(path.name):
            path.unlink(missing_ok=True)
    if found is None:
        text = json.dumps(config.source, indent=2, sort_keys=True) + "\n"
        try:
            replace(workdir / "config.json", text)
            if prompts_sha256 is not None:
                task = json.dumps({"prompts_sha256": prompts_sha256})
                replace(workdir / "task.json", task + "\n")
        except OSError as error:
            raise _refusal(error, f"workdir={workdir}: cannot be written ({error})") from error
    return found


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of the run in a directory.

    Raises:
        ValueError: it is not the directory of a run, or its config cannot be used.
    """
    if not (workdir / "config.json").is_file():
        raise ValueError(f"workdir={workdir}: {not_a_run(workdir)}")
    return from_plain(read_json(workdir / "config.json"))


def result(workdir: pathlib.Path, config: ExperimentConfig) -> dict[str, Any] | None:
    """The result of a complete run of a config, None if it is not complete.

    Raises:
        ValueError: the directory holds a run of another config.
    """
    checkpoints = workdir / "checkpoints"
    if checkpoints.exists() and not checkpoints.is_dir():
        raise ValueError(f"workdir={workdir}: its checkpoints is not a directory, use another")
    if _has_begun(workdir):
        if not (workdir / "config.json").exists():
            raise ValueError(f"workdir={workdir}: has a run but no config.json, use another")
        _require_same(workdir, read_json(workdir / "config.json"), config.source)
    elif not (workdir / "config.json").exists():
        _require_empty(workdir)
    found, wanted = _read_result(workdir / "result.json"), config.pacing.num_updates
    if found is not None and found["updates"] == wanted:
        return found
    updates = max([found["updates"] if found else 0, *checkpoint_updates(workdir)])
    if updates > wanted:
        raise ValueError(
            f"num_updates={wanted}: workdir={workdir} holds a run of {updates} updates; it can be "
            "made longer, not shorter"
        )
    return None


def checkpoint_updates(workdir: pathlib.Path) -> list[int]:
    """Updates of a run's complete checkpoints, ascending; no device is touched."""
    names = (path.name for path in (workdir / "checkpoints").glob("[0-9]*"))
    return sorted(int(name) for name in names if name.isdigit())  # others are being written


def fixed_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and values of a plain config's fields that may not change on one workdir."""
    return {name: value for name, value in _leaves(config) if not name.startswith(_FREE)}


def check_writable(field: str, directory: pathlib.Path) -> None:
    """Makes the directory, and refuses one that this process cannot read and write.

    Args:
        field: what a person calls it.
        directory: where things are to be written.

    Raises:
        ValueError: naming the field, the directory and what is wrong with it.
        RunFailed: the same, where another attempt may succeed, as after a full disk.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):  # without a name, which a kill would leave
            pass
        list(directory.iterdir())
    except OSError as error:
        raise _refusal(
            error,
            f"{field}={directory}: must be a directory that can be read and written "
            f"({error.strerror})",
        ) from error


def lock(workdir: pathlib.Path) -> IO[str]:
    """Holds the directory for this process until the file is closed.

    Raises:
        InUse: another run has it.
        ValueError: it cannot be locked.
        RunFailed: it cannot be locked now.
    """
    try:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = open(os.open(workdir / ".lock", flags, 0o666), "a+")  # noqa: SIM115
    except OSError as error:
        words = f"workdir={workdir}: its .lock cannot be opened ({error})"
        raise _refusal(error, words) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise InUse(
            f"workdir={workdir}: is in use by the run with process id {owner}; use another "
            "workdir, or start the same command again when that has ended"
        ) from error
    except OSError as error:
        file.close()
        words = f"workdir={workdir}: cannot be locked with flock ({error.strerror})"
        raise _refusal(error, words) from error
    with contextlib.suppress(OSError):  # for people; a full disk is found by what must be written
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"{os.getpid()} on {platform.node()}".encode())
    return file


def warmup_directory(config: ExperimentConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Where warm-ups are kept: given, or beside the workdir, so that sibling runs share them."""
    return pathlib.Path(config.warmup_dir) if config.warmup_dir else workdir.parent / "warmup"


def write_result(workdir: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Writes `result.json`."""
    replace(workdir / "result.json", json.dumps(result, indent=2) + "\n")


def _read_result(path: pathlib.Path) -> dict[str, Any] | None:
    """What a `result.json` holds, None if it is not there."""
    if not path.exists():
        return None
    found = read_json(path)
    missing = [name for name in _RESULT if not isinstance(found.get(name), _RESULT[name])]
    if missing:
        raise ValueError(f"{path}: has no usable {missing[0]!r}; remove it and the run goes on")
    return found


def _refusal(error: OSError, words: str) -> ValueError | RunFailed:
    """What a file that cannot be used is: wrong input, or a failure that may pass."""
    return RunFailed(words) if error.errno in _TRANSIENT else ValueError(words)


def _require_inside(workdir: pathlib.Path) -> None:
    """Refuses links that lead out of the directory, whose targets a run would write to."""
    inside = workdir.resolve()
    for path in workdir.iterdir():
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise ValueError(
                f"workdir={workdir}: its {path.name!r} is a link to {path.resolve()}, out of it; "
                "make the workdir itself the link, or remove this one"
            )


def _require_empty(workdir: pathlib.Path) -> None:
    """Refuses a directory that holds something else than a run."""
    others = [path.name for path in workdir.glob("[!.]*")] if workdir.is_dir() else []
    if others:
        raise ValueError(
            f"workdir={workdir}: holds {sorted(others)[0]!r} and no config.json, so it is not the "
            "directory of a run; use a new or an empty one"
        )


def _require_same(workdir: pathlib.Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses a config that differs from the one that the workdir was started with."""
    old, new = fixed_fields(before), fixed_fields(now)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise ValueError(
                f"{name}={new.get(name)!r}: workdir={workdir} was started with "
                f"{old.get(name)!r}; use another workdir"
            )


def _has_begun(workdir: pathlib.Path) -> bool:
    """Whether something was trained, or is about to be."""
    has_checkpoint = any((workdir / "checkpoints").glob("[0-9]*"))
    return has_checkpoint or (workdir / "metrics.jsonl").exists()


def _require_same_prompts(workdir: pathlib.Path, task_name: str, prompts_sha256: str) -> None:
    """Refuses other prompts than the run began with; one of before these were kept has any."""
    path = workdir / "task.json"
    if path.exists() and read_json(path).get("prompts_sha256") != prompts_sha256:
        raise ValueError(
            f"task.name={task_name!r}: its prompts are not those that workdir={workdir} was "
            "started with; put its data back as they were, or use another workdir"
        )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a nested mapping."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
