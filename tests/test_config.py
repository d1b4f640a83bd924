"""Configs: what is wrong is refused in one sentence before any device is touched."""

import json
import pathlib
import re
import runpy
import sys

import ml_collections
import pytest

from asympo_jax.config import default_config, from_plain, read_json, resolve
from asympo_jax.sweep_config import cases


def with_fields(**fields):
    """The default config with fields set; double underscores stand for dots."""
    config = default_config()
    for name, value in fields.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


WRONG = [
    (dict(objective__name="ppo2"), ["objective.name='ppo2'", "asympo", "grpo"]),
    (dict(objective__name="asympo", objective__alpha=0.5), ["objective.alpha", "asympo", "floor"]),
    (dict(objective__name="no_such:thing"), ["objective.name='no_such:thing'", "imported"]),
    (dict(group_size=1), ["group_size=1", "asympo", "at least 2"]),
    (dict(group_size=0), ["group_size=0", "at least 1"]),
    (dict(num_updates=0), ["num_updates=0", "at least 1"]),
    (dict(lag=-1), ["lag=-1", "0"]),
    (dict(lag=16, queue__capacity=31), ["queue.capacity=31", "at least 32"]),
    (dict(order="random"), ["order='random'", "ticket", "completion"]),
    (dict(order="completion", runtime__name="sync"), ["order='completion'", "sync"]),
    (dict(runtime__name="slurm"), ["runtime.name='slurm'", "local", "ray", "sync"]),
    (
        dict(runtime__name="ray", sampler__platform="cuda", sampler__visible_devices="0"),
        ["sampler.visible_devices='0' with runtime.name='ray'", "must be empty"],
    ),
    (dict(learner__micro_batch=7), ["learner.micro_batch=7", "256"]),
    (dict(learner__fsdp=0), ["learner.fsdp=0", "at least 1"]),
    (dict(learner__data=3), ["learner.data=3", "learner.fsdp=1", "8 rows", "learner.micro_batch"]),
    (dict(learner__data=8, learner__fsdp=8), ["learner.fsdp=8", "product 64 must divide"]),
    (dict(sampler__prompts_per_lease=5), ["sampler.prompts_per_lease=5", "32"]),
    (dict(sampler__temperature=0.0), ["sampler.temperature=0.0", "from 0.01", "greedy"]),
    (dict(sampler__temperature=float("nan")), ["sampler.temperature=nan"]),
    (dict(sampler__temperature=1e-30), ["sampler.temperature=1e-30", "from 0.01"]),
    (dict(sampler__top_p=0.0), ["sampler.top_p=0.0"]),
    (dict(sampler__top_k=2**40), ["sampler.top_k=1099511627776", "4294967295"]),
    (dict(sampler__platform="gpu"), ["sampler.platform='gpu'", "cuda"]),
    (dict(sampler__visible_devices="0"), ["sampler.visible_devices='0'", "cuda"]),
    (dict(advantage__center="median"), ["advantage.center='median'", "leave_one_out"]),
    (dict(model__num_kv_heads=3), ["model.num_kv_heads=3", "model.num_heads=4"]),
    (dict(model__head_width=15), ["model.head_width=15", "even"]),
    (dict(model__dtype="float16"), ["model.dtype='float16'", "bfloat16"]),
    (dict(optimizer__learning_rate=0.0), ["optimizer.learning_rate=0.0", "positive"]),
    (dict(warmup__batch_size=100), ["learner.micro_batch=8", "warmup.batch_size=100"]),
    (dict(runtime__stall_s=0.0), ["runtime.stall_s=0.0", "positive"]),
    (dict(runtime__stall_s=1e30), ["runtime.stall_s=1e+30", "1000000"]),
    (dict(runtime__lease_s=0.0), ["runtime.lease_s=0.0", "positive", "runtime.stall_s=3600.0"]),
    (dict(runtime__lease_s=3600.0), ["runtime.lease_s=3600.0", "below runtime.stall_s=3600.0"]),
    (dict(runtime__max_restarts=-1), ["runtime.max_restarts=-1", "at least 0"]),
    (dict(seed=-1), ["seed=-1"]),
    (dict(seed=2**32), ["seed=4294967296", "4294967295"]),
    (dict(objective__floor=0.0), ["objective.floor=0.0", "positive"]),
    (dict(objective__name="spo", objective__alpha=7.0), ["objective.alpha=7.0", "from 0 to 1"]),
    (dict(optimizer__clip_norm=float("nan")), ["optimizer.clip_norm=nan"]),
    (dict(optimizer__learning_rate=float("inf")), ["optimizer.learning_rate=inf"]),
    (dict(model__rope_theta=float("nan")), ["model.rope_theta=nan"]),
    (dict(learner__platform="gpuu"), ["learner.platform='gpuu'", "cuda"]),
    (dict(runtime__name="sync", sampler__count=4), ["sampler.count=4", "sync"]),
    (
        dict(runtime__name="sync", runtime__lease_s=9.0),
        ["runtime.lease_s=9.0 with runtime.name='sync'", "leave it unset"],
    ),
    (
        dict(runtime__name="sync", runtime__max_restarts=0),
        ["runtime.max_restarts=0 with runtime.name='sync'", "leave it at 3"],
    ),
    (
        dict(runtime__name="sync", sampler__platform="cuda", sampler__visible_devices="0"),
        ["sampler.visible_devices='0' with runtime.name='sync'", "leave it at ''"],
    ),
    (
        dict(lag=1, sampler__count=2),
        ["sampler.count=2: must be at most 1,", "prompts_per_lease=32"],
    ),
    (dict(lag=0, queue__capacity=99, sampler__count=2), ["sampler.count=2: must be at most 1,"]),
    (dict(sampler__segment=25), ["sampler.segment=25", "sampler.max_response_tokens=24"]),
    (dict(checkpoint__every_updates=-1), ["checkpoint.every_updates=-1", "must not be negative"]),
    (dict(checkpoint__every_s=float("nan")), ["checkpoint.every_s=nan", "0 to 1000000"]),
    (dict(checkpoint__keep=0), ["checkpoint.keep=0", "at least 1"]),
    (dict(checkpoint__grace_s=0.0), ["checkpoint.grace_s=0.0", "above 0, at most 3600"]),
    (dict(log__rollouts_groups=-1), ["log.rollouts_groups=-1", "must not be negative"]),
    (dict(reward__max_failed_share=1.5), ["reward.max_failed_share=1.5", "from 0 to 1"]),
    (dict(sampler__lanes=33), ["sampler.lanes=33", "sampler.prompts_per_lease=32"]),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=[str(fields) for fields, _ in WRONG])
