"""Responses from prompts."""

from asympo_jax.sampling.draw import DrawParams, draw, draw_params, uniforms
from asympo_jax.sampling.engine import EngineConfig, Responses, generate, response_keys
from asympo_jax.sampling.evaluation import Accuracy, Answers, Evaluator

__all__ = [
    "Accuracy",
    "Answers",
    "DrawParams",
    "EngineConfig",
    "Evaluator",
    "Responses",
    "draw",
    "draw_params",
    "generate",
    "response_keys",
    "uniforms",
]
