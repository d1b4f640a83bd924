"""FLOPs and parameters of a decoder, counted from its shape alone.

A multiply-add is two FLOPs. Matrix products and attention are counted, and each once: what is
computed again, padded or read twice is left out, and so are norms, softmax, draws and the
optimiser. Attention is causal. The embedding is looked up, not multiplied.
"""

import dataclasses
import functools
import math

import jax

from asympo_jax.models.config import ModelConfig
from asympo_jax.models.transformer import init_params


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Groups of responses that are all as long.

    Attributes:
        num_prompts: P.
        group_size: responses to each prompt, G.
        prompt_tokens: of every prompt.
        response_tokens: of every response.
    """

    num_prompts: int
    group_size: int
    prompt_tokens: int
    response_tokens: int


@functools.cache
def num_parameters(model: ModelConfig) -> int:
    """Numbers in the decoder's parameters."""
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def layer_flops(model: ModelConfig) -> float:
    """Matrix products of all layers for one token, without attention."""
    projections = model.width * model.head_width * (2 * model.num_heads + 2 * model.num_kv_heads)
    return 2.0 * model.num_layers * (projections + 3 * model.width * model.mlp_width)


def attention_flops(model: ModelConfig, context: float) -> float:
    """Scores and weighted sum of all layers for one token that looks at `context` positions."""
    return 4.0 * model.num_layers * model.num_heads * model.head_width * context


def head_flops(model: ModelConfig) -> float:
    """Logits of one position."""
    return 2.0 * model.width * model.vocab_size


def forward_flops(model: ModelConfig, lengths: Lengths) -> float:
    """Each prompt once, each response token but the last, and the logits that score all of them.

    The responses to a prompt share it, and the logits of their first tokens with it. A last token
    predicts nothing.
    """
    positions = lengths.prompt_tokens
    prompt = positions * layer_flops(model) + head_flops(model)
    prompt += attention_flops(model, positions * (positions + 1) / 2)
    num_read = lengths.response_tokens - 1
    # Of positions prompt + 1, …, prompt + response − 1.
    context = num_read * positions + num_read * (num_read + 1) / 2
    response = num_read * (layer_flops(model) + head_flops(model)) + attention_flops(model, context)
    return lengths.num_prompts * (prompt + lengths.group_size * response)
