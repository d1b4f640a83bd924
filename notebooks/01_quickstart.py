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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER_OF_THE_REPOSITORY/asympo_jax/blob/main/notebooks/01_quickstart.ipynb)
#
# # Quickstart: run, watch, read a run
#
# Samplers draw answers with parameters that are 16 updates old. A learner trains on them with
# ASymPO and asks for nothing but the tokens and their rewards. Here is one such run, from its
# first line to its samples. It needs no accelerator.
#
# The task: left-to-right arithmetic modulo 10, steps written out. `1+7+6+1=` is answered by
# `1+7=8;8+6=4;4+1=5;#5`. A decoder of 108,000 parameters is first warmed up on steps of which some
# are wrong, so that about half of its sampled answers are right.

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
import matplotlib.pyplot as plt
from commands import RUNS, SMALL, run, show

workdir = RUNS / "quickstart"

# %% [markdown]
# ## Run and watch
#
# The command is the one of the README; any field of the config is set by `--config.FIELD=VALUE`.
# It says every few seconds how it goes. The same command on the same directory carries on where it
# was stopped, so interrupt the cell if you like, and start it again.

# %%
run(
    f"python -m asympo_jax.train --config=configs/arithmetic.py --workdir={workdir} "
    "--config.lag=16 --config.num_updates=100",
    quick=SMALL,
)

# %% [markdown]
# ## What it left
#
# A run is a directory of plain files.

# %%
for path in sorted(workdir.iterdir()):
    print(f"{path.name}{'/' if path.is_dir() else ''}")

# %%
print((workdir / "result.json").read_text())

# %% [markdown]
# ## Its metrics
#
# `metrics.jsonl` has a JSON object a line; `docs/metrics.md` says what each name means.
# `read_metrics` puts together what belongs to one update.

# %%
from asympo_jax.runtime.metrics import read_metrics

lines = read_metrics(workdir / "metrics.jsonl")
for name in ("update", "reward/mean", "lag/max", "nll/positive", "nll/negative", "balance/net"):
    print(f"{name:14} {lines[-1][name]}")

# %% [markdown]
# The bound on lag is hard: no group was trained on that is older. Two numbers to look at from the
# start are the negative log-probabilities (NLL, $-\log \pi$ per token) of answers with positive
# and with negative advantage. The gap between them is what notebook 02 is about.

# %%
trained = [line for line in lines if "reward/mean" in line]
assert max(line["lag/max"] for line in trained) <= 16


def series(name):
    return [(line["update"], line[name]) for line in lines if line.get(name) is not None]


figure, panels = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
panels[0].plot(
    *zip(*series("reward/mean"), strict=True), color="#9fc5e0", label="reward of samples"
)
panels[0].plot(*zip(*series("eval/accuracy"), strict=True), "o-", label="held-out accuracy")
panels[1].plot(*zip(*series("lag/max"), strict=True))
panels[2].semilogy(*zip(*series("nll/positive"), strict=True), label="advantage above 0")
panels[2].semilogy(*zip(*series("nll/negative"), strict=True), "--", label="advantage below 0")
titles = ("Share correct", "Lag of the oldest group, updates", "NLL, nats per token")
for panel, title in zip(panels, titles, strict=True):
    panel.set_title(title, loc="left")
    panel.set_xlabel("learner updates")
    panel.grid(alpha=0.3)
panels[0].set_ylim(0, 1)
panels[1].set_ylim(0, None)
panels[0].legend()
panels[2].legend()
plt.show()

# %% [markdown]
# ## Its report
#
# One command makes the table, the pictures and a page, `report.html`, that opens without a network
# and also shows who waited for whom. Give it several runs to compare them.

# %%
run(f"python -m asympo_jax.report {workdir}")
show(workdir / "report" / "curves.png")

# %% [markdown]
# ## Its samples
#
# First two wrong answers that it was trained on, then two right ones. `--update=1:30` looks at
# other updates, `--help` at more.

# %%
run(f"python -m asympo_jax.inspect {workdir} --max_reward=0 --num=2")
run(f"python -m asympo_jax.inspect {workdir} --min_reward=1 --num=2")

# %% [markdown]
# ## Next
#
# - `02_scale_imbalance`: why this works with stale samples where the plain loss collapses.
# - `03_staleness_lab`: which objective survives how much staleness.
# - `04_your_own`: a task, a reward and an objective of your own.
# - `05_tpu_pod`: from here to a slice of TPUs.
