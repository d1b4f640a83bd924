"""Tunix: its vanilla sampler and its GRPO learner, jitted, on Tunix's own Qwen3."""

from collections.abc import Callable
from typing import Any

import numpy as np
import protocol
from workload import MixedLengths, Workload

Run = tuple[Callable[[int], float], dict[str, Any]]


def prepare(task: str, work: Workload, options: dict[str, Any]) -> protocol.Prepared:
    """Sets one of the tasks up."""
    import jax
    from flax import nnx
    from tunix.models.qwen3 import model as qwen3
    from tunix.models.qwen3 import params as qwen3_params

    jax.numpy.zeros(1).block_until_ready()
    imported_bytes = protocol.peak_bytes()
    config = qwen3.ModelConfig(
        num_layers=work.num_layers,
        vocab_size=work.vocab_size,
        embed_dim=work.width,
        hidden_dim=work.mlp_width,
        num_heads=work.num_heads,
        head_dim=work.head_width,
        num_kv_heads=work.num_kv_heads,
        rope_theta=int(work.rope_theta),
        norm_eps=work.norm_epsilon,
        use_tied_embedding=True,
    )
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=auto)
    model = qwen3_params.create_model_from_safe_tensors(
        work.model_dir, config, mesh, jax.numpy.float32
    )
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    make = {
        "sampler": _sampler,
        "mixed": _mixed,
        "learner": _learner,
        "end_to_end": _end_to_end,
    }[task]
    run, facts = make(model, mesh, work, options)
    return protocol.Prepared(run, num_parameters, imported_bytes, facts)


class NumberTokenizer:
    """Texts of token ids, `"5 17 3"`, with an end that the model cannot draw."""

    def __init__(self, vocab_size: int):
        self._vocab_size = vocab_size

    def encode(self, text: str, **_: Any) -> list[int]:
        """Ids of a text."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_: Any) -> str:
        """Text of ids."""
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        """None is put before a prompt."""
        return 0

    def eos_id(self) -> int:
        """Beyond the vocabulary."""
        return self._vocab_size

    def pad_id(self) -> int:
        """In no prompt."""
        return 0


def _texts(prompt_PS: np.ndarray, repeats: int) -> list[str]:
    """Prompts as texts, each as often as it is answered."""
    return [" ".join(map(str, prompt)) for prompt in prompt_PS.tolist() for _ in range(repeats)]


def _generate(model: Any, work: Workload, cache_size: int) -> Callable[[np.ndarray, int, int], int]:
    """The sampler as a function of prompts, length and seed; returns how many tokens it drew."""
    from tunix.generate.sampler import CacheConfig, Sampler

    sampler = Sampler(
        model,
        NumberTokenizer(work.vocab_size),
        CacheConfig(cache_size, work.num_layers, work.num_kv_heads, work.head_width),
    )

    def generate(prompt_PS: np.ndarray, length: int, seed: int) -> int:
        out = sampler(
            _texts(prompt_PS, work.group_size),
            max_generation_steps=length,
            max_prompt_length=work.prompt_tokens,
            temperature=work.temperature,
            top_p=1.0,
            top_k=None,
            seed=seed,
        )
        return sum(len(tokens) for tokens in out.tokens)

    return generate


def _sampler(model: Any, mesh: Any, work: Workload, options: dict[str, Any]) -> Run:
    """All prompts in one batch."""
    del mesh, options
    generate = _generate(model, work, work.num_positions)

    def run(number: int) -> float:
        tokens = generate(work.prompt_PS(), work.response_tokens, number)
        assert tokens == work.num_sequences * work.response_tokens, tokens
        return tokens

    return run, {}


def _mixed(model: Any, mesh: Any, work: Workload, options: dict[str, Any]) -> Run:
    """Batch after batch, each as long as its longest; only what was asked for counts."""
    del mesh
    mixed = MixedLengths(**options["mixed"])
    batches = mixed.batches(work)
    # A cache of its own for each length: a short batch need not attend over a long one's room.
    generate = {
        length: _generate(model, work, work.prompt_tokens + length)
        for length in {longest for _, longest, _ in batches}
    }

    def run(number: int) -> float:
        for prompt_PS, longest, _ in batches:
            generate[longest](prompt_PS, longest, number)
        return sum(asked for _, _, asked in batches)

    return run, {}


def _learner_parts(model: Any, mesh: Any, work: Workload, options: dict[str, Any]) -> Any:
    """Tunix's cluster of roles, all on one device and sharing parameters, and its GRPO learner."""
    import optax
    from tunix.rl import rl_cluster
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rollout.base_rollout import RolloutConfig

    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    # In prompts, of which each brings its group.
    micro_prompts = options.get("micro_batch", work.num_sequences) // work.group_size
    config = rl_cluster.ClusterConfig(
        role_to_mesh={role: mesh for role in roles},
        rollout_engine="vanilla",
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adam(1e-6),
            eval_every_n_steps=10**9,
            max_steps=10**9,
            mini_batch_size=work.num_prompts,
            train_micro_batch_size=micro_prompts,
            rollout_micro_batch_size=work.num_prompts,
            compute_logps_micro_batch_size=work.num_prompts,
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=work.response_tokens,
            max_prompt_length=work.prompt_tokens,
            kv_cache_size=work.num_positions,
            temperature=work.temperature,
            top_p=1.0,
            top_k=None,
        ),
    )
    tokenizer = NumberTokenizer(work.vocab_size)
    cluster = rl_cluster.RLCluster(actor=model, tokenizer=tokenizer, cluster_config=config)

    def even_share(prompts: Any, completions: list[str], **_: Any) -> list[float]:
        del prompts
        ids = [tokenizer.encode(text) for text in completions]
        return [float(np.mean(np.array(one) % 2 == 0)) for one in ids]

    algorithm = GRPOConfig(num_generations=work.group_size, beta=0.0)
    learner = GRPOLearner(rl_cluster=cluster, algo_config=algorithm, reward_fns=even_share)
    return cluster, learner, micro_prompts * work.group_size


