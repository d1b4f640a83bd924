"""launch/local.sh, slurm.sbatch and ray_job.sh, with stand-ins for Python, Slurm and Ray."""

import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from launch_cases import Clone, assert_fails_with

SRUN = """#!/bin/bash
printf 'srun %s\\n' "$*" >>"$CALLS"
printf 'devices %s\\n' "${JAX_LOCAL_DEVICE_IDS:-unset}" >>"$CALLS"
if [ -p "${READY:-}" ]; then
  trap 'exit 75' TERM
  exec 8<>"$NEVER"
  echo >"$READY"
  read -r _ <&8
fi
exit "${STEP_CODE:-0}"
"""
SQUEUE = '#!/bin/sh\nprintf "%s\\n" "${JOB_STATE:-RUNNING}"\n'
SCONTROL = '#!/bin/sh\nprintf \'scontrol %s\\n\' "$*" >>"$CALLS"\n'
RAY = """#!/bin/bash
printf 'ray %s\\n' "$*" >>"$CALLS"
name=${4:-}
jobs=$CLOUD/jobs
case "$2" in
  submit) echo RUNNING >"$CLOUD/status" ;;
  logs) head -n 1 "$jobs" >"$CLOUD/status"; sed -i 1d "$jobs" ;;
  delete) rm "$CLOUD/status" ;;
  status)
    case $(cat "$CLOUD/status" 2>/dev/null) in
      "")
        echo "RuntimeError: Request failed with status code 404: Job $name does not exist" >&2
        exit 1
        ;;
      RUNNING) echo "Status for job '$name': RUNNING" ;;
      0) echo "Job '$name' succeeded" ;;
      stopped) echo "Job '$name' was stopped" ;;
      *)
        echo "Job '$name' failed"
        printf 'Status message: Job entrypoint command '
        echo "failed with exit code $(cat "$CLOUD/status"), last available logs"
        echo "Job '$name' succeeded, failed with exit code 99"
        ;;
    esac
    ;;
esac
"""


class Jobs(Clone):
    """A clone on a machine with Slurm and Ray."""

    def __init__(self, root: Path):
        super().__init__(root)
        for name, text in (("srun", SRUN), ("squeue", SQUEUE), ("scontrol", SCONTROL)):
            self.add_tool(name, text)
        self.add_tool("ray", RAY)
        self.add_python("python3.12", "3.12", train="exit 3")
        self.commit()
        self.folder = root

    def environment(self, **variables: str) -> dict[str, str]:
        return super().environment(CALLS=str(self.calls), CLOUD=str(self.folder), **variables)

    def batch(self, *args: str, **variables: str):
        words = [*args, "--", "--workdir=/shared/a run"]
        return self.run("slurm.sbatch", *words, SLURM_JOB_ID="7", **variables)

    def ray_job(self, action: str, *flags: str, jobs: str = "0", **variables: str):
        """What ray_job.sh did; `jobs` are the ends of the jobs, in order."""
        (self.folder / "jobs").write_text(jobs.replace(" ", "\n") + "\n")
        words = [action, "--name=math", *flags]
        words += ["--", "--workdir=/shared/a run"] if action == "run" else []
        variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of a test", **variables}
        return self.run("ray_job.sh", *words, **variables)

    def ray_verbs(self) -> list[str]:
        return [call.split()[2] for call in self.calls_with("ray job")]


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def test_a_local_run_installs_its_extra_once_and_ends_with_the_code_of_train(jobs: Jobs):
    words = ["--extra=gpu", "--", "--workdir=a run", "--config.seed=1"]
    assert jobs.run("local.sh", *words).returncode == 3
    assert len(jobs.calls_with(f"--editable {jobs.root}[gpu]")) == 1
    assert jobs.calls_with("asympo_jax.train") == [
        "-m asympo_jax.train --workdir=a run --config.seed=1"
    ]
    assert jobs.run("local.sh", *words).returncode == 3
    assert jobs.calls_with("-m pip install") == []


