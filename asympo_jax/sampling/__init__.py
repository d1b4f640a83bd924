"""Responses from prompts."""

from asympo_jax.sampling.draw import DrawParams, draw, draw_params, uniforms
from asympo_jax.sampling.engine import EngineConfig, Responses, generate, response_keys
from asympo_jax.sampling.evaluation import Accuracy, Answers, Evaluator
from asympo_jax.sampling.lanes import on_devices

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
    "on_devices",
    "response_keys",
    "uniforms",
]