def test_a_wrong_config_is_refused_by_field_value_and_what_is_allowed(fields, words):
    with pytest.raises(ValueError) as raised:
        resolve(with_fields(**fields))
    assert all(word in str(raised.value) for word in words), str(raised.value)


@pytest.mark.parametrize(("lag", "leases"), [(0, 1), (0, 4), (1, 4), (2, 1), (2, 2), (16, 1)])
def test_as_many_samplers_are_taken_as_can_have_a_lease_at_once(lag, leases):
    most = leases * max(1, lag)
    fields = dict(lag=lag, sampler__prompts_per_lease=32 // leases)
    assert resolve(with_fields(sampler__count=most, **fields)).sampler.count == most
    with pytest.raises(ValueError, match=rf"sampler.count={most + 1}: must be at most {most},"):
        resolve(with_fields(sampler__count=most + 1, **fields))


def test_every_lag_fits_the_queue_that_is_left_unset():
    for lag in (0, 1, 16, 256):
        assert resolve(with_fields(lag=lag)).queue_capacity == max(1, lag) * 32


def test_a_resolved_config_comes_back_from_its_json():
    config = resolve(with_fields(lag=3, objective__name="spo", objective__alpha=0.5))
    again = resolve(from_plain(json.loads(json.dumps(config.source))))
    assert again.source == config.source
    assert again.pacing == config.pacing


def test_unknown_fields_of_a_json_config_are_refused_by_name():
    with pytest.raises(ValueError, match="'lagg' does not exist"):
        from_plain({"lagg": 3})
    with pytest.raises(ValueError, match=r"'sampler\.temp' does not exist"):
        from_plain({"sampler": {"temp": 3}})
    with pytest.raises(ValueError, match=r"'sampler\.count'"):
        from_plain({"sampler": {"count": "many"}})
    with pytest.raises(ValueError, match="'sampler' must be an object"):
        from_plain({"sampler": 3})


def test_a_json_config_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    for name in ("broken.json", "list.json", "missing.json"):
        with pytest.raises(ValueError, match=name):
            read_json(tmp_path / name)


def test_options_of_ones_own_reach_the_task_from_a_config_file_and_from_json():
    config = default_config()
    config.task.name = "my_module:MyTask"
    config.task.colour = "blue"
    assert resolve(config).task_options == {"colour": "blue"}
    assert resolve(from_plain(resolve(config).source)).task_options == {"colour": "blue"}


CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def lab_record(path: pathlib.Path, *arguments: str) -> tuple[str | None, ml_collections.ConfigDict]:
    """Docstring and config of a config file."""
    names = runpy.run_path(str(path))
    return names["__doc__"], names["get_config"](*arguments)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_lab_record_is_a_config_that_resolves(path):
    record, config = lab_record(path)
    assert record
    if "axes" in config:
        assert len(cases(config)) > 1
    else:
        resolve(config)


def test_every_study_of_the_laboratory_is_a_sweep_and_told_of():
    path = CONFIGS / "staleness.py"
    with pytest.raises(ValueError, match="must be one of") as refused:
        lab_record(path, "nope")
    studies = re.findall(r"'(\w+)'", str(refused.value))
    assert len(studies) > 5
    for study in studies:
        record, config = lab_record(path, study)
        assert len(cases(config)) > 1
        assert record is not None and f"\n    {study} " in record


def test_proximal_parameters_are_never_older_than_those_that_sampled():
    for lag, refresh, found in ((0, 1, 1), (2, 1, 3), (16, 1, 4), (0, 3, 3)):
        config = default_config()
        config.lag, config.refresh_every_updates = lag, refresh
        assert resolve(config).step.proximal_every_updates == found


def test_the_form_of_a_users_own_objective_is_kept_unless_it_is_set():
    for fields, constant, kl_coefficient in (
        ({}, 7.0, 0.1),
        ({"constant": 3.0}, 3.0, 0.1),
        ({"aggregation": "constant"}, 24.0, 0.1),
        ({"kl_coefficient": 0.0}, 7.0, 0.0),
    ):
        config = default_config()
        config.objective.name = "tasks_for_tests:divided"
        for name, value in fields.items():
            config.objective[name] = value
        objective = resolve(config).objective
        assert (objective.constant, objective.kl_coefficient) == (constant, kl_coefficient)


def test_the_default_config_is_the_lab_record_of_the_arithmetic_task():
    _, config = lab_record(CONFIGS / "arithmetic.py")
    assert config.to_dict() == default_config().to_dict()


COMMANDS = [
    (["--config.objective.name=aysmpo"], "objective.name='aysmpo' (did you mean 'asympo'?): must"),
    (
        ["--config.learning_rate=1"],
        "(did you mean 'optimizer.learning_rate' or 'warmup.learning_rate'?); docs/config.md",
    ),
    (["--config.lag=many"], "error: lag='many': must be a whole number"),
    (["--config.eval.num_prompts=100000"], "eval.num_prompts=100000"),
    (["--config=no_such_file.py"], "error: --config=no_such_file.py: 'no_such_file.py' is not a"),
    (["--config=no_such_file.json"], "no_such_file.json"),
    (["--config", "no_such_file.json"], "no_such_file.json"),
    (["--config.task.num_terms=9"], "task.num_terms=9"),
    (["--config.task.num_terms=5"], "sampler.max_prompt_tokens=8"),
    (["--config.task.name=tasks_for_tests:WithoutDemonstrations"], "warmup.num_steps"),
    (["--config.task.name=:x"], "task.name=':x'"),
    (["--config.task.colour=blue"], "colour"),
    (["--config.task.name=gsm8k"], "task.data_dir"),
    (["left over"], "left over"),
    (["--config.objetive.name=x"], "no field 'objetive' (did you mean 'objective'?)"),
    (["--lag=4"], "--config.lag"),
    (["--config.objective={}"], "objective.aggregation: is missing"),
    (["--config.task.name=..:x"], "task.name='..:x': cannot be imported"),
    (["--config.task.name=asympo_jax.tasks:Task"], "with all of its methods"),
    (["--config.task.name=tasks_for_tests:CannotBeMade"], "ZeroDivisionError"),
    (["--config.task.name=tasks_for_tests:OldTokenizer"], "has no encode_prompt; derive its class"),
    (["--config.objective.name=tasks_for_tests:scaled", "--config.objective.x=1"], "objective.x"),
    (["--config.reward.function=tasks_for_tests:nothing"], "reward.function="),
    (["--config.sampler.count=1000000"], "sampler.count=1000000: must be at most 1024"),
    (["--config.reward.overlong_buffer=25"], "sampler.max_response_tokens=24"),
    (["--config.candidates_per_update=31"], "candidates_per_update=31"),
    (["--config.refresh_every_updates=2", "--config.order=completion"], "order='completion'"),
    (["--config.runtime.compilation_cache=/dev/null/x"], "runtime.compilation_cache=/dev/null/x"),
    (["--config.reward.isolate=True"], "reward.isolate=True with reward.num_processes=0"),
    (["--workdir="], "--workdir is empty"),
]


@pytest.mark.parametrize(
    ("flags", "word"), COMMANDS, ids=[" ".join(flags) for flags, _ in COMMANDS]
)
def test_the_command_ends_with_one_sentence_and_code_2(runner, tmp_path, flags, word):
    code, stderr = train(runner, tmp_path / "run", *flags)
    assert code == 2, stderr
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert stderr.startswith("error: ") and word in stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_workdir_that_holds_something_else_is_refused(runner, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, stderr = train(runner, tmp_path)
    assert code == 2 and "holds 'notes.txt' and no config.json" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_workdir_that_cannot_be_used_is_refused(runner, tmp_path):
    (tmp_path / "file").write_text("")
    code, stderr = train(runner, tmp_path / "file")
    assert code == 2 and f"workdir={tmp_path / 'file'}" in stderr
    code, stderr = train(runner, tmp_path / "file" / "below")
    assert code == 2 and "workdir=" in stderr


@pytest.mark.parametrize("field", ["runtime.snapshot_dir", "warmup.dir"])
def test_a_directory_that_the_run_needs_and_cannot_write_is_refused(runner, tmp_path, field):
    (tmp_path / "file").write_text("")
    code, stderr = train(runner, tmp_path / "run", f"--config.{field}={tmp_path / 'file'}")
    assert code == 2
    assert stderr.startswith(f"error: {field}={tmp_path / 'file'}: must be a directory")
    assert len(stderr.splitlines()) == 1


def train(runner, workdir, *flags):
    command = [sys.executable, "-m", "asympo_jax.train", f"--workdir={workdir}", *flags]
    done = runner.finish(workdir, command)
    return done.code, done.stderr
