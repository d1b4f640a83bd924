"""The gradient of an objective on a packed batch, and the log-probs that it comes from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from asympo_jax import objectives
from asympo_jax.learning.micro_batches import mapped, summed_gradient
from asympo_jax.learning.packing import PackedBatch, Rows
from asympo_jax.learning.train_state import KEPT, StepConfig, TrainState
from asympo_jax.models import ModelConfig, head_matrix, hidden_states, kept_placed, target_logp
from asympo_jax.models.attention import make_attend_packed


def policy_batch(
    model: ModelConfig,
    objective: objectives.Objective,
    config: StepConfig,
    state: TrainState,
    packed: PackedBatch,
) -> objectives.PolicyBatch:
    """The batch as an objective sees it.

    The current log-probs are zeros, to be computed with the gradient, unless a weight depends on
    those of the whole batch.
    """
    batch = packed.batch

    def logp_under(params: Any) -> Array:
        decoder = state.decoder(params)
        logp_MNRC = mapped(
            lambda rows: _score(model, config, decoder, rows)[0],
            packed.rows,
            packed.num_micro_batches,
        )
        return _by_response(packed, logp_MNRC)

    others = {
        f"{name}_logp_BT": logp_under(params)
        for name in KEPT
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


def weight_by_batch(
    objective: objectives.Objective, policy: objectives.PolicyBatch
) -> Array | None:
    """The weights of all tokens if they depend on the whole batch, else None."""
    return objectives.token_weight(objective, policy) if objective.scope == "batch" else None


def policy_gradient(
    model: ModelConfig,
    objective: objectives.Objective,
    config: StepConfig,
    state: TrainState,
    packed: PackedBatch,
    policy: objectives.PolicyBatch,
    weight_BT: Array | None,
) -> tuple[Any, Array, Array]:
    """Gradient of the loss by `state.params`, and the log-probs and entropies of all tokens."""
    by_response = (dataclasses.replace(policy, totals=None), packed.first_B, weight_BT)

    def loss_share(params: Any, rows: Rows) -> tuple[Array, Any]:
        params = kept_placed(model.mesh, params)
        logp_NRC, entropy_NRC = _score(model, config, state.decoder(params), rows)
        # Of a response that is none, the mask is empty.
        policy_M, first_M, weight_MT = jax.tree.map(
            lambda x: jnp.take(x, rows.response_NG.reshape(-1), axis=0, mode="fill", fill_value=0),
            by_response,
        )
        logp_MT = _taken(logp_NRC, rows.place_NG.reshape(-1), first_M, policy_M.mask_BT)
        policy_M = dataclasses.replace(policy_M, logp_BT=logp_MT, totals=policy.totals)
        if weight_MT is None:
            weight_MT = objectives.token_weight(objective, policy_M)
        loss = objectives.aggregate_loss(objective, policy_M, weight_MT)
        return loss, (logp_NRC, entropy_NRC)

    gradient, _, scores_MNRC = summed_gradient(
        loss_share, state.params, packed.rows, packed.num_micro_batches
    )
    logp_BT, entropy_BT = (_by_response(packed, x_MNRC) for x_MNRC in scores_MNRC)
    return gradient, logp_BT, entropy_BT


def _score(model: ModelConfig, config: StepConfig, params: Any, rows: Rows) -> tuple[Array, Array]:
    """Log-probs and entropies of the targets of a micro-batch, at the temperature of sampling."""
    num_columns = rows.token_NRC.shape[-1]
    _, prompt = hidden_states(model, params, rows.prompt_NS)
    prompt_S = jnp.arange(rows.prompt_NS.shape[-1])
    attend = make_attend_packed(prompt_S[None] < rows.prompt_length_N[:, None], rows.segment_NRC)
    tokens_BC, position_BC = (
        x.reshape(-1, num_columns) for x in (rows.token_NRC, rows.position_NRC)
    )
    hidden_BCD, _ = hidden_states(model, params, tokens_BC, attend, prompt, position_BC)
    logp_BC, entropy_BC = target_logp(
        hidden_BCD,
        head_matrix(model, params),
        rows.target_NRC.reshape(-1, num_columns),
        config.temperature,
        config.logp_chunk,
        model.mesh,
    )
    shape = rows.token_NRC.shape
    return logp_BC.reshape(shape), entropy_BC.reshape(shape)


def _by_response(packed: PackedBatch, x_MNRC: Array) -> Array:
    """What belongs to the columns of rows, by responses and positions; 0 where nothing is drawn."""
    return _taken(x_MNRC, packed.place_B, packed.first_B, packed.batch.drawn_BT)


def _taken(x: Array, place_B: Array, first_B: Array, drawn_BT: Array) -> Array:
    """Of an array of columns those of each response, at the positions that they predict."""
    within_BT = jnp.arange(drawn_BT.shape[1])[None] - first_B[:, None]
    index_BT = jnp.where(drawn_BT, place_B[:, None] + within_BT, 0)
    return jnp.where(drawn_BT, x.reshape(-1)[index_BT], 0.0)