def test_an_install_alone_trains_nothing(jobs: Jobs):
    assert jobs.run("local.sh", "--install_only").returncode == 0
    assert len(jobs.calls_with("-m pip install")) == 1
    assert jobs.calls_with("asympo_jax.train") == []


def test_a_job_of_one_process_needs_no_other(jobs: Jobs):
    assert jobs.batch().returncode == 0
    assert jobs.calls_with("srun") == [
        f"srun --kill-on-bad-exit=0 {jobs.root}/.venv/bin/python -m asympo_jax.train "
        "--workdir=/shared/a run"
    ]
    assert jobs.calls_with("devices") == ["devices unset"]


def test_the_processes_of_a_job_find_each_other_and_have_the_devices_of_their_nodes(jobs: Jobs):
    jobs.batch(SLURM_NTASKS="2", SLURM_NTASKS_PER_NODE="1", SLURM_GPUS_ON_NODE="4")
    (srun,) = jobs.calls_with("srun")
    assert srun.endswith("--workdir=/shared/a run --distributed")
    assert jobs.calls_with("devices") == ["devices 0,1,2,3"]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75, 134, 137, 143])
def test_a_job_goes_back_to_the_queue_after_the_exit_codes_that_say_so(jobs: Jobs, code: int):
    assert jobs.batch(STEP_CODE=str(code)).returncode == code
    requeued = ["scontrol requeue 7"] if code in (75, 137, 143) else []
    assert jobs.calls_with("scontrol") == requeued


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"JOB_STATE": "COMPLETING"}, "The job is COMPLETING"),
        ({"SLURM_RESTART_COUNT": "2"}, "back to the queue 2 times"),
    ],
)
def test_a_job_that_was_cancelled_or_restarted_often_does_not_go_back(
    jobs: Jobs, variables: dict[str, str], named: str
):
    result = jobs.batch("--max_restarts=2", STEP_CODE="75", **variables)
    assert result.returncode == 75
    assert named in result.stdout
    assert jobs.calls_with("scontrol") == []


def test_sigterm_reaches_the_step_and_the_job_waits_for_what_it_saves(jobs: Jobs):
    for fifo in ("ready", "never"):
        os.mkfifo(jobs.folder / fifo)
    variables = {"READY": str(jobs.folder / "ready"), "NEVER": str(jobs.folder / "never")}
    jobs.calls.write_text("")
    process = subprocess.Popen(
        ["bash", str(jobs.root / "launch/slurm.sbatch"), "--", "--workdir=/shared/run"],
        cwd=jobs.root,
        env=jobs.environment(SLURM_JOB_ID="7", **variables),
        stdout=subprocess.DEVNULL,
    )
    (jobs.folder / "ready").read_text()  # until the step is at work
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert jobs.calls_with("scontrol") == ["scontrol requeue 7"]


def test_a_job_outside_of_a_clone_is_refused(jobs: Jobs, tmp_path: Path):
    result = jobs.batch(SLURM_SUBMIT_DIR=str(tmp_path))
    assert_fails_with(result, "is no clone of asympo_jax", code=2)


def test_a_run_on_ray_is_one_job_of_its_name(jobs: Jobs):
    assert jobs.ray_job("run").returncode == 0
    assert jobs.ray_verbs() == ["status", "submit", "logs", "status"]
    (submit,) = jobs.calls_with("ray job submit")
    assert "--address=http://127.0.0.1:8265 --submission-id=math --no-wait" in submit
    assert f"--working-dir={jobs.root} " in submit
    assert submit.endswith(
        "-- python -m asympo_jax.train --workdir=/shared/a run --config.runtime.name=ray"
    )
    assert "of a test" not in jobs.calls.read_text()


def test_a_run_on_ray_that_is_at_work_is_found(jobs: Jobs):
    (jobs.folder / "status").write_text("RUNNING\n")
    assert jobs.ray_job("run").returncode == 0
    assert jobs.ray_verbs() == ["status", "logs", "status"]


