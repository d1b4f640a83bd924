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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER_OF_THE_REPOSITORY/asympo_jax/blob/main/notebooks/04_your_own.ipynb)
#
# # A task, a reward, an objective and a model of your own
#
# Nothing in the package changes for them. A config names yours by its import path, `module:name`;
# samplers and graders are processes of their own and import it, too. So the first cell writes a
# module into a folder and puts that on `PYTHONPATH`.
#
# The task: put four letters into alphabetical order, `dacb=` is answered by `abcd`.

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
import numpy as np
from commands import RUNS, SMALL, run

mine = RUNS / "your_own"
mine.mkdir(parents=True, exist_ok=True)
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(mine.resolve()), str(root), os.environ.get("PYTHONPATH", "")]
)

# %% [markdown]
# ## The task
#
# Prompts are pure functions of an index: all processes ask the same and get the same. Held-out
# prompts are never training prompts. `demonstration` is there for the supervised warm-up, which
# gives RL something to start from; a third of its letters are drawn at random, so that there is
# something left to learn.

# %%
(mine / "sorting.py").write_text('''
"""Letters in alphabetical order."""

import numpy as np

from asympo_jax.tasks import Task
from asympo_jax.tokenizers import CharTokenizer
from asympo_jax.types import Prompt

LETTERS = "abcdefgh"


class Sorting(Task):
    """Puts letters into alphabetical order.

    Args:
        length: letters of a prompt.
        wrong_share: share of random letters in the demonstrations.
    """

    num_eval = 256

    def __init__(self, length: int = 4, wrong_share: float = 0.35):
        self.length, self.wrong_share = length, wrong_share
        self.num_train = len(LETTERS) ** length - self.num_eval
        self.order = np.random.default_rng(0).permutation(len(LETTERS) ** length)
        self.tokenizer = CharTokenizer(LETTERS + "=")

    def eval_prompt(self, index: int) -> Prompt:
        return self.prompt(index, self.order[index])

    def train_prompt(self, index: int) -> Prompt:
        return self.prompt(index, self.order[self.num_eval + index])

    def prompt(self, index: int, number: int) -> Prompt:
        places = [int(number) // len(LETTERS) ** i % len(LETTERS) for i in range(self.length)]
        text = "".join(LETTERS[place] for place in places)
        return Prompt(index, f"{text}=", "".join(sorted(text)))

    def reward(self, prompt: Prompt, text: str) -> float:
        return float(text == prompt.answer)

    def demonstration(self, index: int) -> tuple[str, str]:
        rng = np.random.default_rng(index)
        prompt = self.train_prompt(int(rng.integers(self.num_train)))
        letters = [
            rng.choice(list(LETTERS)) if rng.random() < self.wrong_share else letter
            for letter in prompt.answer
        ]
        return prompt.text, "".join(letters)
'''.lstrip())  # fmt: skip

# %% [markdown]
# It is ordinary Python, so look at it before anything is trained.

# %%
sys.path.insert(0, str(mine.resolve()))
from sorting import Sorting

task = Sorting()
for index in range(3):
    print(task.train_prompt(index), task.demonstration(index))

# %% [markdown]
# ## The reward
#
# A reward function goes in beside the task: it is what training sees, while accuracies stay the
# task's. This one gives partial credit, the share of letters in their right place.

# %%
(mine / "rewards.py").write_text('''
"""Partial credit."""


def in_place(prompt, text):
    """Share of the letters that are in their place; 0 for a text of another length."""
    if len(text) != len(prompt.answer):
        return 0.0
    return sum(a == b for a, b in zip(text, prompt.answer)) / len(text)
'''.lstrip())  # fmt: skip

from rewards import in_place

prompt = task.train_prompt(0)
for text in (prompt.answer, prompt.answer[:2] + "hh", "a"):
    print(f"{prompt.text}{text:5} reward {in_place(prompt, text)}")

# %% [markdown]
# ## The objective
#
# An objective is a token weight. `reinforce` has $w = 1$ and `asympo` $w = 1/\bar\ell$, with
# $\bar\ell$ the mean negative log-probability of the response under the current policy. A family
# between the two is $w = \bar\ell^{-p}$. Its keyword arguments become options of the config:
# `--config.objective.power=0.5`.

