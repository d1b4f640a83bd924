"""The learner's step: one batch of complete groups, one update of the parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from asympo_jax import objectives
from asympo_jax.learning.micro_batches import summed_gradient
from asympo_jax.models import ModelConfig, head_matrix, hidden_states, init_params, token_logp
from asympo_jax.objectives.advantages import Center, Scale
from asympo_jax.objectives.masked import masked_mean
from asympo_jax.types import Batch

Metrics = dict[str, Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that an update changes.

    Attributes:
        params: float32 parameters of the decoder.
        opt_state: the optimiser's.
        update: number of updates done, which is the version of `params`.
    """

    params: Any
    opt_state: Any
    update: Int[Array, ""]


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
    """

    group_size: int
    temperature: float
    center: Center
    scale: Scale
    micro_batch: int
    logp_chunk: int


def init_state(
    model: ModelConfig, optimizer: optax.GradientTransformation, key: Array
) -> TrainState:
    """A state with random parameters."""
    return state_from_params(init_params(model, key), optimizer)


def state_from_params(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at update 0 with a fresh optimiser and the given parameters.

    Device arrays are not copied, so that the step, to which the state is donated, ends their life.
    """
    params = jax.tree.map(jnp.asarray, params)
    return TrainState(params=params, opt_state=optimizer.init(params), update=jnp.int32(0))


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
        policy = _policy_batch(config, batch)
        gradient, logp_BT, entropy_BT = _gradient(
            model, objective, config, state.params, batch.tokens_BT, policy
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        policy = dataclasses.replace(policy, logp_BT=logp_BT)
        weight_BT = objectives.token_weight(objective, policy)
        metrics = objectives.diagnostics(policy, weight_BT)
        metrics |= objective.report(policy)
        metrics |= {
            "loss": objectives.aggregate_loss(objective, policy, weight_BT),
            "reward/mean": batch.reward_PG.mean(),
            "policy/entropy": masked_mean(entropy_BT, policy.mask_BT),
            "grad/norm": optax.tree.norm(gradient),
        }
        return TrainState(params, opt_state, state.update + 1), metrics

    return jax.jit(step, donate_argnums=0)


def _policy_batch(config: StepConfig, batch: Batch) -> objectives.PolicyBatch:
    """The batch as an objective sees it, its log-probs still to be computed."""
    advantage_PG = objectives.group_advantages(batch.reward_PG, config.center, config.scale)
    advantage_B = advantage_PG.reshape(-1)
    totals = objectives.batch_totals(batch.drawn_BT, advantage_B, config.group_size)
    return objectives.PolicyBatch(
        logp_BT=jnp.zeros(batch.tokens_BT.shape, jnp.float32),
        mask_BT=batch.drawn_BT,
        advantage_B=advantage_B,
        totals=totals,
        behaviour_logp_BT=batch.behaviour_logp_BT,
    )


def _gradient(
    model: ModelConfig,
    objective: objectives.Objective,
    config: StepConfig,
    params: Any,
    tokens_BT: Array,
    policy: objectives.PolicyBatch,
) -> tuple[Any, Array, Array]:
    """Gradient of the loss, and the log-probs and entropies of all tokens."""

    def loss_share(params: Any, rows: tuple[Array, dict[str, Array]]) -> tuple[Array, Any]:
        tokens_MT, fields_M = rows
        hidden_MTD, _ = hidden_states(model, params, tokens_MT)
        logp_MT, entropy_MT = token_logp(
            hidden_MTD, head_matrix(model, params), tokens_MT, config.temperature, config.logp_chunk
        )
        policy_M = dataclasses.replace(policy, **fields_M, logp_BT=logp_MT)
        weight_MT = objectives.token_weight(objective, policy_M)
        return objectives.aggregate_loss(objective, policy_M, weight_MT), (logp_MT, entropy_MT)

    fields_B = {
        "mask_BT": policy.mask_BT,
        "advantage_B": policy.advantage_B,
        "behaviour_logp_BT": policy.behaviour_logp_BT,
    }
    gradient, _, (logp_BT, entropy_BT) = summed_gradient(
        loss_share, params, (tokens_BT, fields_B), config.micro_batch
    )
    return gradient, logp_BT, entropy_BT
