# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER_OF_THE_REPOSITORY/asympo_jax/blob/main/notebooks/05_tpu_pod.ipynb)
#
# # From a laptop to a slice of TPUs
#
# Before a slice is rented: how much memory of each chip will a run need, does the TPU compiler
# take its programs, and what exactly will the launch script do? All three can be asked on a CPU,
# without an account. Nothing in this notebook was run on a TPU, and nothing in it starts one.

# %% The repository, and in Colab its installation
import os
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    root = Path("/content/asympo_jax")
    if not root.exists():
        subprocess.run(["git", "clone", "URL_OF_THE_REPOSITORY", root], check=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", root], check=True)
else:
    root = next(
        p for p in (Path.cwd(), *Path.cwd().parents) if (p / "notebooks/commands.py").exists()
    )
os.chdir(root)
sys.path[:0] = [str(root), str(root / "notebooks")]

# %%
import json

import matplotlib.pyplot as plt
from commands import QUICK, run

config = "configs/math_qwen3_1p7b.py"

# %% [markdown]
# ## Plan
#
# The config is one for Qwen3-1.7B. A config whose name ends with a published shape is planned with
# that shape: neither the model nor the task's files need to be there.

# %%
run(f"python -m asympo_jax.plan --config={config} --device_memory=16GiB")

# %% [markdown]
# On one device of 16 GiB it does not fit, and the plan says what would. `learner.fsdp` splits
# parameters, optimiser and work over devices. `--json` gives the same numbers to programs: here
# the memory of one of them, by how many there are.

# %%
GIB = 2**30
splits = (8,) if QUICK else (1, 4, 8, 16)
parts = {}
for fsdp in splits:
    command = [sys.executable, "-m", "asympo_jax.plan", f"--config={config}", "--json"]
    command += [f"--config.learner.fsdp={fsdp}", "--config.learner.micro_batch=16"]
    lines = json.loads(subprocess.check_output(command, text=True))["lines"]
    parts[fsdp] = {
        line["name"]: line["value"] / GIB
        for line in lines
        if line["section"].startswith("learner") and line["name"] != "together"
    }

# %%
figure, panel = plt.subplots(figsize=(8.5, 4), layout="constrained")
names = list(dict.fromkeys(name for found in parts.values() for name in found))
heights = [0.0] * len(splits)
for i, name in enumerate(names):
    values = [parts[fsdp].get(name, 0.0) for fsdp in splits]
    shade = plt.get_cmap("viridis")(i / max(1, len(names) - 1))
    panel.bar([str(fsdp) for fsdp in splits], values, bottom=heights, label=name, color=shade)
    heights = [a + b for a, b in zip(heights, values, strict=True)]
panel.axhline(16, color="#D55E00", linestyle="--")
panel.annotate("16 GiB", (1, 16), xycoords=("axes fraction", "data"), ha="right", va="bottom")
panel.set_title("Memory of each of the learner's devices, planned", loc="left")
panel.set_xlabel("learner.fsdp: devices")
panel.set_ylabel("GiB")
panel.legend(loc="upper right")
plt.show()
for fsdp, height in zip(splits, heights, strict=True):
    print(f"{fsdp:3} devices: {height:6.1f} GiB each")

# %% [markdown]
# ## Ask the compiler
#
# The wheel `libtpu` has the TPU's compiler, and it runs on a CPU. `--topology` compiles the
# learner's step and the decoding for a slice that is not there and prints what they take of each
# chip. Where the wheel is missing, the command says so in a sentence and compiles nothing. The
# small config compiles in a minute or so; give it `--config=configs/math_qwen3_1p7b.py
# --topology=v5e:4x4` where you have more memory and time.

# %%
run(
    "python -m asympo_jax.plan --config=configs/arithmetic.py --topology=v5e:2x2",
    quick="--config.model.num_layers=1",
    may_fail=True,
)

# %% [markdown]
# ## What the launch script would do
#
# `--dry_run` prints the commands and runs none. `run` creates the TPU, installs the last commit on
# all hosts, trains, and goes on after a pre-emption. Everything in it may be repeated.

# %%
run(
    "bash launch/tpu_pod.sh run --name=math --zone=us-west4-a --type=v5litepod-16 --spot --dry_run "
    f"--extra=tpu,data,math -- --config={config} --workdir=/mnt/runs/math "
    "--config.model.hf_dir=/mnt/models/qwen3 --config.learner.platform=tpu "
    "--config.learner.visible_devices= --config.learner.fsdp=16 --config.learner.micro_batch=16 "
    "--config.sampler.platform=cpu --config.sampler.visible_devices="
)

# %% [markdown]
# The TPU costs money until it is deleted, also after the run has ended:

# %%
run("bash launch/tpu_pod.sh delete --name=math --zone=us-west4-a --dry_run")

# %% [markdown]
# A mistake is one sentence, before anything is created:

# %%
run(
    "bash launch/tpu_pod.sh run --name=math --zone=us-west4-a --type=v5litepod-16 --dry_run "
    f"-- --config={config} --workdir=relative/path",
    may_fail=True,
)

# %% [markdown]
# `launch/slurm.sbatch`, `launch/gke_jobset.yaml` and `launch/ray_job.sh` are there for other
# machines; [docs/launching.md](../docs/launching.md) says of each what it does and what was not
# run.
