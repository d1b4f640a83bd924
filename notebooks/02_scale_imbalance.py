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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER_OF_THE_REPOSITORY/asympo_jax/blob/main/notebooks/02_scale_imbalance.ipynb)
#
# # The scale imbalance
#
# A group of answers to one prompt gets advantages that sum to zero. Its losses do not sum to zero.
# This notebook takes that sentence apart by hand, shows what each objective makes of it, and then
# lets a policy collapse and not collapse. The method is that of ASymPO
# ([arXiv:2606.03070](https://arxiv.org/abs/2606.03070)).
#
# Notation: answer $i$ has tokens $t$, the current policy gives each of them a log-probability
# $\log\pi_\theta(o_{it})$, and $\bar\ell_i = -\operatorname{mean}_t \log\pi_\theta(o_{it})$ is the
# answer's mean negative log-probability, NLL for short. $A_i$ is its advantage.

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
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from commands import QUICK

from asympo_jax import objectives

PULL, PUSH = "#0072B2", "#D55E00"  # answers with advantage above and below 0, in all pictures

# %% [markdown]
# ## 1. Eight answers
#
# Three of eight answers are right. Their advantages are the rewards less the group's mean, over
# its standard deviation. The policy finds the right answers likely (a small NLL) and the wrong
# ones less so.
#
# The plain policy gradient, `reinforce`, has the loss $\frac1G\sum_i A_i\,\bar\ell_i$. `asympo`
# divides each answer's loss by that answer's own NLL, as a constant without gradient:
# $\frac1G\sum_i A_i\,\bar\ell_i / \mathrm{sg}(\bar\ell_i)$.

# %%
rewards_G = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
nll_G = jnp.array([0.05, 0.1, 0.2, 0.3, 0.6, 0.9, 1.4, 2.2])
advantage_G = objectives.group_advantages(rewards_G[None])[0]


@functools.partial(jax.jit, static_argnames="name")
def loss_of(name, nll_G, advantage_G):
    """The value of a loss of answers of one token each."""
    objective = objectives.make(name)
    logp_GT = -nll_G[:, None]
    given = (logp_GT, jnp.ones(logp_GT.shape, bool), advantage_G)
    return objectives.policy_loss(objective, *given, group_size=len(nll_G))[0]


def words(value, form="8.4f"):
    """A number, without the sign of a zero that is rounded."""
    return format(round(float(value), 4) + 0.0, form)


print(f"sum of the advantages         {words(advantage_G.sum())}")
for name, weight_G in (("reinforce", 1.0), ("asympo", 1 / nll_G)):
    value = loss_of(name, nll_G, advantage_G)
    np.testing.assert_allclose(value, (weight_G * advantage_G * nll_G).mean(), atol=1e-6)
    print(f"value of the loss, {name:10} {words(value)}")

# %%
bars = {
    "Advantages: they cancel": advantage_G,
    "Losses of reinforce: they do not": advantage_G * nll_G,
    "Losses of asympo: they do": advantage_G * nll_G / nll_G,
}
figure, panels = plt.subplots(1, 3, figsize=(12, 3.3), sharex=True, layout="constrained")
for panel, (title, values) in zip(panels, bars.items(), strict=True):
    panel.bar(range(1, 9), values, color=[PULL if a > 0 else PUSH for a in advantage_G])
    panel.axhline(0, color="#444444", linewidth=0.8)
    panel.set_title(title, loc="left")
    panel.set_xlabel(f"answer · sum {words(values.sum(), '.2f')}")
plt.show()

# %% [markdown]
# ## 2. What that sum is
#
# As the advantages have mean 0, the mean of $A_i\bar\ell_i$ is a covariance:
#
# $$\frac1G\sum_i A_i\,\bar\ell_i = \operatorname{Cov}(A, \bar\ell).$$
#
# It is 0 only if advantage and NLL have nothing to do with each other. A policy that has learned
# anything finds good answers likelier than bad ones, so its sum is negative: more push than pull.
# Section 7 measures how the sum grows with the age of the answers.

