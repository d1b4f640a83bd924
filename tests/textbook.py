"""Each objective as its paper writes it, to be maximised: one response after the other.

What a paper stops the gradient of, `sg[…]`, is NumPy here; what is differentiated is JAX.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from policy_cases import Case


@dataclasses.dataclass(frozen=True)
class Response:
    """The tokens of one response, without padding.

    Attributes:
        logp: log-probs, differentiable.
        stopped: the same, sg[logp].
        behaviour: log-probs of the policy that sampled.
        proximal: log-probs of a recent policy.
        reference: log-probs of a reference policy.
        advantage: A.
        group: number of its group.
    """

    logp: jax.Array
    stopped: np.ndarray
    behaviour: np.ndarray
    proximal: np.ndarray
    reference: np.ndarray
    advantage: float
    group: int


Responses = list[Response]


def gradient(objective: Callable[[Responses], Any], case: Case) -> np.ndarray:
    """Gradient of minus an objective with respect to the log-probs of a case."""
    drawn = [np.flatnonzero(mask_T) for mask_T in case.mask_BT]

    def loss(logps: list[jax.Array]) -> Any:
        found = [
            Response(
                logp=logp,
                stopped=case.logp_BT[row, drawn[row]],
                behaviour=case.behaviour_logp_BT[row, drawn[row]],
                proximal=case.proximal_logp_BT[row, drawn[row]],
                reference=case.reference_logp_BT[row, drawn[row]],
                advantage=float(case.advantage_B[row]),
                group=row // case.group_size,
            )
            for row, logp in enumerate(logps)
        ]
        return -objective(found)

    logps = [jnp.asarray(logp_T[here]) for logp_T, here in zip(case.logp_BT, drawn, strict=True)]
    gradient_BT = np.zeros_like(case.logp_BT)
    for row, of_row in enumerate(jax.grad(loss)(logps)):
        gradient_BT[row, drawn[row]] = of_row
    return gradient_BT


def mean_of_responses(found: Responses, of_response: Callable[[Response], jax.Array]) -> Any:
    """1/B Σ_i of what each response gives."""
    return sum(of_response(response) for response in found) / len(found)


def mean_of_tokens(found: Responses, of_tokens: Callable[[Response], jax.Array]) -> Any:
    """1/Σ|o_i| Σ_i Σ_t of what each response gives for each of its tokens."""
    num_tokens = sum(len(response.logp) for response in found)
    return sum(jnp.sum(of_tokens(response)) for response in found) / num_tokens


def ppo(ratio: Any, advantage: float, low: float, high: float, dual: float = math.inf) -> Any:
    """min(r A, clip(r) A), and for A < 0 not below c A (arXiv:1707.06347, arXiv:1912.09729)."""
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)
    if advantage < 0 and dual != math.inf:
        surrogate = jnp.maximum(surrogate, dual * advantage)
    return surrogate


def reinforce(found: Responses) -> Any:
    return mean_of_responses(found, lambda o: o.advantage * jnp.mean(o.logp))


def gpg(found: Responses) -> Any:
    """arXiv:2504.02546: α = B / (B − M) makes up for M responses in groups without signal."""
    without_signal = 0
    for response in found:
        group = [other.advantage for other in found if other.group == response.group]
        without_signal += all(advantage == 0 for advantage in group)
    alpha = len(found) / (len(found) - without_signal)
    return mean_of_tokens(found, lambda o: alpha * o.advantage * o.logp)


def spo(found: Responses, alpha: float = 0.25) -> Any:
    def of_response(o: Response) -> jax.Array:
        scale = alpha if o.advantage < 0 else 1.0
        return scale * o.advantage * jnp.mean(o.logp)

    return mean_of_responses(found, of_response)


def asympo(found: Responses, floor: float = 1e-3) -> Any:
    """arXiv:2606.03070: −mean A log ℓ̄; under the floor it goes on along its tangent's direction."""

    def of_response(o: Response) -> jax.Array:
        nll = -jnp.mean(o.logp)
        return -o.advantage * (jnp.log(nll) if -np.mean(o.stopped) > floor else nll / floor)

    return mean_of_responses(found, of_response)