# %%
(mine / "weights.py").write_text('''
"""Between reinforce and asympo."""

import jax.numpy as jnp

from asympo_jax.objectives import Objective
from asympo_jax.objectives.masked import response_mean


def power_weight(batch, power=0.5, floor=1e-3):
    """w = max(NLL, floor) ** -power, a number for each response."""
    nll_B = response_mean(-batch.logp_BT, batch.mask_BT)
    return (jnp.maximum(nll_B, floor) ** -power)[:, None]


between = Objective("between", power_weight)
'''.lstrip())  # fmt: skip

# %% [markdown]
# Before it trains, hold it against the two that it lies between, on made-up log-probs of a group
# of four.

# %%
import jax.numpy as jnp

from asympo_jax import objectives

logp_BT = jnp.array([[-0.1, -0.2], [-0.5, -0.3], [-1.0, -0.4], [-3.0, -2.0]])
advantage_B = jnp.array([1.0, 1.0, -1.0, -1.0])


def value(name, **options):
    objective = objectives.make(name, **options)
    mask_BT = jnp.ones(logp_BT.shape, bool)
    return float(objectives.policy_loss(objective, logp_BT, mask_BT, advantage_B, group_size=4)[0])


powers = (0.0, 0.25, 0.5, 0.75, 1.0)
between = [value("weights:between", power=power) for power in powers]
np.testing.assert_allclose(
    [between[0], between[-1]], [value("reinforce"), value("asympo")], atol=1e-6
)
for power, found in zip(powers, between, strict=True):
    print(f"power {power:4}: value of the loss {found:8.4f}")

# %% [markdown]
# At power 0 the value is that of `reinforce`, at 1 that of `asympo`, which is 0.
#
# ## The model, and the run
#
# The decoder is of any shape that the config says. Everything together, with samples 8 updates
# old:

# %%
workdir = mine / "run"
run(
    f"python -m asympo_jax.train --workdir={workdir} "
    "--config.task.name=sorting:Sorting --config.task.length=4 "
    "--config.reward.function=rewards:in_place --config.reward.num_processes=0 "
    "--config.objective.name=weights:between --config.objective.power=0.75 "
    "--config.model.num_layers=1 --config.model.width=48 --config.model.num_heads=3 "
    "--config.model.num_kv_heads=1 --config.model.mlp_width=96 "
    "--config.sampler.max_prompt_tokens=5 --config.sampler.max_response_tokens=6 "
    "--config.warmup.num_steps=150 --config.eval.num_prompts=256 "
    "--config.lag=8 --config.num_updates=80 --config.optimizer.learning_rate=1e-3",
    quick=SMALL,
)

# %%
from asympo_jax.runtime.metrics import read_metrics

lines = read_metrics(workdir / "metrics.jsonl")
figure, panel = plt.subplots(figsize=(7, 3.4), layout="constrained")
for name, words, style in (
    ("reward/mean", "your reward, of the samples", {"color": "#9fc5e0"}),
    ("eval/accuracy", "the task's accuracy, held out", {"marker": "o", "color": "#0072B2"}),
):
    points = [(line["update"], line[name]) for line in lines if line.get(name) is not None]
    panel.plot(*zip(*points, strict=True), label=words, **style)
panel.set_ylim(0, 1.02)
panel.set_xlabel("learner updates")
panel.grid(alpha=0.3)
panel.legend(loc="lower right")
plt.show()

# %%
run(f"python -m asympo_jax.inspect {workdir} --num=4 --sort=-update")

# %% [markdown]
# ## Wrong on purpose
#
# What does not fit is refused in one sentence before anything starts.

# %%
run(
    f"python -m asympo_jax.train --workdir={mine / 'refused'} "
    "--config.task.name=sorting:Sorting --config.task.size=4",
    may_fail=True,
)

# %% [markdown]
# [docs/your_own.md](../docs/your_own.md) has the rest: rewards that hang or die, graders in
# processes of their own, tokenizers and problems in files.