# %%
covariance = jnp.cov(advantage_G, nll_G, bias=True)[0, 1]
value = loss_of("reinforce", nll_G, advantage_G)
np.testing.assert_allclose(value, covariance, rtol=1e-5)
print(f"loss {float(value):.6f}, covariance {float(covariance):.6f}")

# %% [markdown]
# ## 3. Downhill with two answers
#
# Take one good answer (NLL $\ell_+$) and one bad one ($\ell_-$), with advantages $\pm1$. Then, up
# to constants,
#
# $$L_{\text{reinforce}} = \tfrac12(\ell_+ - \ell_-), \qquad
#   \nabla L_{\text{asympo}} = \nabla\,\tfrac12(\log \ell_+ - \log \ell_-).$$
#
# $\ell_+$ cannot go below 0, and $\ell_-$ can grow forever. `reinforce` gets as much from one nat
# more on a bad answer that is hopeless already as from one nat less on a good one. So once the
# good answer is likely, all that is left to gain is in the push. To `asympo` only ratios count: to
# double $\ell_-$ is worth as much as to halve $\ell_+$. Its push fades as $1/\ell_-$, its pull
# grows as $1/\ell_+$.
#
# The arrows show which way and how hard each loss drives the two NLLs, by autodiff.

# %%
PAIR = jnp.array([1.0, -1.0])
side = np.linspace(0.4, 3.0, 8)
grid_N2 = jnp.array([(x, y) for y in side for x in side])
figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
x, y = np.meshgrid(np.linspace(0.02, 3.2, 200), np.linspace(0.02, 3.2, 200))
heights = {"reinforce": (x - y) / 2, "asympo": (np.log(x) - np.log(y)) / 2}
for panel, (name, height) in zip(panels, heights.items(), strict=True):
    panel.contourf(x, y, height, levels=16, cmap="Greys_r", alpha=0.5)
    slope = jax.jit(jax.vmap(jax.grad(lambda nll, name=name: loss_of(name, nll, PAIR))))
    downhill_N2 = -np.asarray(slope(grid_N2))
    panel.quiver(
        *grid_N2.T, downhill_N2[:, 0], 0 * downhill_N2[:, 0], color=PULL, scale=14, width=0.005
    )
    panel.quiver(
        *grid_N2.T, 0 * downhill_N2[:, 1], downhill_N2[:, 1], color=PUSH, scale=14, width=0.005
    )
    panel.set_title(name, loc="left", weight="bold")
    panel.set_xlabel("NLL of the good answer")
panels[0].set_ylabel("NLL of the bad answer")
figure.suptitle("Pull on the good answer (blue) and push on the bad one (orange); darker is lower")
plt.show()

# %% [markdown]
# The stop-gradient is not a detail. Without it the loss of `asympo` is $\frac1G\sum_i A_i$, a
# constant, and teaches nothing:

# %%
with_stop = jax.grad(lambda nll: loss_of("asympo", nll, advantage_G))(nll_G)
without = jax.grad(lambda nll: (advantage_G * nll / nll).mean())(nll_G)
print("with the stop-gradient   ", np.round(with_stop, 2))
print("without the stop-gradient", np.round(without, 2))

# %% [markdown]
# Zero-sum needs two more things, which are easy to lose. The mean must be first over an answer's
# tokens and then over answers: with the mean over all tokens, long answers count more. And groups
# must be complete: dropping a single answer breaks the sum.

# %%
lengths_G = jnp.array([2, 3, 2, 6, 8, 4, 9, 7])
mask_GT = jnp.arange(9)[None, :] < lengths_G[:, None]
logp_GT = jnp.where(mask_GT, -nll_G[:, None], 0.0)
for aggregation in ("response_mean", "token_mean"):
    objective = objectives.make("asympo", aggregation=aggregation)
    loss = jax.jit(functools.partial(objectives.policy_loss, objective, group_size=8))
    print(f"asympo, {aggregation:18} {words(loss(logp_GT, mask_GT, advantage_G)[0])}")