def asymre(found: Responses, delta: float = -0.1) -> Any:
    """arXiv:2506.20520: (reward − V) log π, V the mean reward of the prompt plus δ."""

    def of_tokens(o: Response) -> jax.Array:
        rewards = [other.advantage for other in found if other.group == o.group]
        baseline = sum(rewards) / len(rewards) + delta
        return (o.advantage - baseline) * o.logp

    return mean_of_tokens(found, of_tokens)


def w_reinforce(found: Responses, positive_scale: float = 0.1) -> Any:
    """arXiv:2506.01347: λ times what positive samples reinforce, and what negative ones do."""
    positive = mean_of_tokens(found, lambda o: max(o.advantage, 0.0) * o.logp)
    negative = mean_of_tokens(found, lambda o: min(o.advantage, 0.0) * o.logp)
    return positive_scale * positive + negative


def grpo(
    found: Responses, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float = math.inf
) -> Any:
    """arXiv:2402.03300 eq. 3."""

    def of_response(o: Response) -> jax.Array:
        ratio = jnp.exp(o.logp - o.behaviour)
        return jnp.mean(ppo(ratio, o.advantage, clip_low, clip_high, dual_clip))

    return mean_of_responses(found, of_response)


def dr_grpo(
    found: Responses, clip_low: float = 0.2, clip_high: float = 0.2, constant: float = 1.0
) -> Any:
    """arXiv:2503.20783: a sum over tokens, divided by a constant if at all."""

    def of_response(o: Response) -> jax.Array:
        ratio = jnp.exp(o.logp - o.behaviour)
        return jnp.sum(ppo(ratio, o.advantage, clip_low, clip_high)) / constant

    return mean_of_responses(found, of_response)


def dapo(
    found: Responses, clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float = 10.0
) -> Any:
    """arXiv:2503.14476 eq. 8."""

    def of_tokens(o: Response) -> jax.Array:
        ratio = jnp.exp(o.logp - o.behaviour)
        return ppo(ratio, o.advantage, clip_low, clip_high, dual_clip)

    return mean_of_tokens(found, of_tokens)


