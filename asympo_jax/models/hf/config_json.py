"""`config.json` of the Llama, Qwen2 and Qwen3 families, to a `ModelConfig` and back.

Both spellings are read: `rope_parameters` of transformers 5, and `rope_theta` with `rope_scaling`
of older ones. The older is written, because newer engines read it too. What a file leaves out has
the default of transformers. What would change the outputs and is not built here is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from asympo_jax.models.config import ModelConfig
from asympo_jax.models.rope import LinearScaling, Llama3Scaling, RopeScaling

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# Options that change the outputs, each with the one value that is built here.
_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
# Of a directory of the same model, what says nothing of the decoder.
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
# The decoder has no longest context. Engines need one, and make room for it.
_POSITIONS = 32_768


def from_json(found: Mapping[str, Any], dtype: str) -> ModelConfig:
    """The decoder that a `config.json` describes.

    Args:
        found: what the file holds.
        dtype: of activations.

    Raises:
        ValueError: naming the key, its value and what is allowed.
    """
    found = {key: value for key, value in found.items() if value is not None}
    family = _family(found)
    for key, allowed in _ONLY.items():
        # Qwen2 has biases on queries, keys and values whatever this says.
        if (family, key) != ("qwen2", "attention_bias"):
            _require_only(key, found.get(key, allowed), allowed)
    for kind in _typed(found, "layer_types", list, []):
        _require_only("layer_types", kind, "full_attention")
    width, num_heads = _size(found, "hidden_size"), _size(found, "num_attention_heads")
    rope = _rope(found)
    return ModelConfig(
        vocab_size=_size(found, "vocab_size"),
        num_layers=_size(found, "num_hidden_layers"),
        width=width,
        num_heads=num_heads,
        num_kv_heads=_size(found, "num_key_value_heads", num_heads),
        head_width=_size(found, "head_dim", width // max(1, num_heads)),
        mlp_width=_size(found, "intermediate_size"),
        rope_theta=_number(rope, "rope_theta", _number(found, "rope_theta", 10_000.0)),
        norm_epsilon=_number(found, "rms_norm_eps", 1e-6),
        qk_norm=family == "qwen3",
        qkv_bias=family == "qwen2",
        tied_head=_typed(found, "tie_word_embeddings", bool, False),
        dtype=dtype,
        rope_scaling=_scaling(rope),
    )


def to_json(
    config: ModelConfig, dtype: str, stop_ids: Sequence[int], like: Mapping[str, Any]
) -> dict[str, Any]:
    """What `config.json` says of a decoder.

    Args:
        config: the decoder.
        dtype: of the tensors.
        stop_ids: token ids that end a response; `like` may know others.
        like: `config.json` of a directory whose token ids and longest context are kept.

    Raises:
        ValueError: no family has such a decoder.
    """
    family = _family_of(config)
    scaling = config.rope_scaling
    positions = _POSITIONS
    if isinstance(scaling, Llama3Scaling):
        positions = int(scaling.original_positions * scaling.factor)
    return {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling_json(scaling),
        "tie_word_embeddings": config.tied_head,
        "torch_dtype": dtype,
        # Said even where nothing is known: Llama's defaults are ids of another tokenizer.
        "bos_token_id": None,
        "eos_token_id": list(stop_ids) or None,
        "pad_token_id": None,
        "max_position_embeddings": positions,
        **{key: like[key] for key in _KEPT if like.get(key) is not None},
    }


def _family(found: Mapping[str, Any]) -> str:
    """The family of a file, whose architecture must be its decoder with a head."""
    family = found.get("model_type")
    if family not in list(_ARCHITECTURES):  # a list compares what cannot be hashed too
        raise ValueError(f"model_type={family!r}: must be one of {list(_ARCHITECTURES)}")
    wanted = [_ARCHITECTURES[family]]
    architectures = found.get("architectures", wanted)
    if architectures != wanted:
        raise ValueError(f"architectures={architectures!r}: must be {wanted}")
    return family


def _family_of(config: ModelConfig) -> str:
    """The family that has such a decoder."""
    if config.qk_norm and config.qkv_bias:
        raise ValueError("model.qk_norm=True with model.qkv_bias=True: no family has both")
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    if family == "llama" and config.width % config.num_heads:
        raise ValueError(
            f"model.width={config.width}: transformers refuses a Llama whose width is not a "
            f"multiple of model.num_heads={config.num_heads}"
        )
    return family


def _rope(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of rotary positions, in either spelling."""
    key = "rope_scaling" if found.get("rope_scaling") else "rope_parameters"
    rope = _typed(found, key, dict, {})
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(f"{key}={rope!r}: must be one setting for all layers")
    _require_only(f"{key}.partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), 1.0)
    return {name: value for name, value in rope.items() if value is not None}


def _scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    """The scaling of rotary frequencies."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(_number(rope, "factor"))
        case "llama3":
            return Llama3Scaling(
                factor=_number(rope, "factor"),
                low_frequency_factor=_number(rope, "low_freq_factor"),
                high_frequency_factor=_number(rope, "high_freq_factor"),
                original_positions=_size(rope, "original_max_position_embeddings"),
            )
    raise ValueError(f"rope_type={kind!r}: must be 'default', 'linear' or 'llama3'")


def _scaling_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The scaling in the spelling of config.json."""
    match scaling:
        case None:
            return None
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_positions,
            }


def _require_only(key: str, value: Any, allowed: Any) -> None:
    """Refuses any value but the one that is built here."""
    if value != allowed:
        raise ValueError(f"{key}={value!r}: must be {allowed!r}, the only one that is built here")


def _size(found: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A count."""
    return _typed(found, key, int, default)


def _number(found: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number; integers are numbers."""
    return float(_typed(found, key, (int, float), default))


def _typed(found: Mapping[str, Any], key: str, kind: Any, default: Any) -> Any:
    """The value of a key, whose type is checked."""
    value = found.get(key, default)
    if value is None:
        raise ValueError(f"{key}: is missing")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {int: "an integer", bool: "true or false", list: "a list", dict: "an object"}
        raise ValueError(f"{key}={value!r}: must be {names.get(kind, 'a number')}")
    return value