dropped = (advantage_G[:-1] * nll_G[:-1] / nll_G[:-1]).mean()
print(f"asympo, one answer dropped {words(dropped)}")

# %% [markdown]
# ## 4. Every objective is a token weight
#
# All objectives of the package have the gradient $-\operatorname{Agg}[w\,A\,\nabla\log\pi]$ and
# differ in the weight $w$ (and in how they average). So one picture tells them apart: the
# coefficient $w\,A$ of a token, for $A = +1$ and $A = -1$. It is not read from formulas: it is the
# gradient of the loss.
#
# First those that look at the current policy alone, over the NLL of the answer.

# %%
POINTS = 81 if not QUICK else 5


def coefficients(name, logp_N, **others):
    """w·A of one-token answers with A = +1 and A = −1, [2, N]."""
    objective = objectives.make(name)
    logp_B1 = jnp.repeat(logp_N, 2)[:, None]
    others = {key: jnp.repeat(value, 2)[:, None] for key, value in others.items()}
    advantage_B = jnp.tile(PAIR, len(logp_N))

    def loss(logp_B1):
        mask_B1 = jnp.ones(logp_B1.shape, bool)
        return objectives.policy_loss(
            objective, logp_B1, mask_B1, advantage_B, group_size=2, **others
        )[0]

    return -len(advantage_B) * jax.grad(loss)(logp_B1).reshape(-1, 2).T


def draw(panel, name, x_N, found_2N):
    for values_N, colour in zip(found_2N, (PULL, PUSH), strict=True):
        panel.plot(x_N, values_N, color=colour, linewidth=2)
        panel.fill_between(x_N, 0, values_N, color=colour, alpha=0.12, linewidth=0)
    panel.axhline(0, color="#444444", linewidth=0.8)
    panel.set_title(name, loc="left", weight="bold" if name == "asympo" else "normal")
    panel.grid(alpha=0.3)


current_only = [name for name in objectives.names() if not objectives.make(name).needs]
nll_N = jnp.linspace(0.1, 4.0, POINTS)
found = jax.jit(lambda nll_N: {name: coefficients(name, -nll_N) for name in current_only})(nll_N)
figure, panels = plt.subplots(2, 3, figsize=(11, 5), sharex=True, sharey=True, layout="constrained")
for panel, name in zip(panels.flat, current_only, strict=True):
    draw(panel, name, nll_N, found[name])
    panel.set_ylim(-4.2, 4.2)
for panel in panels[-1]:
    panel.set_xlabel("NLL of the answer under the current policy")
figure.suptitle("w · A: pull (blue) and push (orange)")
plt.show()

# %% [markdown]
# `reinforce` pushes as hard on an answer that is gone as on one that is common. `spo` pushes less,
# everywhere alike. `gpg` is `reinforce` here; it makes up for groups without any difference, and
# there is none in this batch. `asymre` shifts the baseline, `w_reinforce` turns the pull down.
# Only `asympo` looks at where the answer is.
#
# The others need more: the log-probability under which each token was drawn (behaviour). Their
# weight is drawn over the ratio $r = \pi_\theta / \pi_{\text{behaviour}}$, on a logarithmic axis.
# At $r = 1$ nothing has moved. A push makes $r$ smaller, so orange lines are followed to the left
# as training goes on, blue ones to the right.

# %%
with_behaviour = [name for name in objectives.names() if objectives.make(name).needs]
ratio_N = jnp.geomspace(0.1, 10.0, POINTS)
logp_N = jnp.full(ratio_N.shape, -1.0)


