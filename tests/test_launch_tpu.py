"""launch/tpu_pod.sh, with a stand-in for gcloud that keeps a TPU of two hosts in a folder.

What would run on a host runs here for real, in a home directory of its own.
"""

import os
import shlex
import shutil
from pathlib import Path

import pytest
from launch_cases import Clone, assert_fails_with

pytestmark = pytest.mark.skipif(
    not (shutil.which("flock") and shutil.which("setsid")), reason="hosts of a TPU have Linux"
)

GCLOUD = """#!/bin/bash
printf 'gcloud %s\\n' "$*" >>"$CALLS"
verb=$4 worker=all hosts=$(cat "$CLOUD/hosts")
for word in "$@"; do
  case $word in --command=*) command=${word#*=} ;; --worker=*) worker=${word#*=} ;; esac
done
[ "$worker" = all ] || hosts=$worker
on_hosts() { # COMMAND
  local host status=0
  for host in $hosts; do
    ( cd "$CLOUD/$host" && HOME=$PWD HOST=$host bash -c "$1" </dev/null ) || status=$?
  done
  return $status
}
case $verb in
  describe)
    [ ! -e "$CLOUD/forbidden" ] || { echo "PERMISSION_DENIED: no" >&2; exit 1; }
    [ -e "$CLOUD/state" ] || { echo "ERROR: NOT_FOUND: no such TPU" >&2; exit 1; }
    printf '%s\\t%s\\n' "$(cat "$CLOUD/state")" "$(wc -w <"$CLOUD/hosts")"
    ;;
  create) [ ! -e "$CLOUD/full" ] && mkdir "$CLOUD/0" "$CLOUD/1" && echo READY >"$CLOUD/state" ;;
  delete) rm -r "$CLOUD/0" "$CLOUD/1" "$CLOUD/state" ;;
  scp) for host in $hosts; do cp "$5" "$CLOUD/$host/${6#*:}"; done ;;
  ssh)
    case $command in
      *"tpu_host.sh wait")
        if [ -e "$CLOUD/preempt" ]; then
          rm "$CLOUD/preempt"
          echo PREEMPTED >"$CLOUD/state"
          exit 255
        elif [ -e "$CLOUD/drop" ]; then
          rm "$CLOUD/drop"
          exit 255
        elif [ -e "$CLOUD/stop" ]; then
          on_hosts "bash asympo_run/source/launch/tpu_host.sh stop"
        elif [ -p "$CLOUD/go0" ]; then
          for host in $hosts; do echo >"$CLOUD/go$host"; done
        fi
        ;;
    esac
    on_hosts "$command"
    ;;
esac
"""
# A shared file system is one of another device than the home directory.
DF = """#!/bin/sh
for path; do :; done
case $path in *shared*) device=nfs:/share ;; *) device=disk ;; esac
echo Filesystem
echo "$device 9000000 1 8000000 1% /"
"""
# Ends with the code of this host in the line of this start.
TRAIN = """
    [ ! -p "$CLOUD/go$HOST" ] || read -r _ <"$CLOUD/go$HOST"
    start=$(($(grep -c 'tpu_host.sh start' "$CALLS")))
    exit "$(awk -v n="$start" -v host="$HOST" 'NR == n {{ print $(host + 1) }}' "$CLOUD/codes")"
"""


