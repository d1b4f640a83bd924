"""Host memory that loading a Hugging Face directory takes, as a multiple of the parameters' size.

    python benchmarks/load_memory.py
    python benchmarks/load_memory.py --num_layers=2

Random bfloat16 tensors of the shape of Qwen3-1.7B are written to a temporary directory (3.4 GB),
and loaded by a new process on the CPU, where the parameters themselves are host memory too: 1.0 is
the least that there is. The peak is the largest resident set of that process, Python and jax
included; `above start` is without what it held before it loaded. Linux only. The directory is
removed.
Prints a table and, as its last line, JSON.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asympo_jax import models
from asympo_jax.models.hf import config_json
from asympo_jax.models.hf.files import SINGLE_FILE, write_tensors
from asympo_jax.models.hf.weights import HEAD, weights

QWEN3_1_7B = {
    "vocab_size": 151_936,
    "num_layers": 28,
    "width": 2048,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_width": 128,
    "mlp_width": 6144,
    "rope_theta": 1e6,
    "qk_norm": True,
}


def main() -> None:
    """Writes, has it loaded, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_layers", type=int, default=28, help="of the decoder (28)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--load", help=argparse.SUPPRESS)  # what the new process does
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(measure(arguments.load, arguments.dtype)))
        return
    config = models.ModelConfig(**QWEN3_1_7B | {"num_layers": arguments.num_layers})
    with tempfile.TemporaryDirectory() as directory:
        write(config, pathlib.Path(directory))
        command = [sys.executable, __file__, f"--load={directory}", f"--dtype={arguments.dtype}"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    size = row["parameter_bytes"]
    print(
        f"{'parameters':>12}{'largest':>12}{'peak':>12}{'of size':>9}{'above start':>13}{'time':>9}"
    )
    print(
        f"{size / 1e9:>9.2f} GB{row['largest_bytes'] / 1e9:>9.2f} GB{row['peak_bytes'] / 1e9:>9.2f}"
        f" GB{row['peak_bytes'] / size:>9.2f}"
        f"{(row['peak_bytes'] - row['start_bytes']) / size:>13.2f}{row['load_s']:>7.1f} s"
    )
    print(json.dumps({"benchmark": "load_memory", **row, "machine": _machine()}))


def write(config: models.ModelConfig, directory: pathlib.Path) -> None:
    """A directory of random bfloat16 tensors, the tied head left out as transformers does."""
    rng = np.random.default_rng(0)
    shapes = {weight.name: weight.shape for weight in weights(config) if weight.name != HEAD}

    def draw(name: str) -> np.ndarray:
        # Bits of finite numbers: to draw normal ones takes longer than all the rest.
        bits = rng.integers(0, 0x4000, shapes[name], np.uint16)
        return bits.view(jnp.dtype("bfloat16"))

    write_tensors(directory / SINGLE_FILE, shapes, jnp.dtype("bfloat16"), draw)
    (directory / "config.json").write_text(
        json.dumps(config_json.to_json(config, "bfloat16", (), {}))
    )


def measure(directory: str, dtype: str) -> dict[str, Any]:
    """Loads it in this process; sizes and the peak in bytes."""
    jnp.zeros(1).block_until_ready()  # the backend is there
    start_bytes, start = _peak_bytes(), time.perf_counter()
    model = models.load(directory, dtype)
    load_s = time.perf_counter() - start
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(model.params)]
    return {
        "dtype": dtype,
        "parameter_bytes": sum(sizes),
        "largest_bytes": max(sizes),
        "start_bytes": start_bytes,
        "peak_bytes": _peak_bytes(),
        "load_s": load_s,
    }


def _peak_bytes() -> int:
    """The largest resident set of this process until now, on Linux."""
    # Not from `getrusage`: there a process starts with the peak of the one that started it.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
    }


if __name__ == "__main__":
    main()