@jax.jit
def by_ratio(logp_N, behaviour_N):
    halfway_N = (logp_N + behaviour_N) / 2  # proximal parameters between the two policies
    arrays = {"behaviour": behaviour_N, "proximal": halfway_N}
    return {
        name: coefficients(
            name,
            logp_N,
            **{f"{need}_logp_BT": arrays[need] for need in objectives.make(name).needs},
        )
        for name in with_behaviour
    }


found = by_ratio(logp_N, logp_N - jnp.log(ratio_N))
figure, panels = plt.subplots(2, 5, figsize=(13, 5), sharex=True, sharey=True, layout="constrained")
for panel, name in zip(panels.flat, with_behaviour, strict=True):
    draw(panel, name, ratio_N, found[name])
    panel.set_xscale("log")
    panel.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
    panel.set_ylim(-5.5, 5.5)
for panel in panels[-1]:
    panel.set_xlabel("ratio r")
figure.suptitle("w · A of one token by its ratio: pull (blue) and push (orange)")
plt.show()

# %% [markdown]
# Every one of them bounds the push on the left, by a clip or because the ratio itself goes to 0,
# and each needs the behaviour log-probs for it. `asympo` bounds the push, too, and needs nothing.
# (The weight of `gspo`, `topr` is of whole answers, here of one token; that of `m2po` depends on
# the whole batch, here on all ratios of the picture; `decoupled_ppo` is drawn with proximal
# parameters halfway between the two policies.)
#
# ## 5. Who stops the push?
#
# Take one bad answer that had a probability of 0.2 when its samples were drawn, and push it down.
# How hard is it still pushed when its probability has fallen? On average that is the share of
# samples that it makes up, times the coefficient of section 4.
#
# - With fresh samples the policy itself stops the push: what is unlikely is hardly drawn any more.
# - With stale samples it is drawn as often as before. To `reinforce` nothing has happened: it
# pushes on with the same force, however unlikely the answer is. `spo` does that more slowly.
# - `grpo` compares with the behaviour log-prob and lets go at once.
# - `asympo` sees the answer's own NLL grow and lets go as $1/\bar\ell$, without any log-prob of the
# sampler.

# %%
drawn = 0.2
nll_N = jnp.linspace(-np.log(drawn), 8.0, POINTS)
behaviour_N = jnp.full(nll_N.shape, np.log(drawn))


@jax.jit
def pushes(nll_N):
    needs = {"grpo": {"behaviour_logp_BT": behaviour_N}}
    names = ("reinforce", "spo", "grpo", "asympo")
    return {name: -coefficients(name, -nll_N, **needs.get(name, {}))[1] for name in names}


push = {name: np.asarray(values) for name, values in pushes(nll_N).items()}
fresh_N = np.exp(-nll_N) * push["reinforce"]
colours = {"reinforce": "#D55E00", "spo": "#009E73", "grpo": "#E69F00", "asympo": "#0072B2"}
figure, panel = plt.subplots(figsize=(8.5, 4), layout="constrained")
panel.plot(nll_N, fresh_N, "--", color=colours["reinforce"], label="reinforce, fresh samples")
for name, push_N in push.items():
    style = {"color": colours[name], "linewidth": 3 if name == "asympo" else 2}
    panel.plot(nll_N, drawn * push_N, label=f"{name}, stale samples", **style)
panel.set_title("How hard a bad answer is still pushed", loc="left")
panel.set_xlabel("its NLL by now (1.6 when the samples were drawn)")
panel.set_ylabel("share of samples × coefficient")
panel.set_ylim(0, None)
panel.grid(alpha=0.3)
panel.legend()
plt.show()
print(f"at NLL 8   reinforce, fresh {words(fresh_N[-1])}")
for name, push_N in push.items():
    print(f"           {name}, stale {words(drawn * push_N[-1])}")

# %% [markdown]
# ## 6. Asynchronous RL in one cell
#
# Now let it happen. A tiny policy of a thousand numbers has to know a code of three digits for
# each of 32 prompts. It is shown codes of which 30 % of the digits are wrong, and then trained by
# RL: update $n$ trains on answers that the parameters of update $n - \text{lag}$ drew. All runs of
# one objective, at four lags and two learning rates, are one program.