class Cloud(Clone):
    """A clone whose gcloud has no TPU yet; `folder` holds what it knows."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.folder = root / "cloud"
        self.folder.mkdir()
        self.workdir = root / "shared run"
        (self.folder / "hosts").write_text("0 1\n")
        self.add_tool("gcloud", GCLOUD)
        self.add_tool("df", DF)
        self.add_python("python3.12", "3.12", train=TRAIN)
        self.commit()

    def pod(self, action: str, *flags: str, codes: str = "0 0"):
        """What tpu_pod.sh did; `codes` has a line for each start, with the code of each host."""
        (self.folder / "codes").write_text(codes.replace(", ", "\n") + "\n")
        words = [action, "--name=pod", "--zone=us-west4-a"]
        if action in ("run", "create"):
            words += ["--type=v5litepod-8", "--retry_s=0", *flags]
        if action == "run":
            words += ["--", "--config=configs/arithmetic.py", f"--workdir={self.workdir}"]
        return self.run(
            "tpu_pod.sh", *words, CLOUD=str(self.folder), CALLS=str(self.calls), LC_ALL="C"
        )

    def mark(self, name: str) -> None:
        (self.folder / name).write_text("")

    def hold_runs(self) -> None:
        """Runs stay at work until somebody waits for them, or asks them to end."""
        for host in "01":
            os.mkfifo(self.folder / f"go{host}")

    def verbs(self) -> list[str]:
        """What gcloud was asked, in order; of ssh, for what."""
        return [
            word
            for call in self.calls_with("gcloud ")
            for word in (call.split()[4], *(w for w in ("start", "wait") if f".sh {w}" in call))
            if word != "describe"
        ]

    def trained(self) -> list[str]:
        return self.calls_with("-m asympo_jax.train")


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


ROUND = ["scp", "ssh", "ssh", "start", "ssh", "wait"]


def test_a_tpu_is_created_installed_trained_on_and_deleted(cloud: Cloud):
    result = cloud.pod("run", "--spot")
    assert result.returncode == 0, result.stderr
    assert cloud.verbs() == ["create", *ROUND]
    (create,) = cloud.calls_with("tpu-vm create")
    assert create == (
        "gcloud compute tpus tpu-vm create pod --accelerator-type=v5litepod-8 "
        "--version=v2-alpha-tpuv5-lite --spot --zone=us-west4-a"
    )
    assert all("--worker=all" in call for call in cloud.calls_with("tpu-vm ssh"))
    train = "-m asympo_jax.train --config=configs/arithmetic.py"
    assert cloud.trained() == [f"{train} --workdir={cloud.workdir} --distributed"] * 2
    assert len(cloud.calls_with("-m pip install")) == 2
    assert "still costs money" in result.stdout
    assert cloud.pod("delete").returncode == 0
    assert cloud.verbs() == ["delete"]
    assert "There is no pod" in cloud.pod("delete").stdout
    assert cloud.verbs() == []


def test_a_tpu_of_one_host_trains_in_one_process(cloud: Cloud):
    (cloud.folder / "hosts").write_text("0\n")
    assert cloud.pod("run").returncode == 0
    (train,) = cloud.trained()
    assert train.endswith(f"--workdir={cloud.workdir}")


def test_what_stands_is_found_by_the_same_command(cloud: Cloud):
    cloud.pod("create")
    cloud.pod("create")
    assert cloud.verbs() == []
    cloud.pod("run")
    assert cloud.verbs() == ROUND
    first = cloud.trained()
    cloud.pod("run")
    assert cloud.verbs() == ROUND
    assert cloud.calls_with("-m pip install") == []
    assert cloud.trained() == first


def test_a_run_on_a_tpu_that_is_preempted_carries_on_on_a_new_one(cloud: Cloud):
    cloud.mark("preempt")
    result = cloud.pod("run", codes="75 75, 0 0")
    assert result.returncode == 0, result.stderr
    assert cloud.verbs() == ["create", *ROUND, "delete", "create", *ROUND]
    assert len(cloud.trained()) == 4
    assert len(set(cloud.trained())) == 1
    assert "The connection to pod was lost: restart 1 of at most 20." in result.stdout


@pytest.mark.parametrize(
    ("codes", "code", "starts"),
    [
        ("75 75, 0 0", 0, 2),
        ("137 1, 0 0", 0, 2),
        ("134 143, 0 0", 0, 2),
        ("2 143, 0 0", 2, 1),
        ("3 75, 0 0", 3, 1),
        ("1 0, 0 0", 1, 1),
        ("134 1, 0 0", 134, 1),
    ],
)
def test_a_run_starts_again_after_the_exit_codes_that_say_so(
    cloud: Cloud, codes: str, code: int, starts: int
):
    assert cloud.pod("run", codes=codes).returncode == code
    assert cloud.verbs().count("start") == starts


def test_starting_again_has_a_bound(cloud: Cloud):
    result = cloud.pod("run", "--max_restarts=2", codes="75 75, 75 75, 75 75, 0 0")
    assert_fails_with(result, "The run ended with 75, after 2 restarts")
    assert cloud.verbs().count("start") == 3


def test_a_lost_connection_leaves_the_run_at_work_and_finds_it_again(cloud: Cloud):
    cloud.mark("drop")
    cloud.hold_runs()
    result = cloud.pod("run", codes="0 0, 0 0")
    assert result.returncode == 0, result.stderr
    assert cloud.verbs() == ["create", *ROUND, *ROUND]
    assert len(cloud.trained()) == 2
    assert len(cloud.calls_with("-m pip install")) == 2
    assert result.stdout.count("The run is at work.") == 2
    assert "Using the environment" not in result.stdout  # its files are left alone


def test_a_run_that_is_stopped_is_not_started_again(cloud: Cloud):
    cloud.mark("stop")
    cloud.hold_runs()
    result = cloud.pod("run")
    assert result.returncode == 75, result.stderr
    assert cloud.verbs().count("start") == 1
    assert "The run was stopped; the same command carries on." in result.stdout


def test_a_workdir_on_a_hosts_own_disk_is_refused(cloud: Cloud):
    cloud.workdir = cloud.folder / "own"
    result = cloud.pod("run")
    assert result.returncode == 1
    assert "lies on the host's own disk" in result.stderr
    assert cloud.trained() == []


def test_without_capacity_the_first_run_says_so_at_once(cloud: Cloud):
    cloud.mark("full")
    assert_fails_with(cloud.pod("run"), "pod could not be created")
    assert cloud.verbs() == ["create"]


def test_a_gcloud_that_refuses_creates_nothing(cloud: Cloud):
    cloud.mark("forbidden")
    result = cloud.pod("run")
    assert result.returncode == 1
    assert "PERMISSION_DENIED" in result.stderr
    assert cloud.verbs() == []


def test_the_log_of_a_host_is_followed(cloud: Cloud):
    result = cloud.pod("logs")
    assert cloud.calls_with("tpu-vm ssh") == [
        "gcloud compute tpus tpu-vm ssh pod --worker=0 "
        "--command=tail -n 200 -F asympo_run/log --zone=us-west4-a"
    ]
    assert result.returncode != 0  # there is no TPU


@pytest.mark.parametrize("action", ["run", "create", "install", "logs", "stop", "delete"])
def test_a_dry_run_prints_the_commands_and_runs_none(cloud: Cloud, action: str):
    before = sorted(cloud.root.rglob("*"))
    result = cloud.pod(action, "--dry_run") if action in ("run", "create") else None
    if result is None:
        words = [action, "--name=pod", "--zone=us-west4-a", "--dry_run"]
        result = cloud.run("tpu_pod.sh", *words)
    assert result.returncode == 0, result.stderr
    assert cloud.calls.read_text() == ""
    assert sorted(cloud.root.rglob("*")) == before
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    assert lines
    assert {line[0] for line in lines} <= {"gcloud", "git"}


def test_a_dry_run_prints_what_a_run_on_a_new_tpu_does(cloud: Cloud):
    printed = cloud.pod("run", "--dry_run", "--spot").stdout
    cloud.pod("run", "--spot")
    done = [call for call in cloud.calls_with("gcloud ") if "describe" not in call]
    assert done == [
        " ".join(shlex.split(line))
        for line in printed.splitlines()
        if line.startswith("gcloud ") and "describe" not in line
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["dance"], "dance"),
        (["run", "--name=A"], "--name=A"),
        (["run", "--name=a"], "--zone="),
        (["run", "--name=a", "--zone=z"], "--type is missing"),
        (["run", "--name=a", "--zone=z", "--type=v9-8"], "--type=v9-8"),
        (["run", "--name=a", "--zone=z", "--type=v6e-8"], "--workdir=DIR"),
        (["run", "--name=a", "--zone=z", "--type=v6e-8", "--", "--workdir=x"], "--workdir=x"),
        (["run", "--spots"], "--spots"),
        (["run", "--spot=yes"], "--spot=yes"),
        (["run", "--name"], "--name"),
        (["run", "--name=a", "--zone=z", "--max_restarts=many"], "--max_restarts=many"),
        (["run", "--name=a", "--zone=z", "--extra=gpu;rm"], "--extra=gpu;rm"),
        (["run", "--name=a", "--zone=z", "--extra=gpus"], "--extra=gpus"),
    ],
)
def test_wrong_flags_are_refused_in_one_sentence(cloud: Cloud, words: list[str], named: str):
    assert_fails_with(cloud.run("tpu_pod.sh", *words), named, code=2)
    assert cloud.calls.read_text() == ""