@pytest.mark.parametrize(
    ("ends", "code", "submitted"),
    [
        ("75 0", 0, 2),
        ("137 143 0", 0, 3),
        ("-9 0", 0, 2),
        ("1 0", 1, 1),
        ("2 0", 2, 1),
        ("3 0", 3, 1),
        ("stopped 0", 75, 1),
        ("RUNNING 0", 0, 1),
        ("75 75 75 0", 1, 3),
    ],
)
def test_a_run_on_ray_starts_again_after_the_exit_codes_that_say_so(
    jobs: Jobs, ends: str, code: int, submitted: int
):
    assert jobs.ray_job("run", "--max_restarts=2", jobs=ends).returncode == code
    assert jobs.ray_verbs().count("submit") == submitted
    assert jobs.ray_verbs().count("delete") == submitted - 1


@pytest.mark.parametrize(
    ("flags", "variables", "named"),
    [
        ([], {"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE=disabled"),
        ([], {"RAY_AUTH_MODE": ""}, "RAY_AUTH_MODE="),
        ([], {"RAY_AUTH_TOKEN": ""}, "There is no token"),
        (["--address=http://10.0.0.1:8265"], {}, "--address=http://10.0.0.1:8265"),
        (["--address=http://127.0.0.1:8265@evil"], {}, "PORT"),
    ],
)
def test_a_ray_that_others_could_use_is_refused(
    jobs: Jobs, flags: list[str], variables: dict[str, str], named: str
):
    assert_fails_with(jobs.ray_job("run", *flags, **variables), named, code=2)
    assert jobs.ray_verbs() == []


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        (["local.sh", "--extra=gpu"], ["-m venv", "-m pip install", "-m asympo_jax.train"]),
        (["slurm.sbatch"], ["-m venv", "-m pip install", "srun ", "scontrol requeue"]),
        (["ray_job.sh", "run", "--name=a"], ["ray job status", "ray job submit", "ray job logs"]),
    ],
)
def test_a_dry_run_prints_the_commands_and_runs_none(
    jobs: Jobs, words: list[str], commands: list[str]
):
    before = sorted(jobs.root.rglob("*"))
    result = jobs.run(*words, "--dry_run", "--", "--workdir=/shared/a run")
    assert result.returncode == 0, result.stderr
    for line, command in zip(result.stdout.splitlines(), commands, strict=True):
        assert command in line
    train = next(line for line in result.stdout.splitlines() if "asympo_jax.train" in line)
    assert "--workdir=/shared/a run" in shlex.split(train)
    ran = jobs.calls.read_text().splitlines()
    assert [
        call for call in ran if "sys.version_info" not in call and "ensurepip" not in call
    ] == []
    assert sorted(jobs.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["local.sh", "--", "--config=x"], "--workdir=DIR"),
        (["local.sh", "--workdir=x"], "--workdir=x"),
        (["local.sh", "train"], "train"),
        (["local.sh", "--extra=tpu,", "--", "--workdir=x"], "--extra=tpu,"),
        (["slurm.sbatch", "--", "--workdir=runs/a"], "--workdir=runs/a"),
        (["slurm.sbatch", "--max_restarts=-1"], "--max_restarts=-1"),
        (["ray_job.sh"], "must be one of run, logs, stop"),
        (["ray_job.sh", "run", "--name=a b"], "--name=a b"),
    ],
)
def test_wrong_flags_are_refused_in_one_sentence(jobs: Jobs, words: list[str], named: str):
    assert_fails_with(jobs.run(*words), named, code=2)
    assert jobs.calls.read_text() == ""


@pytest.mark.parametrize("script", ["local.sh", "slurm.sbatch", "tpu_pod.sh", "ray_job.sh"])
def test_help_says_how_and_does_nothing(jobs: Jobs, script: str):
    result = jobs.run(script, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: ")
    assert f"launch/{script}" in result.stdout
    assert "Example: " in result.stdout
    assert jobs.calls.read_text() == ""
