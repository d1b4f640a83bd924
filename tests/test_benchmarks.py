"""The comparisons of benchmarks/: their counts, their statistics, and how a side speaks.

What the scripts measure is never asserted.
"""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from asympo_jax import models
from asympo_jax.models import counts as of_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = ["sampler", "learner", "end_to_end", "memory", "scaling", "soak"]


@pytest.fixture(scope="module")
def load():
    """A module of benchmarks/ by its name; they find each other as scripts do."""
    find_each_other()
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


def find_each_other() -> None:
    """Lets a process that runs a script find the others."""
    sys.path.insert(0, str(BENCHMARKS))


def test_flops_are_those_counted_by_hand(load):
    counts, workload = load("counts"), load("workload")
    work = workload.Workload(
        vocab_size=10, width=2, num_layers=3, num_heads=2, num_kv_heads=1, head_width=4,
        mlp_width=5, num_prompts=1, group_size=1, prompt_tokens=1, response_tokens=2,
    )  # fmt: skip
    model = load("write_model").decoder(work)
    # A token of a layer: q 2·8, k and v 2·4 each, out 8·2, three of 2·5; twice that in FLOPs.
    assert of_model.layer_flops(model) == 3 * 2 * (16 + 8 + 8 + 16 + 30)
    # Position t looks at t + 1 positions: scores and sums of 8 numbers each, 3 layers. The third
    # predicts nothing.
    attention = 3 * (2 * 2 * 8) * (1 + 2)
    alone = 2 * of_model.layer_flops(model) + attention + 2 * (2 * 2 * 10)
    assert counts.forward(work).flops == alone
    assert counts.update(work).flops == 3 * alone
    # A second response shares the prompt, and the logits of its first token with it.
    pair = dataclasses.replace(work, group_size=2)
    second = of_model.layer_flops(model) + 3 * (2 * 2 * 8) * 2 + 2 * 2 * 10
    assert counts.forward(pair).flops == alone + second


def test_xla_counts_the_flops_of_a_forward_pass_alike(load):
    counts, workload = load("counts"), load("workload")
    work = workload.Workload(num_prompts=1, group_size=1, prompt_tokens=1, response_tokens=32)
    config = load("write_model").decoder(work)
    params = jax.eval_shape(lambda: models.init_params(config, jax.random.key(0)))
    tokens_BT = jax.ShapeDtypeStruct((1, work.response_tokens), jnp.int32)

    def forward(params, tokens_BT):
        hidden_BTD, _ = models.hidden_states(config, params, tokens_BT)
        return models.head_logits(config, params, hidden_BTD)

    cost = jax.jit(forward).lower(params, tokens_BT).compile().cost_analysis()
    assert cost is not None
    # XLA adds norms, softmax and the masked half of attention.
    assert 1.0 <= cost["flops"] / counts.forward(work).flops < 1.1


def test_a_decode_step_reads_each_prompt_once_and_each_response_once(load):
    counts, work = load("counts"), load("workload").Workload()
    position = 2 * work.num_layers * work.num_kv_heads * work.head_width * 4
    by_one_token = counts.decode_step(work, 11).bytes - counts.decode_step(work, 10).bytes
    assert by_one_token == work.num_sequences * position
    longer = dataclasses.replace(work, prompt_tokens=work.prompt_tokens + 1)
    by_prompt = counts.decode_step(longer, 10).bytes - counts.decode_step(work, 10).bytes
    assert by_prompt == work.num_prompts * position
    first = counts.decode_step(work, 0).bytes
    assert first > 4 * of_model.num_parameters(load("write_model").decoder(work))


