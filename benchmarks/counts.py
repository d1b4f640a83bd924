"""FLOPs and bytes that the work of a comparison needs, counted from its shape alone.

A multiply-add is two FLOPs. Matrix products and attention are counted, and each once: what an
implementation computes again, pads or reads twice is its own affair, so that a fraction of a
machine's ceiling says how much of it did something needed. Norms, softmax, draws and the optimiser
are left out. Attention is causal. The embedding is looked up, not multiplied.
"""

import dataclasses

from workload import Workload

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


def num_parameters(work: Workload) -> int:
    """Parameters of the decoder, its head tied to the embedding."""
    width, head = work.width, work.head_width
    attention = width * head * (2 * work.num_heads + 2 * work.num_kv_heads) + 2 * head
    mlp = 3 * width * work.mlp_width
    layer = attention + mlp + 2 * width
    return work.vocab_size * width + work.num_layers * layer + width


def layer_flops(work: Workload) -> float:
    """Matrix products of all layers for one token, without attention."""
    projections = work.width * work.head_width * (2 * work.num_heads + 2 * work.num_kv_heads)
    return 2.0 * work.num_layers * (projections + 3 * work.width * work.mlp_width)


def attention_flops(work: Workload, context: float) -> float:
    """Scores and weighted sum of all layers for one token that looks at `context` positions."""
    return 4.0 * work.num_layers * work.num_heads * work.head_width * context


def head_flops(work: Workload) -> float:
    """Logits of one position."""
    return 2.0 * work.width * work.vocab_size


def forward(work: Workload) -> Needed:
    """Each prompt once, each response token but the last, and the logits that score all of them.

    The responses to a prompt share it, and the logits of their first tokens with it. A last token
    predicts nothing.
    """
    positions = work.prompt_tokens
    prompt = positions * layer_flops(work) + head_flops(work)
    prompt += attention_flops(work, positions * (positions + 1) / 2)
    steps = [decode_step(work, drawn).flops for drawn in range(work.response_tokens - 1)]
    return Needed(work.num_prompts * prompt + sum(steps))


def update(work: Workload) -> Needed:
    """Forward and backward: the gradient by the inputs and by the weights cost a forward each."""
    return Needed(3.0 * forward(work).flops)


def decode_step(work: Workload, drawn: float) -> Needed:
    """One token for every sequence when each has drawn `drawn` tokens.

    Its bytes are every parameter once, and the cache once: the prompt's part once a prompt, as its
    responses share it, their own part once each.
    """
    context = work.prompt_tokens + drawn + 1
    flops = layer_flops(work) + attention_flops(work, context) + head_flops(work)
    position_bytes = 2 * work.num_layers * work.num_kv_heads * work.head_width * FLOAT_BYTES
    cached = work.num_prompts * work.prompt_tokens + work.num_sequences * (drawn + 1)
    needed = num_parameters(work) * FLOAT_BYTES + cached * position_bytes
    return Needed(work.num_sequences * flops, needed)


def sampling(work: Workload) -> Needed:
    """A whole batch: each prompt once, then a decode step for every token but the last."""
    steps = [decode_step(work, drawn).bytes for drawn in range(work.response_tokens - 1)]
    return Needed(forward(work).flops, num_parameters(work) * FLOAT_BYTES + sum(steps))
