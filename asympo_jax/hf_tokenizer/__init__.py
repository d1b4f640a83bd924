"""Tokenizers and chat templates of Hugging Face directories."""

from asympo_jax.hf_tokenizer.tokenizer import HfTokenizer

__all__ = ["HfTokenizer"]