# %%
NUM_PROMPTS, NUM_DIGITS, LENGTH, WIDTH = 32, 10, 3, 16
PROMPTS, GROUP = 8, 8  # of an update
UPDATES = 6 if QUICK else 400
LAGS, RATES = ((0, 4), (1e-2,)) if QUICK else ((0, 16, 64, 128), (3e-3, 1e-2))
codes = jax.random.randint(jax.random.key(7), (NUM_PROMPTS, LENGTH), 0, NUM_DIGITS)


def first_params(key):
    shapes = {
        "prompt": (NUM_PROMPTS, WIDTH),
        "digit": (NUM_DIGITS + 1, WIDTH),
        "hidden": (WIDTH, WIDTH),
        "head": (WIDTH, NUM_DIGITS),
    }
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return {name: 0.4 * jax.random.normal(keys[name], shapes[name]) for name in shapes}


def logits(params, prompt_B, digit_B):
    """Of the next digit, after a prompt and the digit before."""
    x_BD = params["prompt"][prompt_B] + params["digit"][digit_B]
    return (x_BD + jnp.tanh(x_BD @ params["hidden"])) @ params["head"]


def log_probs(params, prompt_B, answer_BT):
    start_B1 = jnp.full((len(prompt_B), 1), NUM_DIGITS)
    before_BT = jnp.concatenate([start_B1, answer_BT[:, :-1]], axis=1)
    columns = [
        jnp.take_along_axis(
            jax.nn.log_softmax(logits(params, prompt_B, before_B)), digit_B[:, None], 1
        )
        for before_B, digit_B in zip(before_BT.T, answer_BT.T, strict=True)
    ]
    return jnp.concatenate(columns, axis=1)


def answer(params, key, prompt_B):
    digits = [jnp.full(prompt_B.shape, NUM_DIGITS)]
    for key_of_digit in jax.random.split(key, LENGTH):
        digits.append(jax.random.categorical(key_of_digit, logits(params, prompt_B, digits[-1])))
    return jnp.stack(digits[1:], axis=1)


def groups(params, key):
    """Answers of a policy to some prompts, and their advantages."""
    key_of_prompts, key_of_answers = jax.random.split(key)
    prompt_P = jax.random.randint(key_of_prompts, (PROMPTS,), 0, NUM_PROMPTS)
    prompt_B = jnp.repeat(prompt_P, GROUP)
    answer_BT = answer(params, key_of_answers, prompt_B)
    reward_B = (answer_BT == codes[prompt_B]).all(axis=1).astype(jnp.float32)
    return (
        prompt_B,
        answer_BT,
        objectives.group_advantages(reward_B.reshape(PROMPTS, GROUP)).ravel(),
    )


def accuracy(params):
    """Exact: the probability of the right code, mean over prompts."""
    return jnp.exp(log_probs(params, jnp.arange(NUM_PROMPTS), codes).sum(axis=1)).mean()


# %% [markdown]
# The learner: Adam behind a clip of the gradient's norm at 1, as in the experiments of the
# repository, and the snapshots of the last 129 versions.

# %%
import optax

adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))


def stepped(params, state, gradient, rate):
    change, state = adam.update(gradient, state)
    return jax.tree.map(lambda x, d: x - rate * d, params, change), state


@jax.jit
def warmed_up(params, key):
    def step(carry, key):
        params, state = carry
        keys = jax.random.split(key, 3)
        prompt_B = jax.random.randint(keys[0], (64,), 0, NUM_PROMPTS)
        wrong_BT = jax.random.uniform(keys[1], (64, LENGTH)) < 0.3
        random_BT = jax.random.randint(keys[2], (64, LENGTH), 0, NUM_DIGITS)
        shown_BT = jnp.where(wrong_BT, random_BT, codes[prompt_B])
        gradient = jax.grad(lambda p: -log_probs(p, prompt_B, shown_BT).mean())(params)
        return stepped(params, state, gradient, 1e-2), None

    keys = jax.random.split(key, 4 if QUICK else 400)
    return jax.lax.scan(step, (params, adam.init(params)), keys)[0][0]


