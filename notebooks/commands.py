"""What the notebooks share: commands as in a shell, pictures, and how small the tests make them."""

import os
import pathlib
import shlex
import subprocess
import sys

import matplotlib.pyplot as plt

RUNS = pathlib.Path(os.environ.get("ASYMPO_NOTEBOOK_RUNS", "runs/notebooks"))
QUICK = bool(os.environ.get("ASYMPO_NOTEBOOK_QUICK"))
_DPI = 150

# What makes a training command a matter of seconds, which shows nothing but that it works.
SMALL = " ".join(
    f"--config.{field}={value}"
    for field, value in {
        "runtime.name": "sync",
        "num_updates": 2,
        "prompts_per_update": 4,
        "group_size": 4,
        "model.num_layers": 1,
        "model.width": 16,
        "model.num_heads": 2,
        "model.num_kv_heads": 2,
        "model.head_width": 8,
        "model.mlp_width": 16,
        "warmup.num_steps": 2,
        "warmup.batch_size": 8,
        "eval.num_prompts": 8,
        "eval.process": False,
        "checkpoint.every_updates": 0,
        "log.rollouts_every_updates": 1,
        "log.tensorboard": False,
    }.items()
)


def run(command: str, quick: str = "", may_fail: bool = False) -> None:
    """Runs a command line and prints what it says while it says it.

    Args:
        command: as in a shell; `python` is the notebook's own.
        quick: what is added to it when the notebook is only tested.
        may_fail: whether its exit code is only told.

    Raises:
        RuntimeError: it failed.
    """
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    words += shlex.split(quick) if QUICK else []
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode and not may_fail:
        raise RuntimeError(f"exit code {process.returncode}: {command}")
    if process.returncode:
        print(f"exit code {process.returncode}")


def show(path: pathlib.Path) -> None:
    """Draws a PNG, dot for dot."""
    picture = plt.imread(path)
    height, width = picture.shape[:2]
    figure = plt.figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.axis("off")
    panel.imshow(picture)
    plt.show()
