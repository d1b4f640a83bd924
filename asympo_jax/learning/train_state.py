"""What an update starts from: the state that it changes and what is fixed for all updates."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from asympo_jax import objectives
from asympo_jax.learning.packing import Packing
from asympo_jax.models import ModelConfig, init_params, with_adapters
from asympo_jax.objectives.advantages import Center, Scale

# Needs of an objective for which the state keeps parameters.
KEPT = ("proximal", "reference")


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
        logp_chunk: tokens whose logits are held at once; 0 as `models.target_logp` has it.
        proximal_every_updates: updates after which the proximal parameters are renewed.
        max_prompt_tokens: room for a prompt; 0 for all positions.
        max_response_tokens: room for a response; 0 for all positions.
        row_shards: parts that the rows of a micro-batch are split into, one for each device.
    """

    group_size: int
    temperature: float
    center: Center
    scale: Scale
    micro_batch: int
    logp_chunk: int
    proximal_every_updates: int = 4
    max_prompt_tokens: int = 0
    max_response_tokens: int = 0
    row_shards: int = 1

    @property
    def packing(self) -> Packing:
        """How responses are packed."""
        sizes = self.micro_batch, self.max_prompt_tokens, self.max_response_tokens
        return Packing(self.group_size, *sizes, self.row_shards)


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
    kept = {name: jax.tree.map(jnp.copy, params) for name in KEPT if name in needs}
    return TrainState(params, optimizer.init(params), jnp.int32(0), base=base, **kept)


def with_proximal(config: StepConfig, state: TrainState) -> TrainState:
    """The state whose proximal parameters are those of the last update that renews them."""
    if state.proximal is None:
        return state
    due = state.update % config.proximal_every_updates == 0
    proximal = jax.tree.map(lambda new, old: jnp.where(due, new, old), state.params, state.proximal)
    return dataclasses.replace(state, proximal=proximal)