def _learner(model: Any, mesh: Any, work: Workload, options: dict[str, Any]) -> Run:
    """The actor's update on given responses."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from tunix.rl import common
    from tunix.rl.grpo.grpo_learner import TrainExample

    cluster, _, micro_batch = _learner_parts(model, mesh, work, options)
    prompt_BS = np.repeat(work.prompt_PS(), work.group_size, axis=0)
    response_BT, advantage_B = work.response_BT(), work.advantage_B()
    graph, state = nnx.split(model)
    check = common.compute_per_token_logps(
        graph, state, jnp.asarray(prompt_BS[:1]), jnp.asarray(response_BT[:1]), 0, work.vocab_size
    )

    def example(part: slice) -> Any:
        return TrainExample(
            prompt_ids=jnp.asarray(prompt_BS[part]),
            prompt_mask=jnp.ones_like(prompt_BS[part], bool),
            completion_ids=jnp.asarray(response_BT[part]),
            completion_mask=jnp.ones_like(response_BT[part], bool),
            advantages=jnp.asarray(advantage_B[part]),
            ref_per_token_logps=None,
            old_per_token_logps=None,
        )

    starts = range(0, work.num_sequences, micro_batch)
    examples = [example(slice(start, start + micro_batch)) for start in starts]

    def run(number: int) -> float:
        del number
        cluster.update_actor(examples, None)
        jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))
        return work.num_sequences * work.num_positions

    return run, {"check": float(check.mean())}


def _end_to_end(model: Any, mesh: Any, work: Workload, options: dict[str, Any]) -> Run:
    """A global step of its GRPO learner: sample, grade, train."""
    import jax
    from flax import nnx

    cluster, learner, _ = _learner_parts(model, mesh, work, options)
    prompts = np.array(_texts(work.prompt_PS(), 1))
    # `train` goes on until it has no more prompts, and then closes what it has opened: what is
    # repeated is one turn of its loop.
    cluster.close = lambda: None

    def run(number: int) -> float:
        learner.rl_cluster.cluster_config.rollout_config.seed = number
        learner.train([{"prompts": prompts}])
        jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))
        return work.num_sequences * work.num_positions

    return run, {}


if __name__ == "__main__":
    protocol.serve(prepare, ("google-tunix", "jax", "flax", "optax"))
