"""The simulated pipeline of benchmarks/: what must hold of any pipeline, and what one can count."""

import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from asympo_jax.runtime.tickets import Pacing

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LEASE_S, TRAIN_S, PUBLISH_S = 0.2, 0.3, 0.05


@pytest.fixture(scope="module")
def sim():
    """The module."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("pipeline_sim")
    sys.path.remove(str(BENCHMARKS))


def simulated(sim, order: Any = "ticket", lag=2, samplers=1, cores=1, seed=0, leases=2, **more):
    """A simulation of 24 updates of so many leases, at its end, and what it came to."""
    pacing = Pacing(order, lag, 24, leases, 1)
    fields = {"capacity": max(1, lag) * leases, "num_samplers": samplers, "sampler_cores": cores}
    setup = sim.Setup(pacing, **{**fields, **more})
    run = sim.Simulation(setup, sim.Times([LEASE_S], [TRAIN_S], [PUBLISH_S], [1.0]), seed)
    return run, run.run()


def test_without_lag_an_update_takes_its_parts_one_after_the_other(sim):
    for order, samplers in itertools.product(("ticket", "completion"), (1, 2)):
        _, alone = simulated(sim, order, 0, samplers)
        assert alone.update_s == pytest.approx(2 * LEASE_S + TRAIN_S + PUBLISH_S)
        assert alone.learner_idle == pytest.approx((2 * LEASE_S + PUBLISH_S) / alone.update_s)
    _, both = simulated(sim, lag=0, samplers=2, cores=2)
    assert both.update_s == pytest.approx(LEASE_S + TRAIN_S + PUBLISH_S)


def test_with_lag_an_update_takes_what_its_slower_side_takes(sim):
    for order in ("ticket", "completion"):
        _, sampling = simulated(sim, order, 2)
        assert sampling.update_s == pytest.approx(2 * LEASE_S)
        assert sampling.ideal_fraction == pytest.approx(1.0)
        _, training = simulated(sim, order, 2, samplers=2, cores=2)
        assert training.update_s == pytest.approx(TRAIN_S)
        assert training.sampler_idle == pytest.approx(1 - LEASE_S / TRAIN_S, abs=0.02)


def test_the_bound_on_lag_is_kept_and_used(sim):
    for order, lag in itertools.product(("ticket", "completion"), (0, 1, 4)):
        run, _ = simulated(sim, order, lag, samplers=2, cores=2)
        assert max(run.lags) <= lag
        assert order == "completion" or max(run.lags) == lag
        assert len(run.lags) == 24 * 2  # every ticket once


def test_where_a_lease_is_long_the_lag_bounds_the_speed(sim):
    # Samplers enough for any number of leases: an update comes lag + 1 times in a round of a
    # lease, its training and its snapshot.
    for lag in (1, 3):
        _, found = simulated(sim, "ticket", lag, samplers=8, cores=8, capacity=8)
        around_s = LEASE_S + TRAIN_S + PUBLISH_S
        assert found.update_s == pytest.approx(max(TRAIN_S, around_s / (lag + 1)), rel=0.05)


def test_an_evaluator_takes_its_share_of_the_samplers_cores(sim):
    _, without = simulated(sim, lag=2)
    _, evaluated = simulated(sim, lag=2, evaluate_every=6)
    assert evaluated.update_s == pytest.approx(without.update_s + 1.0 / 6, rel=0.15)


def test_one_seed_gives_one_run(sim):
    setup = sim.Setup(Pacing("completion", 2, 24, 2, 1), 4, 2, 1)
    times = sim.Times([0.1, 0.3], [0.2, 0.4], [0.05])
    first, again, other = (sim.Simulation(setup, times, seed).run() for seed in (3, 3, 4))
    assert first == again != other


def test_a_run_is_measured_by_its_own_files(sim, tmp_path):
    # 50 updates of 0.4 s; two samplers that share a core, each with a lease of 0.4 s an update.
    lines, spans = [], []
    for update in range(1, 51):
        end = 100 + 0.4 * update
        lines.append({
            "update": update, "time/update_s": 0.4, "idle/learner": 0.25, "idle/sampler": 0.0,
            "pipeline/ideal_fraction": 1.0, "compile/count": 3 if update > 20 else 2,
        })  # fmt: skip
        leases = [[0, 2 * update, 0, end - 0.4, end], [1, 2 * update + 1, 0, end - 0.4, end]]
        spans.append({
            "update": update, "wait": [end - 0.4, end - 0.3], "train": [end - 0.3, end],
            "publish": [end, end + 0.05], "leases": leases,
        })  # fmt: skip
    for name, rows in (("metrics", lines), ("timeline", spans)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    times, found, windows = sim.measured(tmp_path)
    assert found == sim.Outcome(0.4, 0.25, 0.0, 1.0)
    # Alone on the core a lease would take half of that.
    assert times.lease == pytest.approx([0.2] * len(times.lease))
    assert times.train == pytest.approx([0.3] * len(times.train)) and times.publish
    # The window in which something was compiled is left out.
    assert windows == [49] and len(times.train) == 20
