"""Hugging Face directories: what is written is read again, what does not fit is refused by name."""

import dataclasses
import json
import pathlib
import shutil
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from model_cases import FAMILIES, LLAMA, QWEN2, QWEN3, params_of

from asympo_jax import models
from asympo_jax.models.hf.weights import weights
from asympo_jax.models.rope import LinearScaling, Llama3Scaling

SCALED = dataclasses.replace(LLAMA, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64))
STRETCHED = dataclasses.replace(QWEN3, rope_scaling=LinearScaling(2.0), tied_head=True)
WIDE = dataclasses.replace(QWEN2, head_width=6)  # not the number of heads
CONFIGS = {**FAMILIES, "scaled": SCALED, "stretched": STRETCHED, "wide": WIDE}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def model_of(config: models.ModelConfig) -> models.Model:
    return models.Model(config, params_of(config))


def assert_same(one: models.Model, other: models.Model) -> None:
    assert one.config == other.config
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def tensors_of(directory: pathlib.Path) -> dict[str, np.ndarray]:
    found = {}
    for path in directory.glob("*.safetensors"):
        with safetensors.safe_open(path, framework="numpy") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory of the Qwen3 decoder, with a head of its own."""
    models.save(model_of(QWEN3), tmp_path / "hf")
    return tmp_path / "hf"


def edit(directory: pathlib.Path, **keys: Any) -> None:
    """Sets keys of config.json; those set to `...` are removed."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_header(path: pathlib.Path, change: Any) -> None:
    """Applies a function to the header of a safetensors file."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])


def refusal(directory: pathlib.Path, **options: Any) -> str:
    """The sentence with which a directory is refused."""
    with pytest.raises(ValueError) as refused:
        models.load(directory, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@every_config
def test_every_parameter_has_a_tensor_of_its_shape(config):
    shapes = jax.tree_util.tree_leaves_with_path(params_of(config))
    wanted = {"/".join(key.key for key in path): leaf.shape for path, leaf in shapes}
    found = {weight.path: weight.parameter_shape for weight in weights(config)}
    assert found == wanted


@every_config
@pytest.mark.parametrize("max_file_bytes", [10**9, 500], ids=["one_file", "several"])
def test_what_is_saved_is_loaded_again(config, max_file_bytes: int, tmp_path: pathlib.Path):
    models.save(model_of(config), tmp_path / "hf", max_file_bytes=max_file_bytes)
    assert_same(models.load(tmp_path / "hf"), model_of(config))
    sizes = [path.stat().st_size for path in (tmp_path / "hf").glob("*.safetensors")]
    assert (len(sizes) > 1) == (max_file_bytes == 500)
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == (len(sizes) > 1)


@every_config
def test_the_head_is_written_even_where_it_is_the_embedding(config, tmp_path: pathlib.Path):
    models.save(model_of(config), tmp_path / "hf")
    found = tensors_of(tmp_path / "hf")
    head = params_of(config)["embedding" if config.tied_head else "head"]
    np.testing.assert_array_equal(found["lm_head.weight"], head)


def test_logits_are_those_of_the_decoder_under_the_parameters_given(directory):
    model, params = models.load(directory), params_of(QWEN3, seed=1)
    tokens_BT = np.array([[1, 2, 3]])
    for given in (model.params, params):
        wanted = models.logits(QWEN3, given, jnp.asarray(tokens_BT))
        np.testing.assert_array_equal(model.logits(given, tokens_BT), wanted)


@pytest.mark.parametrize("config", [QWEN2, QWEN3], ids=["tied", "untied"])
def test_bfloat16_is_of_tensors_parameters_and_activations(config, tmp_path: pathlib.Path):
    models.save(model_of(config), tmp_path / "hf", dtype="bfloat16")
    assert {array.dtype.name for array in tensors_of(tmp_path / "hf").values()} == {"bfloat16"}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    half, full = models.load(tmp_path / "hf", "bfloat16"), models.load(tmp_path / "hf")
    assert half.config.dtype == "bfloat16" and full.config.dtype == "float32"
    for leaf, at_half, at_full in zip(
        *map(jax.tree.leaves, (params_of(config), half.params, full.params)), strict=True
    ):
        assert at_half.dtype == jnp.bfloat16 and at_full.dtype == jnp.float32
        np.testing.assert_array_equal(leaf.astype(jnp.bfloat16), at_half)
        np.testing.assert_array_equal(at_half.astype(jnp.float32), at_full)
    tokens_BT = jnp.array([[1, 2, 3]], jnp.int32)
    logits_BTV = half.logits(half.params, tokens_BT)
    assert logits_BTV.dtype == jnp.float32
    np.testing.assert_allclose(logits_BTV, full.logits(full.params, tokens_BT), atol=0.2)
    models.save(half, tmp_path / "again")
    assert_same(models.load(tmp_path / "again", "bfloat16"), half)


def test_parameters_go_to_the_sharding_that_is_asked_for(directory):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    over_width = NamedSharding(mesh, PartitionSpec("x"))

    def sharding(path: str) -> NamedSharding:
        return over_width if path.endswith("gate/kernel") else everywhere

    by_path, replicated = (
        models.load(directory, sharding=sharding),
        models.load(directory, sharding=everywhere),
    )
    assert_same(by_path, model_of(QWEN3))
    assert_same(replicated, model_of(QWEN3))
    assert {leaf.sharding for leaf in jax.tree.leaves(replicated.params)} == {everywhere}
    kernel = by_path.params["layer_1"]["mlp"]["gate"]["kernel"]
    assert kernel.sharding == over_width and kernel.addressable_shards[0].data.shape == (1, 12)
    assert by_path.params["layer_1"]["mlp"]["up"]["kernel"].sharding == everywhere
    models.save(by_path, directory.parent / "again")
    assert_same(models.load(directory.parent / "again"), model_of(QWEN3))


def test_old_and_new_spellings_are_the_same_decoder(tmp_path: pathlib.Path):
    models.save(model_of(SCALED), tmp_path / "hf")
    rope = json.loads((tmp_path / "hf" / "config.json").read_text())["rope_scaling"]
    new = {"rope_parameters": {**rope, "rope_theta": 123.0}, "dtype": "float32"}
    edit(tmp_path / "hf", rope_theta=..., rope_scaling=..., torch_dtype=..., **new)
    wanted = dataclasses.replace(SCALED, rope_theta=123.0)
    assert models.load(tmp_path / "hf").config == wanted
    rope["type"] = rope.pop("rope_type")
    edit(tmp_path / "hf", rope_theta=123, rope_scaling=rope, rope_parameters=...)
    assert models.load(tmp_path / "hf").config == wanted


def test_what_a_config_leaves_out_is_as_in_transformers(tmp_path: pathlib.Path):
    config = dataclasses.replace(LLAMA, head_width=2, num_kv_heads=4, tied_head=False)
    models.save(model_of(config), tmp_path / "hf")
    absent = ("head_dim", "num_key_value_heads", "tie_word_embeddings", "rope_theta")
    absent += ("rope_scaling", "rms_norm_eps", "architectures", "hidden_act")
    edit(tmp_path / "hf", **dict.fromkeys(absent, ...))
    assert_same(models.load(tmp_path / "hf"), model_of(config))
    edit(tmp_path / "hf", head_dim=None, rope_scaling={}, sliding_window=4096)
    assert_same(models.load(tmp_path / "hf"), model_of(config))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WRONG_CONFIGS = [
    ({"model_type": "mistral"}, "model_type='mistral': must be one of ['llama', 'qwen2', 'qwen3']"),
    ({"model_type": ...}, "model_type=None: must be one of"),
    ({"model_type": ["llama"]}, "model_type=['llama']: must be one of"),
    ({"architectures": ["Qwen3ForSequenceClassification"]}, "must be ['Qwen3ForCausalLM']"),
    ({"attention_bias": True}, "attention_bias=True: must be False"),
    ({"mlp_bias": True}, "mlp_bias=True: must be False"),
    ({"use_sliding_window": True}, "use_sliding_window=True: must be False"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types='sliding_attention'"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu': must be 'silu'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}: must be None"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: must be 1.0"),
    ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "rope_scaling.partial_rotary_factor=0.5"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type='yarn': must be 'default', 'linear' or"),
    ({"rope_scaling": {"type": "dynamic"}}, "rope_type='dynamic': must be"),
    ({"rope_scaling": LLAMA3}, "original_max_position_embeddings: is missing"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "model.rope_scaling.factor=0.0: must"),
    (
        {
            "rope_scaling": {
                **LLAMA3,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
            }
        },
        "model.rope_scaling.high_frequency_factor=1.0: must be above low_frequency_factor=1.0",
    ),
    ({"rope_scaling": "linear"}, "rope_scaling='linear': must be an object"),
    ({"rope_parameters": {"full_attention": {}}}, "must be one setting for all layers"),
    ({"hidden_size": ...}, "hidden_size: is missing"),
    ({"hidden_size": "8"}, "hidden_size='8': must be an integer"),
    ({"hidden_size": True}, "hidden_size=True: must be an integer"),
    ({"rms_norm_eps": "x"}, "rms_norm_eps='x': must be a number"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings=1: must be true or false"),
    ({"num_key_value_heads": 3}, "model.num_kv_heads=3: must divide model.num_heads=4"),
    ({"num_attention_heads": 0}, "model.num_heads=0: must be positive"),
]


@pytest.mark.parametrize(("keys", "words"), WRONG_CONFIGS, ids=[str(k) for k, _ in WRONG_CONFIGS])
def test_a_config_that_is_not_built_here_is_refused_by_key_and_value(directory, keys, words):
    edit(directory, **keys)
    sentence = refusal(directory)
    assert sentence.startswith(f"{directory / 'config.json'}: ") and words in sentence


def test_qwen2_has_its_biases_whatever_attention_bias_says(tmp_path: pathlib.Path):
    models.save(model_of(QWEN2), tmp_path / "hf")
    edit(tmp_path / "hf", attention_bias=True)
    assert_same(models.load(tmp_path / "hf"), model_of(QWEN2))


def remove(name: str) -> Any:
    return lambda header: header.pop(name)


def setting(name: str, **fields: Any) -> Any:
    return lambda header: header[name].update(fields)


def adding(name: str) -> Any:
    return lambda header: header.update({name: header["model.norm.weight"]})


NORM = "model.layers.1.self_attn.k_norm.weight"
WRONG_TENSORS = [
    (remove(NORM), f"tensor '{NORM}' is missing"),
    (remove("lm_head.weight"), "tensor 'lm_head.weight' is missing"),
    (setting(NORM, shape=[2, 2]), f"tensor '{NORM}' has shape (2, 2), must have (4,)"),
    (setting(NORM, dtype="I32"), f"tensor '{NORM}' has dtype I32, must be one of F32, F16, BF16"),
    (adding("model.layers.0.self_attn.q_proj.bias"), "q_proj.bias' has no place in the decoder"),
    (setting(NORM, data_offsets=[0, 10**6]), f"tensor '{NORM}' lies outside the file"),
    (setting(NORM, data_offsets=[16, 0]), f"tensor '{NORM}' lies outside the file"),
    (setting(NORM, shape="four"), "its header is malformed"),
    (setting(NORM, shape=[4.0]), "its header is malformed"),
    (setting(NORM, shape=[-4]), f"tensor '{NORM}' lies outside the file"),
]


@pytest.mark.parametrize(
    ("change", "words"), WRONG_TENSORS, ids=[words for _, words in WRONG_TENSORS]
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(directory, change, words):
    edit_header(directory / "model.safetensors", change)
    sentence = refusal(directory)
    assert sentence.startswith(str(directory)) and words in sentence


def test_values_that_are_not_finite_are_refused_by_name(directory):
    path = directory / "model.safetensors"
    tensors = tensors_of(directory)
    for value in (np.nan, np.inf):
        tensors[NORM][1] = value
        safetensors.numpy.save_file(tensors, path)
        assert refusal(directory) == f"{path}: tensor '{NORM}' has values that are not finite"


def test_a_tied_head_of_another_type_is_refused_by_name(directory):
    edit(directory, tie_word_embeddings=True)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        edit_header(directory / "model.safetensors", setting(name, dtype="I32"))
    assert "has dtype I32, must be one of" in refusal(directory)


def test_stored_rotary_frequencies_are_ignored(directory):
    change = adding("model.layers.0.self_attn.rotary_emb.inv_freq")
    edit_header(directory / "model.safetensors", change)
    assert_same(models.load(directory), model_of(QWEN3))


def test_a_tied_head_that_differs_from_the_embedding_is_refused(directory):
    edit(directory, tie_word_embeddings=True)
    assert "'lm_head.weight' differs from 'model.embed_tokens.weight'" in refusal(directory)
    edit_header(directory / "model.safetensors", remove("lm_head.weight"))
    assert models.load(directory).config.tied_head


def test_files_that_are_torn_missing_or_elsewhere_are_refused(directory, tmp_path: pathlib.Path):
    path = directory / "model.safetensors"
    content = path.read_bytes()
    for torn in (b"", content[:4], content[:40], b"\xff" * 16, content[:-1]):
        path.write_bytes(torn)
        assert f"{path}: is no whole safetensors file" in refusal(directory)
    path.unlink()
    assert "has neither model.safetensors nor model.safetensors.index.json" in refusal(directory)
    index = directory / "model.safetensors.index.json"
    for text, words in (
        ("{", "cannot be read"),
        ("[]", "must hold a JSON object, got list"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"x": "../x"}}', "names '../x', must be a file beside it"),
        ('{"weight_map": {"x": "x.safetensors"}}', "x.safetensors: is no whole safetensors file"),
    ):
        index.write_text(text)
        assert words in refusal(directory)
    path.with_name("x.safetensors").write_bytes(content)
    assert "has no tensor 'x', which model.safetensors.index.json says" in refusal(directory)
    (directory / "config.json").unlink()
    assert f"{directory / 'config.json'}: cannot be read" in refusal(directory)
    assert refusal(tmp_path / "none").startswith(f"{tmp_path / 'none'}: is not a directory")


def test_other_types_than_the_two_are_refused(directory, tmp_path: pathlib.Path):
    wanted = "dtype='float16': must be one of ['float32', 'bfloat16']"
    assert refusal(directory, dtype="float16") == wanted
    with pytest.raises(ValueError) as refused:
        models.save(model_of(LLAMA), tmp_path / "out", dtype="float16")
    assert str(refused.value) == wanted and not (tmp_path / "out").exists()


def test_half_precision_tensors_are_read(directory):
    path = directory / "model.safetensors"
    tensors = {name: array.astype(np.float16) for name, array in tensors_of(directory).items()}
    safetensors.numpy.save_file(tensors, path)
    wanted = jax.tree.map(lambda x: x.astype(jnp.float16), params_of(QWEN3))
    wanted = jax.tree.map(lambda x: x.astype(jnp.float32), wanted)
    assert_same(models.load(directory), models.Model(QWEN3, wanted))


def test_a_directory_that_has_something_is_not_written_over(directory):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(ValueError, match="is not empty, must be a new or an empty directory"):
        models.save(model_of(LLAMA), directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    with pytest.raises(ValueError, match="cannot be written"):
        models.save(model_of(LLAMA), directory / "config.json" / "below")


def test_a_directory_is_written_whole_or_not_at_all(tmp_path: pathlib.Path, monkeypatch):
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(shutil, "copyfile", fail)
    models.save(model_of(LLAMA), tmp_path / "like")
    (tmp_path / "like" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"out: cannot be written \(no space left\)"):
        models.save(model_of(LLAMA), tmp_path / "out", like=tmp_path / "like")
    assert [path.name for path in tmp_path.iterdir()] == ["like"]


def test_tokenizer_files_and_special_tokens_come_from_the_directory_that_it_is_like(
    tmp_path: pathlib.Path,
):
    like = tmp_path / "like"
    models.save(model_of(LLAMA), like)
    edit(like, eos_token_id=[3], bos_token_id=1, max_position_embeddings=77, transformers="x")
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md"):
        (like / name).write_text(name)
    models.save(model_of(QWEN3), tmp_path / "out", like=like, stop_ids=(5,))
    out = tmp_path / "out"
    names = {"tokenizer.json", "chat_template.jinja", "generation_config.json"}
    assert {path.name for path in out.iterdir()} == names | {"config.json", "model.safetensors"}
    assert all((out / name).read_text() == name for name in names)
    config = json.loads((out / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"]) == ([3], 1)
    assert config["max_position_embeddings"] == 77 and "transformers" not in config
    assert_same(models.load(out), model_of(QWEN3))
    larger = dataclasses.replace(LLAMA, vocab_size=8)
    with pytest.raises(ValueError, match="has vocab_size=7, must have the model's 8"):
        models.save(model_of(larger), tmp_path / "other", like=like)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qk_norm": True, "qkv_bias": True}, "model.qk_norm=True with model.qkv_bias=True: no"),
        ({"width": 10}, "model.width=10: transformers refuses a Llama"),
    ],
)
def test_a_decoder_of_no_family_is_not_written(changes, words, tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=words):
        models.save(model_of(dataclasses.replace(LLAMA, **changes)), tmp_path / "out")


def test_parameters_that_do_not_fit_are_not_written(tmp_path: pathlib.Path):
    for params, words in (
        ({**params_of(QWEN3), "head": jnp.zeros((7, 9))}, r"'head' has shape \(7, 9\), must have"),
        ({**params_of(QWEN3), "final_norm": {}}, r"'final_norm/scale' has shape None, must have"),
    ):
        with pytest.raises(ValueError, match=words):
            models.save(models.Model(QWEN3, params), tmp_path / "out")