def gspo(found: Responses, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Any:
    """arXiv:2507.18071 eq. 5: s = (π(o) / π_old(o))^(1/|o|)."""

    def of_response(o: Response) -> jax.Array:
        ratio_of_sequences = jnp.exp(jnp.sum(o.logp)) / np.exp(np.sum(o.behaviour))
        s = ratio_of_sequences ** (1 / len(o.behaviour))
        return ppo(s, o.advantage, clip_low, clip_high)

    return mean_of_responses(found, of_response)


def gspo_token(found: Responses, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Any:
    """arXiv:2507.18071 eq. 13: s_t = sg[s] π_t / sg[π_t]."""

    def of_response(o: Response) -> jax.Array:
        s = np.exp(np.mean(o.stopped - o.behaviour))
        s_of_tokens = s * jnp.exp(o.logp) / np.exp(o.stopped)
        return jnp.mean(ppo(s_of_tokens, o.advantage, clip_low, clip_high))

    return mean_of_responses(found, of_response)


def cispo(found: Responses, clip_high: float = 4.0) -> Any:
    """arXiv:2506.13585 eq. 4, without a lower bound: sg[min(r, 1 + ε)] A log π."""

    def of_tokens(o: Response) -> jax.Array:
        weight = np.clip(np.exp(o.stopped - o.behaviour), None, 1 + clip_high)
        return o.logp * weight * o.advantage

    return mean_of_tokens(found, of_tokens)


def tis(found: Responses, cap: float = 2.0) -> Any:
    """Ionides (2008): sg[min(r, C)] A log π."""

    def of_response(o: Response) -> jax.Array:
        weight = np.minimum(np.exp(o.stopped) / np.exp(o.behaviour), cap)
        return jnp.mean(weight * o.advantage * o.logp)

    return mean_of_responses(found, of_response)


def topr(found: Responses) -> Any:
    """arXiv:2503.14286: A log W, for A < 0 tapered to A (W − 1) where W < 1; over |o|."""

    def of_response(o: Response) -> jax.Array:
        product = jnp.prod(jnp.exp(o.logp) / np.exp(o.behaviour))
        truncated = np.prod(np.exp(o.stopped) / np.exp(o.behaviour)) < 1
        tapered = product - 1 if o.advantage < 0 and truncated else jnp.log(product)
        return o.advantage * tapered / len(o.behaviour)

    return mean_of_responses(found, of_response)


def aspo(found: Responses, clip_low: float = 0.2, clip_high: float = 0.2, cap: float = 3.0) -> Any:
    """arXiv:2510.06062: hard clip, then π_old π / sg[π²] for A > 0, then a soft dual clip."""

    def of_tokens(o: Response) -> jax.Array:
        ratio, stopped_ratio = jnp.exp(o.logp - o.behaviour), np.exp(o.stopped - o.behaviour)
        kept = stopped_ratio >= 1 - clip_low
        if o.advantage > 0:
            ratio = jnp.exp(o.behaviour) * jnp.exp(o.logp) / np.exp(o.stopped) ** 2
            kept = stopped_ratio <= 1 + clip_high
            stopped_ratio = 1 / stopped_ratio
        softly_clipped = ratio * np.minimum(stopped_ratio, cap) / stopped_ratio
        return jnp.where(kept, softly_clipped * o.advantage, 0.0)

    return mean_of_tokens(found, of_tokens)


def m2po(found: Responses, limit: float = 0.04) -> Any:
    """arXiv:2510.01161 algorithm 1, eq. 5: (log r)² of trust-region tokens, the largest masked."""
    region = []
    for number, o in enumerate(found):
        for t in range(len(o.stopped)):
            log_ratio = o.stopped[t] - o.behaviour[t]
            if (o.advantage > 0 and log_ratio > 0) or (o.advantage < 0 and log_ratio < 0):
                region.append((log_ratio**2, number, t))
    region.sort()
    mask = [np.ones(len(o.stopped)) for o in found]
    while region and sum(square for square, _, _ in region) / len(region) > limit:
        _, number, t = region.pop()
        mask[number][t] = 0
    masks = iter(mask)
    return mean_of_tokens(
        found, lambda o: jnp.exp(o.logp - o.behaviour) * o.advantage * next(masks)
    )


def decoupled_ppo(
    found: Responses, clip_low: float = 0.2, clip_high: float = 0.2, cap: float = 5.0
) -> Any:
    """arXiv:2505.24298 eq. 5: π_prox/π_behav times PPO around π_prox; beyond a cap not at all."""

    def of_tokens(o: Response) -> jax.Array:
        behind = np.exp(o.proximal) / np.exp(o.behaviour)
        ratio = jnp.exp(o.logp) / np.exp(o.proximal)
        return (behind <= cap) * behind * ppo(ratio, o.advantage, clip_low, clip_high)

    return mean_of_tokens(found, of_tokens)


def k3(response: Response) -> jax.Array:
    """arXiv:2402.03300 eq. 4: π_ref/π − log(π_ref/π) − 1."""
    ratio = jnp.exp(response.reference) / jnp.exp(response.logp)
    return ratio - jnp.log(ratio) - 1


OBJECTIVES: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        reinforce,
        gpg,
        spo,
        asympo,
        asymre,
        w_reinforce,
        grpo,
        dr_grpo,
        dapo,
        gspo,
        cispo,
        tis,
        topr,
        aspo,
        m2po,
        decoupled_ppo,
    )
}