def train(name, lag, rate, params, key):
    num_snapshots = max(LAGS) + 1
    objective = objectives.make(name)
    mask_BT = jnp.ones((PROMPTS * GROUP, LENGTH), bool)

    def step(carry, inputs):
        params, state, snapshots = carry
        n, key = inputs
        snapshots = jax.tree.map(lambda s, x: s.at[n % num_snapshots].set(x), snapshots, params)
        version = jnp.maximum(n - lag, 0)
        stale = jax.tree.map(lambda s: s[version % num_snapshots], snapshots)
        prompt_B, answer_BT, advantage_B = groups(stale, key)

        def loss(params):
            logp_BT = log_probs(params, prompt_B, answer_BT)
            return objectives.policy_loss(
                objective, logp_BT, mask_BT, advantage_B, group_size=GROUP
            )

        gradient, metrics = jax.grad(loss, has_aux=True)(params)
        params, state = stepped(params, state, gradient, rate)
        return (params, state, snapshots), (metrics | {"accuracy": accuracy(params)}, params)

    snapshots = jax.tree.map(lambda x: jnp.repeat(x[None], num_snapshots, axis=0), params)
    inputs = jnp.arange(UPDATES), jax.random.split(key, UPDATES)
    return jax.lax.scan(step, (params, adam.init(params), snapshots), inputs)[1]


pairs = jnp.array([(lag, rate) for rate in RATES for lag in LAGS])
begin = warmed_up(first_params(jax.random.key(0)), jax.random.key(1))
runs, versions = {}, {}
for name in ("reinforce", "asympo"):
    trained = jax.jit(jax.vmap(functools.partial(train, name), (0, 0, None, None)))
    runs[name], versions[name] = trained(
        pairs[:, 0].astype(int), pairs[:, 1], begin, jax.random.key(2)
    )
print(f"right before RL: {float(accuracy(begin)):.2f}")
for name, metrics in runs.items():
    for (lag, rate), curve in zip(np.asarray(pairs), metrics["accuracy"], strict=True):
        print(f"{name:10} rate {rate:.3f}  lag {lag:3.0f}: {float(curve[-1]):.2f}")

# %%
shades = plt.get_cmap("plasma")(np.linspace(0.05, 0.8, len(LAGS)))
figure, panels = plt.subplots(
    len(RATES),
    2,
    figsize=(11, 3 * len(RATES)),
    sharex=True,
    sharey=True,
    squeeze=False,
    layout="constrained",
)
for row, rate in zip(panels, RATES, strict=True):
    for panel, name in zip(row, runs, strict=True):
        for i, (lag, shade) in enumerate(zip(LAGS, shades, strict=True)):
            curve = runs[name]["accuracy"][RATES.index(rate) * len(LAGS) + i]
            panel.plot(curve, color=shade, linewidth=1.8, label=f"lag {lag}")
        panel.set_title(f"{name}, learning rate {rate:g}", loc="left")
        panel.set_ylim(0, 1)
        panel.grid(alpha=0.3)
panels[0, 0].legend(loc="lower right", ncols=2)
for panel in panels[-1]:
    panel.set_xlabel("learner updates")
for row in panels:
    row[0].set_ylabel("right")
plt.show()

# %% [markdown]
# Without lag both learn, at both rates. With a long one `reinforce` falls back, sooner and further
# at the higher rate. `asympo` ends about where it ends without lag.
#
# ## 7. The mechanism, seen
#
# Two measurements of the same runs, at the highest lag and rate. Left: the NLL of the answers
# trained on. Under `reinforce` that of bad answers runs away: they are pushed again and again, as
# the samplers have not heard yet. Right: the sum of push and pull, the covariance of section 2.
# `asympo` keeps it at 0 as long as no answer is at its floor. The floor bounds the weight by 1000:
# an answer with an NLL below 0.001 pulls less than its share. The dotted line is the share of such
# answers.

