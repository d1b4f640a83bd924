"""Responses from prompts."""

from asympo_jax.sampling.copies import make_place, on_devices
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
    "make_place",
    "on_devices",
    "response_keys",
    "uniforms",
]
