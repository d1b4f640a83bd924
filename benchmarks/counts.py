"""FLOPs and bytes that the work of a comparison needs; `asympo_jax.models.counts` says what counts.

What an implementation computes again, pads or reads twice is its own affair, so that a fraction of
a machine's ceiling says how much of it did something needed.
"""

import dataclasses

from workload import Workload
from write_model import decoder

from asympo_jax.models import counts

FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Needed:
    """What a piece of work needs at least.

    Attributes:
        flops: of matrix products and attention.
        bytes: moved from and to memory; 0 where they are not counted.
    """

    flops: float
    bytes: float = 0.0


def forward(work: Workload) -> Needed:
    """See `counts.forward_flops`."""
    lengths = counts.Lengths(
        work.num_prompts, work.group_size, work.prompt_tokens, work.response_tokens
    )
    return Needed(counts.forward_flops(decoder(work), lengths))


def update(work: Workload) -> Needed:
    """Forward and backward: the gradient by the inputs and by the weights cost a forward each."""
    return Needed(3.0 * forward(work).flops)


def decode_step(work: Workload, drawn: float) -> Needed:
    """One token for every sequence when each has drawn `drawn` tokens.

    Its bytes are every parameter once, and the cache once: the prompt's part once a prompt, as its
    responses share it, their own part once each.
    """
    model, context = decoder(work), float(work.prompt_tokens + drawn + 1)
    flops = counts.layer_flops(model) + counts.attention_flops(model, context)
    flops += counts.head_flops(model)
    position_bytes = 2 * work.num_layers * work.num_kv_heads * work.head_width * FLOAT_BYTES
    cached = work.num_prompts * work.prompt_tokens + work.num_sequences * (drawn + 1)
    needed = counts.num_parameters(model) * FLOAT_BYTES + cached * position_bytes
    return Needed(work.num_sequences * flops, needed)


def sampling(work: Workload) -> Needed:
    """A whole batch: each prompt once, then a decode step for every token but the last."""
    steps = [decode_step(work, drawn).bytes for drawn in range(work.response_tokens - 1)]
    parameter_bytes = counts.num_parameters(decoder(work)) * FLOAT_BYTES
    return Needed(forward(work).flops, parameter_bytes + sum(steps))
