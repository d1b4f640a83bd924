"""Our decoder against Hugging Face's: stored references everywhere, live ones where torch is."""

import pathlib
from typing import Any

import numpy as np
import parity_cases
import pytest
from parity_cases import CASES

from asympo_jax import models

STORED = pathlib.Path(__file__).parent / "data" / "parity"
# Of logits around 3; both sides are that far from float64.
ATOL = 1e-5

every_case = pytest.mark.parametrize("name", CASES)


@every_case
def test_stored_directories_give_the_logits_and_greedy_tokens_of_transformers(name: str):
    model = models.load(STORED / name)
    reference = np.load(STORED / name / "reference.npz")
    assert_agrees(model, reference["logits"], reference["greedy"])


def test_the_stored_references_are_small_and_of_every_case():
    files = [path for path in STORED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    assert {path.name for path in STORED.iterdir()} == set(CASES)


# Of torch and transformers, on which nothing here depends.
ignore_warnings = pytest.mark.filterwarnings("ignore")


@ignore_warnings
@every_case
@pytest.mark.usefixtures("needs_torch")
def test_directories_of_transformers_are_read_as_it_reads_them(name: str, tmp_path: pathlib.Path):
    case = CASES[name]
    parity_cases.write_oracle(case, parity_cases.make_oracle(case, seed=100), tmp_path)
    oracle = parity_cases.load_oracle(tmp_path)
    greedy, lead = parity_cases.oracle_greedy(oracle)
    assert lead > 10 * ATOL, "rounding would decide a token, take another seed"
    assert_agrees(models.load(tmp_path), parity_cases.oracle_logits(oracle), greedy)


@ignore_warnings
@every_case
@pytest.mark.parametrize("max_file_bytes", [10**9, 4000], ids=["one_file", "several"])
@pytest.mark.usefixtures("needs_torch")
def test_transformers_reads_what_is_written(name: str, max_file_bytes: int, tmp_path: pathlib.Path):
    model = models.load(STORED / name)
    models.save(model, tmp_path / "out", max_file_bytes=max_file_bytes)
    assert ((tmp_path / "out" / "model.safetensors").exists()) == (max_file_bytes > 4000)
    logits = parity_cases.oracle_logits(parity_cases.load_oracle(tmp_path / "out"))
    np.testing.assert_allclose(parity_cases.our_logits(model), logits, atol=ATOL, rtol=0)


@ignore_warnings
@pytest.mark.usefixtures("needs_torch")
def test_transformers_takes_special_tokens_and_dtype_from_what_is_written(tmp_path: pathlib.Path):
    import transformers  # pyright: ignore[reportMissingImports]

    model = models.load(STORED / "llama3_untied")
    models.save(model, tmp_path / "out", stop_ids=(5, 6), dtype="bfloat16")
    config: Any = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.bos_token_id, config.eos_token_id) == (None, [5, 6])
    assert str(config.dtype) == "torch.bfloat16"
    assert config.max_position_embeddings == 4 * 32


def assert_agrees(model: models.Model, logits: np.ndarray, greedy: np.ndarray) -> None:
    """Whether our logits and greedy tokens are these."""
    ours = parity_cases.our_logits(model)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, logits, atol=ATOL, rtol=0)
    np.testing.assert_array_equal(parity_cases.our_greedy(model), greedy)
    assert np.abs(logits).max() > 0.5, "parity of zeros shows nothing"