# %%


def smooth(values, width=15):
    values = np.asarray(values)
    return np.array([np.nanmean(values[max(0, i - width) : i + 1]) for i in range(len(values))])


figure, panels = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for name, style in (("reinforce", "-"), ("asympo", "--")):
    metrics = {key: values[-1] for key, values in runs[name].items()}
    panels[0].semilogy(
        smooth(metrics["nll/negative"]), style, color=PUSH, label=f"{name}, bad answers"
    )
    panels[0].semilogy(
        smooth(metrics["nll/positive"]), style, color=PULL, label=f"{name}, good answers"
    )
    panels[1].plot(smooth(metrics["balance/net"]), style, color="#333333", label=name)
floor_share = smooth(runs["asympo"]["weight/floor_share"][-1])
panels[1].plot(floor_share, ":", color=PULL, label="asympo, share at the floor")
low, high = panels[1].get_ylim()
panels[1].set_ylim(1.5 * low, high)  # room for the legend
panels[0].set_title("NLL, nats per token", loc="left")
panels[1].set_title("Sum of push and pull", loc="left")
for panel in panels:
    panel.set_xlabel("learner updates")
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")
plt.show()

# %% [markdown]
# Is it staleness that does this, or the collapse? Take a run of `asympo` without lag, which is
# healthy, halfway through. Let its parameters look at answers that its own earlier versions drew.
# The older the answers, the further apart are good and bad ones, and the more negative is the sum
# that `reinforce` would have.

# %%
HALFWAY = UPDATES // 2
AGES = (0, 1, 2) if QUICK else (0, 8, 16, 32, 64, 96, 128, 160, 192)
healthy = jax.tree.map(lambda x: x[0], versions["asympo"])  # lag 0, the lower rate
now = jax.tree.map(lambda x: x[HALFWAY], healthy)


@jax.jit
def look_back(age, keys):
    old = jax.tree.map(lambda x: x[HALFWAY - age], healthy)
    prompt_NB, answer_NBT, advantage_NB = jax.vmap(lambda key: groups(old, key))(keys)
    nll_NB = -jax.vmap(lambda p, a: log_probs(now, p, a))(prompt_NB, answer_NBT).mean(axis=2)
    means = [
        jnp.where(chosen, nll_NB, 0).sum() / chosen.sum()
        for chosen in (advantage_NB > 0, advantage_NB < 0)
    ]
    return *means, (advantage_NB * nll_NB).mean()


keys = jax.random.split(jax.random.key(3), 4 if QUICK else 200)
good, bad, net = np.array([look_back(age, keys) for age in AGES]).T
figure, panels = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
panels[0].plot(AGES, bad, "o-", color=PUSH, label="bad answers")
panels[0].plot(AGES, good, "o-", color=PULL, label="good answers")
panels[0].set_title("NLL under the parameters of now", loc="left")
panels[0].legend()
panels[1].plot(AGES, net, "o-", color="#333333")
panels[1].axhline(0, color="#444444", linewidth=0.8)
panels[1].set_title("Sum that reinforce would have", loc="left")
for panel in panels:
    panel.set_xlabel("age of the answers, updates")
    panel.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## What this does not show
#
# One seed, toy tasks, and learning rates at which `reinforce` suffers: section 6 shows that it
# bears more staleness at a smaller rate. `asympo` is no protection from any learning rate. Its
# gradient is about $1/\bar\ell$ times that of `reinforce`, so it needs a clip or a rate of its
# own. [docs/staleness.md](../docs/staleness.md) has tables over objectives, lags, rates and seeds,
# and what speaks against them; the next notebook reads them. `bash launch/quickstart.sh`
# shows the collapse with a decoder and sampler processes.