def test_ratios_are_taken_within_rounds(load):
    tables, paired = load("tables"), load("paired")
    # The machine slows down threefold: the medians are of other rounds, the ratio is not.
    ours = paired.Measured(seconds=[1.0, 1.0, 3.0, 3.0, 3.0], tokens=10)
    other = paired.Measured(seconds=[2.0, 2.0, 6.0, 6.0, 6.0], tokens=10)
    assert tables.ratios(ours, other, alone=False) == (2.0, 2.0, 2.0)
    twice_the_tokens = dataclasses.replace(other, tokens=20)
    assert tables.ratios(ours, twice_the_tokens, alone=False) == (1.0, 1.0, 1.0)
    assert tables.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert tables.quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_sides_that_compute_something_else_are_not_compared(load):
    tables, paired = load("tables"), load("paired")

    def side(parameters, check):
        ready = {"num_parameters": parameters, "facts": {"check": check}}
        return paired.Measured(ready=ready)

    tables.check_same_model({"a": side(5, -4.0), "b": side(5, -4.0001)})
    with pytest.raises(AssertionError, match="other sizes"):
        tables.check_same_model({"a": side(5, -4.0), "b": side(6, -4.0)})
    with pytest.raises(AssertionError, match="something else"):
        tables.check_same_model({"a": side(5, -4.0), "b": side(5, -4.1)})


def test_few_responses_are_long_and_every_batch_is_as_long_as_its_longest(load):
    workload = load("workload")
    mixed, work = workload.MixedLengths(), workload.Workload()
    limit_PG = mixed.limit_PG(work.group_size)
    assert limit_PG.shape == (80, 8)
    assert (limit_PG == 96).sum() == 6
    assert (limit_PG == 12).sum() == 634
    batches = mixed.batches(work)
    assert len(batches) == 10
    assert sum(asked for _, _, asked in batches) == limit_PG.sum()
    assert [longest for _, longest, _ in batches] == [
        int(limit_PG[p : p + 8].max()) for p in range(0, 80, 8)
    ]


def test_a_power_law_has_its_exponent(load):
    scaling = load("scaling")
    sizes = [8, 16, 32, 64, 128]
    assert scaling.exponent(sizes, [3.0 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_a_missing_environment_is_one_sentence_that_says_what_makes_it(load, tmp_path, monkeypatch):
    paired = load("paired")
    monkeypatch.setattr(paired, "VENVS", tmp_path)
    with pytest.raises(ValueError, match=r"environment\.sh tunix` makes"):
        paired.peers_of("tunix", ("tunix",))
    with pytest.raises(ValueError, match="must be of tunix"):
        paired.peers_of("vllm", ("tunix",))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_what_it_does(name, runner):
    done = runner.finish(BENCHMARKS, [sys.executable, "-m", name, "--help"], find_each_other)
    assert done.code == 0, done.stderr
    assert f"python benchmarks/{name}.py" in done.stdout


def test_a_side_that_cannot_go_on_is_reported_and_the_others_are_measured(load, tmp_path):
    paired, workload = load("paired"), load("workload")
    plan = paired.Plan(repeats=2, warmups=1, alone=False, deadline_s=300.0, logs=tmp_path)
    sides = [
        paired.Side("good", "ceilings", "matmul", {"divided_by": 64}),
        paired.Side("bad", "ceilings", "nothing that there is"),
    ]
    measured = paired.measure(sides, workload.Workload(), plan)
    assert measured["good"].failure is None
    assert len(measured["good"].seconds) == 2
    assert measured["good"].peak_bytes > measured["good"].ready["imported_bytes"] > 0
    assert measured["bad"].failure is not None
    assert "KeyError" in measured["bad"].failure


@pytest.mark.parametrize("script", ["sampler", "sampler --mixed", "learner", "end_to_end"])
def test_ours_does_a_tiny_run_of_every_task(script, runner, tmp_path):
    name, *flags = script.split()
    command = [sys.executable, "-m", name, *flags, "--tiny", "--repeats=1", f"--logs={tmp_path}"]
    done = runner.finish(tmp_path, command, find_each_other)
    assert done.code == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    side = record["sides"]["ours"]
    assert side["failure"] is None
    assert side["num_parameters"] == 17_632
    positions = 4 * (4 + 6)
    asked = {"sampler": 4 * 6, "sampler --mixed": 11 * 2 + 6, "learner": positions}
    assert side["tokens"] == asked.get(script, positions)
