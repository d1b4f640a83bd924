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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER_OF_THE_REPOSITORY/asympo_jax/blob/main/notebooks/03_staleness_lab.ipynb)
#
# # The staleness laboratory
#
# Which objective survives how much staleness? The repository keeps the numbers of 195 runs: 13
# objectives, 5 lags, 3 seeds. This notebook reads them, asks questions of its own, and then runs a
# small sweep in the same way. [docs/staleness.md](../docs/staleness.md) says how they were made
# and what speaks against them.

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
import numpy as np
from commands import QUICK, RUNS, SMALL, run, show

from asympo_jax.report import captions

out = RUNS / "staleness_lab"

# %% [markdown]
# ## The committed results
#
# `report` makes the table and the pictures from `results/staleness` alone.

# %%
run(f"python -m asympo_jax.report results/staleness --out={out / 'committed'}")
show(out / "committed" / "accuracy_by_lag.png")

# %% [markdown]
# A lag of 256 is never reached in 100 updates: in that column all samples are of the initial
# parameters.
#
# ## Questions of your own
#
# The files are JSON: a list of runs, each with its values, its accuracies at every evaluation and
# the means of some metrics since the one before.

# %%
runs = []
for path in sorted(Path("results/staleness").glob("*.json")):
    if path.name != "laboratory.json":
        found = json.loads(path.read_text())
        runs += [{"objective": found["objective"], **one} for one in found["runs"]]
objectives = sorted({one["objective"] for one in runs})
lags = sorted({one["values"]["lag"] for one in runs})
print(f"{len(runs)} runs of {len(objectives)} objectives at lags {lags}")


def chosen(objective, lag):
    return [one for one in runs if (one["objective"], one["values"]["lag"]) == (objective, lag)]


# %% [markdown]
# **What does staleness cost?** The accuracy after training at lag 64, less that at lag 0. Bars are
# means over seeds, dots are seeds, each less the mean at lag 0.

# %%
final = {
    (name, lag): np.array([one["eval/accuracy"][-1] for one in chosen(name, lag)])
    for name in objectives
    for lag in lags
}
cost = {name: final[name, 64] - final[name, 0].mean() for name in objectives}
order = sorted(objectives, key=lambda name: cost[name].mean())
figure, panel = plt.subplots(figsize=(8, 4), layout="constrained")
colours = [captions.colour(name) if name == "asympo" else "#b8b8b8" for name in order]
panel.barh(order, [cost[name].mean() for name in order], color=colours)
for name in order:
    panel.plot(cost[name], [name] * len(cost[name]), "o", color="#444444", markersize=3)
panel.axvline(0, color="#444444", linewidth=0.8)
panel.set_title("What a lag of 64 costs: accuracy less that at lag 0", loc="left")
panel.set_xlabel("difference in the share of right answers")
plt.show()

# %% [markdown]
# **Is the loss out of balance?** `balance/net` is the sum of what pulls and what pushes: the mean
# of $-w A \log\pi$ over answers. Left, its mean over the second half of training. Right, how much
# further the bad answers are from the policy than the good ones. With `asympo` they are furthest
# apart, and its sum is 0 all the same.

# %%
shown = [name for name in ("reinforce", "gpg", "spo", "asympo", "grpo") if name in objectives]
figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for name in shown:
    halves = [
        [one["balance/net"][len(one["balance/net"]) // 2 :] for one in chosen(name, lag)]
        for lag in lags
    ]
    net = [np.mean(half) for half in halves]
    ratios = [
        np.mean([one["nll/negative"][-1] / one["nll/positive"][-1] for one in chosen(name, lag)])
        for lag in lags
    ]
    style = {
        "color": captions.colour(name),
        "linewidth": 3 if name == "asympo" else 1.6,
        "marker": "o",
        "markersize": 4,
    }
    panels[0].plot(range(len(lags)), net, label=name, **style)
    panels[1].plot(range(len(lags)), ratios, label=name, **style)
panels[0].axhline(0, color="#444444", linewidth=0.8)
panels[0].set_title("Sum of push and pull (0: they cancel)", loc="left")
panels[1].set_ylim(0, None)
panels[1].set_title("NLL of negative over positive answers, at the end", loc="left")
for panel in panels:
    panel.set_xticks(range(len(lags)), lags)
    panel.set_xlabel("lag, updates")
    panel.grid(alpha=0.3)
panels[1].legend()
plt.show()

# %%
worst = max(
    abs(np.nanmean(np.array(one["balance/net"][1:], float)))
    for one in runs
    if one["objective"] == "asympo"
)
print(f"asympo: the mean of the sum is at most {worst:.4f} from 0, in any of its runs")

# %% [markdown]
# ## A sweep of your own
#
# A sweep is a config with `base`, the experiment, and `axes`, what is varied. Every field can be
# changed on the command line. Here two objectives at one learning rate, 3e-4, and at lags 0 and
# 16, for 60 updates. What is done is not repeated if you run the cell again; add a seed or a lag
# and only the new runs are made.

# %%
names = ("asympo",) if QUICK else ("reinforce", "asympo")
chosen_lags = (2,) if QUICK else (0, 16)
run(
    "python -m asympo_jax.sweep --config=configs/staleness.py:learning_rate "
    f"--workdir={out / 'sweep'} --config.base.num_updates=60 "
    f'--config.axes.objective.name="{names}" --config.axes.lag="{chosen_lags}" '
    '--config.axes.optimizer.learning_rate="(3e-4,)" --config.axes.seed="(0,)"',
    quick=SMALL.replace("--config.", "--config.base."),
)

# %%
run(f"python -m asympo_jax.report {out / 'sweep'}")
for path in sorted((out / "sweep" / "results" / "report").glob("*.png")):
    if path.name in ("curves.png", "balance.png"):
        show(path)

# %% [markdown]
# The same as numbers, read from what the sweep keeps:

# %%
for path in sorted((out / "sweep" / "results").glob("*.json")):
    if path.name == "laboratory.json":
        continue
    for one in json.loads(path.read_text())["runs"]:
        before, after = one["eval/accuracy"][0], one["eval/accuracy"][-1]
        print(f"{path.stem:10} lag {one['values']['lag']:3}   {before:.3f} → {after:.3f}")

# %% [markdown]
# One seed and 60 updates show the direction and no size. `configs/staleness.py` lists the studies
# behind the tables of the repository, with how long they took.
