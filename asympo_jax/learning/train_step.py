"""The learner's step: one batch of complete groups, one update of the parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from asympo_jax import objectives
from asympo_jax.learning.gradient import policy_batch, policy_gradient, weight_by_batch
from asympo_jax.learning.packing import PackedBatch, pack, spread
from asympo_jax.learning.train_state import StepConfig, TrainState, with_proximal
from asympo_jax.models import ModelConfig, kept_placed
from asympo_jax.objectives.masked import masked_mean
from asympo_jax.types import Batch

Metrics = dict[str, Float[Array, ""]]


class Packed:
    """A function of a state and a batch, which it packs on the host and jits.

    Attributes:
        on_packed: the jitted function of a state and a `PackedBatch`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        config: StepConfig,
        mesh: jax.sharding.Mesh | None,
        **options: Any,
    ):
        """Args: the function, how to pack for it, its devices, and options of `jax.jit`."""
        self.on_packed = jax.jit(function, **options)
        self._packing, self._mesh = config.packing, mesh

    def __call__(self, state: TrainState, batch: Batch) -> Any:
        """The function's value."""
        return self.on_packed(state, self._packed(batch))

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """What `jax.jit` gives to compile for batches like this one."""
        return self.on_packed.lower(state, self._packed(batch))

    def _packed(self, batch: Batch) -> PackedBatch:
        """The batch in rows, each on the device that works on it."""
        packed = pack(self._packing, batch)
        return packed if self._mesh is None else spread(self._mesh, packed)


def make_train_step(
    model: ModelConfig,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
) -> Packed:
    """The jitted step `(state, batch) -> (state, metrics)`; the state given is donated.

    The batch is packed and worked in micro-batches whose losses share the denominators of the whole
    batch, so the split changes the order of sums and nothing else.

    An update is skipped if its loss, its gradient or its step is not finite: the parameters stay
    as they are, bit for bit, and so does the optimiser's state unless the step alone is at fault;
    `update` counts it all the same, and the metric `update/skipped` is 1.
    """

    def update_step(state: TrainState, packed: PackedBatch) -> tuple[TrainState, Metrics]:
        batch = packed.batch
        state = with_proximal(config, state)
        policy = policy_batch(model, objective, config, state, packed)
        weight_BT = weight_by_batch(objective, policy)
        gradient, logp_BT, entropy_BT = policy_gradient(
            model, objective, config, state, packed, policy, weight_BT
        )
        policy = dataclasses.replace(policy, logp_BT=logp_BT)
        weight_BT = objectives.token_weight(objective, policy)
        loss = objectives.aggregate_loss(objective, policy, weight_BT)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        norms = {"grad/norm": optax.tree.norm(gradient), "update/norm": optax.tree.norm(updates)}
        # The moments that a finite gradient leads to are finite. Were they to wait for the norm of
        # the step, too, the device would have to hold them twice.
        is_finite = jnp.isfinite(loss) & jnp.isfinite(norms["grad/norm"])
        opt_state = _selected(is_finite, opt_state, state.opt_state)
        is_finite &= jnp.isfinite(norms["update/norm"])
        params = _selected(is_finite, optax.apply_updates(state.params, updates), state.params)
        metrics = objectives.metrics_of(objective, policy, weight_BT) | {
            "loss": loss,
            "reward/mean": masked_mean(batch.reward_PG.reshape(-1), policy.mask_BT.any(axis=1)),
            "policy/entropy": masked_mean(entropy_BT, policy.mask_BT),
            **norms,
            "params/norm": optax.tree.norm(params),
            "update/skipped": 1.0 - is_finite.astype(jnp.float32),
        }
        state = dataclasses.replace(
            state, params=params, opt_state=opt_state, update=state.update + 1
        )
        return kept_placed(model.mesh, state), metrics

    return Packed(update_step, config, model.mesh, donate_argnums=0)


def _selected(is_new: Array, new: Any, old: Any) -> Any:
    """One of two trees of arrays."""
    return jax.tree.map(lambda x, y: jnp.where(is_new, x, y), new, old)


def make_sign_gradients(
    model: ModelConfig, objective: objectives.Objective, config: StepConfig
) -> Packed:
    """Jitted: what positive and negative responses contribute to the gradient of an update.

    Returns:
        A function of the state before the update and its batch; its metrics are `grad/positive`
        and `grad/negative`, the norms of the two parts of the loss's gradient, and `grad/cosine`
        of the angle between them (0 if one is 0). It costs two gradients.
    """

    def sign_gradients(state: TrainState, packed: PackedBatch) -> Metrics:
        state = with_proximal(config, state)
        policy = policy_batch(model, objective, config, state, packed)
        weight_BT = weight_by_batch(objective, policy)
        loss_only = dataclasses.replace(objective, kl_coefficient=0.0)

        def part(keep_B: Array) -> Any:
            half = dataclasses.replace(
                policy, advantage_B=jnp.where(keep_B, policy.advantage_B, 0.0)
            )
            return policy_gradient(model, loss_only, config, state, packed, half, weight_BT)[0]

        positive, negative = part(policy.advantage_B > 0), part(policy.advantage_B < 0)
        norms = optax.tree.norm(positive), optax.tree.norm(negative)
        product = norms[0] * norms[1]
        dot = jnp.asarray(optax.tree.vdot(positive, negative))
        cosine = dot / jnp.where(product > 0, product, 1.0)
        return {"grad/positive": norms[0], "grad/negative": norms[1], "grad/cosine": cosine}

    return Packed(sign_gradients, config, model.mesh)
