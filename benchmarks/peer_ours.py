"""Our side: asympo_jax's sampler, learner, and a whole update of both."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import protocol
from workload import MixedLengths, Workload


def prepare(task: str, work: Workload, options: dict[str, Any]) -> protocol.Prepared:
    """Sets one of the tasks up; samplers work on a device for each core, as peers on threads."""
    if task in ("sampler", "mixed", "end_to_end"):
        count = f"--xla_force_host_platform_device_count={os.cpu_count()}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    import jax

    from asympo_jax import learning, models, sampling  # noqa: F401

    jax.numpy.zeros(1).block_until_ready()
    imported_bytes = protocol.peak_bytes()
    make = {
        "sampler": _sampler,
        "mixed": _mixed,
        "learner": _learner,
        "learner_full_logits": _full_logits_learner,
        "end_to_end": _end_to_end,
    }[task]
    model = models.load(work.model_dir, "float32")
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    run, facts = make(model.config, model.params, work, options)
    return protocol.Prepared(run, num_parameters, imported_bytes, facts)


Run = tuple[Callable[[int], float], dict[str, Any]]


def _engine(work: Workload, **others: Any) -> Any:
    """The shapes of the decode engine."""
    from asympo_jax.sampling import EngineConfig

    fields = {
        "num_prompts": work.num_prompts,
        "group_size": work.group_size,
        "max_prompt_tokens": work.prompt_tokens,
        "max_response_tokens": work.response_tokens,
        "segment": 0,
        "stop_ids": (),
        "record_logp": False,
    }
    return EngineConfig(**fields | others)


def _everywhere(params: Any) -> Any:
    """The parameters on all devices."""
    import jax

    from asympo_jax.sampling import on_devices

    return on_devices(params, jax.local_device_count())


def _keys(number: int, num_prompts: int) -> list[tuple[int, int]]:
    """A key for each prompt, other ones at each repeat."""
    return [(number, p) for p in range(num_prompts)]


def _sampler(model: Any, params: Any, work: Workload, options: dict[str, Any]) -> Run:
    """All prompts at once."""
    from asympo_jax.sampling import draw_params, generate

    engine, prompts = _engine(work, **options), work.prompt_PS().tolist()
    params = _everywhere(params)

    def run(number: int) -> float:
        keys = _keys(number, work.num_prompts)
        out = generate(model, engine, params, prompts, keys, draw_params())
        tokens = int(out.length_PG.sum())
        assert tokens == work.num_sequences * work.response_tokens, tokens
        return tokens

    return run, {}


def _mixed(model: Any, params: Any, work: Workload, options: dict[str, Any]) -> Run:
    """More prompts than are worked at once, and few long responses."""
    from asympo_jax.sampling import draw_params, generate

    mixed = MixedLengths(**options.pop("mixed"))
    limit_PG = mixed.limit_PG(work.group_size)
    engine = _engine(
        work,
        num_prompts=mixed.num_prompts,
        lanes=mixed.lanes,
        max_response_tokens=mixed.long,
        **options,
    )
    prompts = mixed.prompt_PS(work).tolist()
    params = _everywhere(params)

    def run(number: int) -> float:
        keys = _keys(number, mixed.num_prompts)
        out = generate(model, engine, params, prompts, keys, draw_params(), limit_PG=limit_PG)
        assert (out.length_PG == limit_PG).all()
        return int(limit_PG.sum())

    return run, {}


def _step(model: Any, work: Workload, options: dict[str, Any]) -> tuple[Any, Any]:
    """The jitted step of an objective, and its optimiser."""
    from asympo_jax import objectives
    from asympo_jax.learning import OptimizerConfig, StepConfig, make_optimizer, make_train_step

    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6))
    config = StepConfig(
        group_size=work.group_size,
        temperature=work.temperature,
        center="mean",
        scale="std",
        micro_batch=options.get("micro_batch", 8),
        logp_chunk=options.get("logp_chunk", 0),
        max_prompt_tokens=work.prompt_tokens,
        max_response_tokens=work.response_tokens,
    )
    objective = objectives.make(options.get("objective", "asympo"))
    return make_train_step(model, objective, optimizer, config), optimizer


def _batch(work: Workload, response_BT: np.ndarray, reward_PG: np.ndarray, logp: Any) -> Any:
    """Responses and rewards as the learner gets them."""
    from asympo_jax.learning import make_batch
    from asympo_jax.types import Group, StopReason

    shape = (work.num_prompts, work.group_size, work.response_tokens)
    response_PGT = response_BT.reshape(shape)
    length_G = np.full(work.group_size, work.response_tokens, np.int32)
    stop_G = np.full(work.group_size, StopReason.LENGTH, np.int8)
    groups = [
        Group(
            ticket=p,
            version=0,
            prompt_S=prompt_S,
            response_GT=response_PGT[p],
            length_G=length_G,
            stop_G=stop_G,
            reward_G=reward_PG[p],
            behaviour_logp_GT=None if logp is None else logp[p],
        )
        for p, prompt_S in enumerate(work.prompt_PS())
    ]
    return make_batch(groups, work.group_size, work.num_positions)


def _learner(model: Any, params: Any, work: Workload, options: dict[str, Any]) -> Run:
    """Forward, backward and Adam, with our clip and all our diagnostics."""
    import jax

    from asympo_jax.learning import state_from_params

    facts = _check(model, params, work)
    step, optimizer = _step(model, work, options)
    batch = _batch(work, work.response_BT(), work.reward_PG(), None)
    box = [state_from_params(params, optimizer)]

    def run(number: int) -> float:
        del number
        box[0], metrics = step(box[0], batch)
        jax.block_until_ready((box[0], metrics))
        return work.num_sequences * work.num_positions

    return run, facts


def _full_logits_learner(model: Any, params: Any, work: Workload, options: dict[str, Any]) -> Run:
    """The same update as it is mostly written: the logits of all responses, then a log-softmax."""
    import jax
    import jax.numpy as jnp
    import optax

    from asympo_jax import models
    from asympo_jax.learning import OptimizerConfig, make_optimizer, state_from_params

    del options
    facts = _check(model, params, work)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6))
    tokens_BT = np.concatenate(
        [np.repeat(work.prompt_PS(), work.group_size, axis=0), work.response_BT()], axis=1
    )
    advantage_B = work.advantage_B()

    def loss(params: Any) -> Any:
        hidden_BTD, _ = models.hidden_states(model, params, jnp.asarray(tokens_BT))
        hidden_BTD = hidden_BTD[:, work.prompt_tokens - 1 : -1]
        logp_BTV = jax.nn.log_softmax(models.head_logits(model, params, hidden_BTD))
        targets_BT1 = tokens_BT[:, work.prompt_tokens :, None]
        logp_BT = jnp.take_along_axis(logp_BTV, targets_BT1, axis=2)[..., 0]
        return -(logp_BT.mean(axis=1) * advantage_B).mean()

    @jax.jit
    def step(state: Any) -> Any:
        gradient = jax.grad(loss)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, params=params, opt_state=opt_state)

    box = [state_from_params(params, optimizer)]

    def run(number: int) -> float:
        del number
        box[0] = jax.block_until_ready(step(box[0]))
        return work.num_sequences * work.num_positions

    return run, facts


def _check(model: Any, params: Any, work: Workload) -> dict[str, float]:
    """Mean log-prob of the first response, which must be the same on every side."""
    import jax.numpy as jnp

    from asympo_jax import models

    tokens_1T = np.concatenate([work.prompt_PS()[:1], work.response_BT()[:1]], axis=1)
    hidden, _ = models.hidden_states(model, params, jnp.asarray(tokens_1T))
    head = models.head_matrix(model, params)
    logp_1T, _ = models.token_logp(hidden, head, jnp.asarray(tokens_1T))
    return {"check": float(logp_1T[0, work.prompt_tokens :].mean())}


def _end_to_end(model: Any, params: Any, work: Workload, options: dict[str, Any]) -> Run:
    """Sample, grade, train: one update of the objective, synchronously."""
    import jax

    from asympo_jax.learning import state_from_params
    from asympo_jax.sampling import draw_params, generate

    records = options.get("objective", "asympo") == "grpo"
    engine = _engine(work, record_logp=records)
    step, optimizer = _step(model, work, options)
    prompts = work.prompt_PS().tolist()
    box = [state_from_params(params, optimizer)]

    def run(number: int) -> float:
        keys = _keys(number, work.num_prompts)
        policy = _everywhere(box[0].policy)
        out = generate(model, engine, policy, prompts, keys, draw_params())
        reward_PG = (out.token_PGT % 2 == 0).mean(axis=2, dtype=np.float32)
        logp_PGT = out.logp_PGT if records else None
        batch = _batch(work, out.token_PGT, reward_PG, logp_PGT)
        box[0], metrics = step(box[0], batch)
        _ = {name: float(value) for name, value in metrics.items()}
        jax.block_until_ready(box[0])
        return work.num_sequences * work.num_positions

    return run, {}


if __name__ == "__main__":
    protocol.serve(prepare, ("jax", "jaxlib", "flax", "optax"))
