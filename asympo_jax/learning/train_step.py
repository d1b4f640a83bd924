"""The learner's step: one batch of complete groups, one update of the parameters."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from asympo_jax import objectives
from asympo_jax.learning.micro_batches import mapped, summed_gradient
from asympo_jax.models import (
    ModelConfig,
    head_matrix,
    hidden_states,
    init_params,
    token_logp,
    with_adapters,
)
from asympo_jax.objectives.advantages import Center, Scale
from asympo_jax.objectives.masked import masked_mean
from asympo_jax.types import Batch

Metrics = dict[str, Float[Array, ""]]

# Needs of an objective for which the state keeps parameters.
_KEPT = ("proximal", "reference")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that an update changes, and what it compares with.

    Attributes:
        params: what is trained, float32: the decoder's parameters, or adapters on `base`.
        opt_state: the optimiser's.
        update: number of updates done, which is the version of `params`.
        proximal: recent `params`, None unless the objective needs them.
        reference: `params` of update 0, None unless the objective needs them.
        base: what no update changes, see `models.frozen_base`; None without adapters.
    """

    params: Any
    opt_state: Any
    update: Int[Array, ""]
    proximal: Any = None
    reference: Any = None
    base: Any = None

    @property
    def policy(self) -> Any:
        """The decoder's parameters, adapters in their places."""
        return self.decoder(self.params)

    def decoder(self, params: Any) -> Any:
        """The decoder's parameters where those trained are `params`."""
        return params if self.base is None else with_adapters(self.base, params)


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the step computes, apart from the objective.

    Attributes:
        group_size: G.
        temperature: at which the responses were sampled, and log-probs are taken.
        center: centring of the advantage.
        scale: scaling of the advantage.
        micro_batch: rows whose activations are held at once; 0 for the whole batch.
        logp_chunk: tokens whose logits are held at once.
        proximal_every_updates: updates after which the proximal parameters are renewed.
    """

    group_size: int
    temperature: float
    center: Center
    scale: Scale
    micro_batch: int
    logp_chunk: int
    proximal_every_updates: int = 4


def init_state(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    key: Array,
    needs: Collection[objectives.Need] = (),
) -> TrainState:
    """A state with random parameters; see `state_from_params`."""
    return state_from_params(init_params(model, key), optimizer, needs)


def state_from_params(
    params: Any,
    optimizer: optax.GradientTransformation,
    needs: Collection[objectives.Need] = (),
    base: Any = None,
) -> TrainState:
    """A state at update 0 with a fresh optimiser and the given parameters.

    Device arrays are not copied, so that the step, to which the state is donated, ends their life.

    Args:
        params: parameters of the decoder, or adapters.
        optimizer: of the step.
        needs: of the objective: for which of `proximal` and `reference` parameters are kept.
        base: what adapters are put on, else None.
    """
    params, base = jax.tree.map(jnp.asarray, (params, base))
    kept = {name: jax.tree.map(jnp.copy, params) for name in _KEPT if name in needs}
    return TrainState(params, optimizer.init(params), jnp.int32(0), base=base, **kept)


def make_train_step(
    model: ModelConfig,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step `(state, batch) -> (state, metrics)`; the state given is donated.

    The batch is worked in micro-batches whose losses share the denominators of the whole batch, so
    the split changes the order of sums and nothing else.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        state = _with_proximal(config, state)
        policy = _policy_batch(model, objective, config, state, batch)
        weight_BT = _weight_by_batch(objective, policy)
        gradient, logp_BT, entropy_BT = _gradient(
            model, objective, config, state, batch.tokens_BT, policy, weight_BT
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        policy = dataclasses.replace(policy, logp_BT=logp_BT)
        weight_BT = objectives.token_weight(objective, policy)
        metrics = objectives.metrics_of(objective, policy, weight_BT) | {
            "loss": objectives.aggregate_loss(objective, policy, weight_BT),
            "reward/mean": masked_mean(batch.reward_PG.reshape(-1), policy.mask_BT.any(axis=1)),
            "policy/entropy": masked_mean(entropy_BT, policy.mask_BT),
            "grad/norm": optax.tree.norm(gradient),
            "params/norm": optax.tree.norm(params),
        }
        state = dataclasses.replace(
            state, params=params, opt_state=opt_state, update=state.update + 1
        )
        return state, metrics

    return jax.jit(step, donate_argnums=0)


def make_sign_gradients(
    model: ModelConfig, objective: objectives.Objective, config: StepConfig
) -> Callable[[TrainState, Batch], Metrics]:
    """Jitted: what positive and negative responses contribute to the gradient of an update.

    Returns:
        A function of the state before the update and its batch; its metrics are `grad/positive`
        and `grad/negative`, the norms of the two parts of the loss's gradient, and `grad/cosine`
        of the angle between them (0 if one is 0). It costs two gradients.
    """

    def sign_gradients(state: TrainState, batch: Batch) -> Metrics:
        state = _with_proximal(config, state)
        policy = _policy_batch(model, objective, config, state, batch)
        weight_BT = _weight_by_batch(objective, policy)
        loss_only = dataclasses.replace(objective, kl_coefficient=0.0)

        def part(keep_B: Array) -> Any:
            half = dataclasses.replace(
                policy, advantage_B=jnp.where(keep_B, policy.advantage_B, 0.0)
            )
            return _gradient(model, loss_only, config, state, batch.tokens_BT, half, weight_BT)[0]

        positive, negative = part(policy.advantage_B > 0), part(policy.advantage_B < 0)
        norms = optax.tree.norm(positive), optax.tree.norm(negative)
        product = norms[0] * norms[1]
        dot = jnp.asarray(optax.tree.vdot(positive, negative))
        cosine = dot / jnp.where(product > 0, product, 1.0)
        return {"grad/positive": norms[0], "grad/negative": norms[1], "grad/cosine": cosine}

    return jax.jit(sign_gradients)


def _with_proximal(config: StepConfig, state: TrainState) -> TrainState:
    """The state whose proximal parameters are those of the last update that renews them."""
    if state.proximal is None:
        return state
    due = state.update % config.proximal_every_updates == 0
    proximal = jax.tree.map(lambda new, old: jnp.where(due, new, old), state.params, state.proximal)
    return dataclasses.replace(state, proximal=proximal)


def _policy_batch(
    model: ModelConfig,
    objective: objectives.Objective,
    config: StepConfig,
    state: TrainState,
    batch: Batch,
) -> objectives.PolicyBatch:
    """The batch as an objective sees it.

    The current log-probs are zeros, to be computed with the gradient, unless a weight depends on
    those of the whole batch.
    """

    def logp_under(params: Any) -> Array:
        return mapped(
            lambda tokens_MT: _score(model, config, state.decoder(params), tokens_MT)[0],
            batch.tokens_BT,
            config.micro_batch,
        )

    others = {
        f"{name}_logp_BT": logp_under(params)
        for name in _KEPT
        if (params := getattr(state, name)) is not None
    }
    if objective.scope == "batch":
        logp_BT = logp_under(state.params)
    else:
        logp_BT = jnp.zeros(batch.tokens_BT.shape, jnp.float32)
    advantage_PG = objectives.group_advantages(batch.reward_PG, config.center, config.scale)
    advantage_B = advantage_PG.reshape(-1)
    return objectives.PolicyBatch(
        logp_BT=logp_BT,
        mask_BT=batch.drawn_BT,
        advantage_B=objective.advantage(advantage_B),
        totals=objectives.batch_totals(batch.drawn_BT, advantage_B, config.group_size),
        behaviour_logp_BT=batch.behaviour_logp_BT,
        **others,
    )


def _weight_by_batch(
    objective: objectives.Objective, policy: objectives.PolicyBatch
) -> Array | None:
    """The weights of all tokens if they depend on the whole batch, else None."""
    return objectives.token_weight(objective, policy) if objective.scope == "batch" else None


def _gradient(
    model: ModelConfig,
    objective: objectives.Objective,
    config: StepConfig,
    state: TrainState,
    tokens_BT: Array,
    policy: objectives.PolicyBatch,
    weight_BT: Array | None,
) -> tuple[Any, Array, Array]:
    """Gradient of the loss by `state.params`, and the log-probs and entropies of all tokens."""

    def loss_share(params: Any, rows: tuple[Array, Any, Array | None]) -> tuple[Array, Any]:
        tokens_MT, policy_M, weight_MT = rows
        logp_MT, entropy_MT = _score(model, config, state.decoder(params), tokens_MT)
        policy_M = dataclasses.replace(policy_M, logp_BT=logp_MT, totals=policy.totals)
        if weight_MT is None:
            weight_MT = objectives.token_weight(objective, policy_M)
        return objectives.aggregate_loss(objective, policy_M, weight_MT), (logp_MT, entropy_MT)

    policy_rows = dataclasses.replace(policy, totals=None)  # what is not by row is not split
    gradient, _, (logp_BT, entropy_BT) = summed_gradient(
        loss_share, state.params, (tokens_BT, policy_rows, weight_BT), config.micro_batch
    )
    return gradient, logp_BT, entropy_BT


def _score(
    model: ModelConfig, config: StepConfig, params: Any, tokens_BT: Array
) -> tuple[Array, Array]:
    """Log-probs and entropies of tokens, at the temperature of sampling."""
    hidden_BTD, _ = hidden_states(model, params, tokens_BT)
    return token_logp(
        hidden_BTD, head_matrix(model, params), tokens_BT, config.temperature, config.logp_chunk
    )
