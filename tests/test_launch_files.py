"""What launch files and documents say, not run: they agree about exit codes and time."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_cases import LAUNCH

from asympo_jax import interrupts
from asympo_jax.defaults import default_config

ROOT = LAUNCH.parent
# Of the environment that runs the tests, which need not be active.
SHELLCHECK = str(Path(sys.executable).with_name("shellcheck"))
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
DOCUMENTS = [ROOT / "README.md", ROOT / "docs/launching.md", LAUNCH / "colab.md"]
CONFIG: Any = default_config()
SAVING_S = CONFIG.checkpoint.grace_s + interrupts.END_S


def advice_of_codes() -> dict[int, str]:
    """What docs/faults.md says that a scheduler should do after an exit code."""
    rows = re.findall(r"^\| ([\d−(), ]+) \| .* \| ([^|]*) \|$", FAULTS, re.MULTILINE)
    return {
        int(code): advice
        for cell, advice in rows
        for code in re.findall(r"\d+", re.sub(r"−.*\((.*)\)", r"\1", cell))
    }


FAULTS = (ROOT / "docs/faults.md").read_text()
ADVICE = advice_of_codes()
AGAIN = {code for code, advice in ADVICE.items() if advice.startswith("start the same command")}


def load_manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / name).read_text())


def job_of_hosts() -> dict[str, Any]:
    (hosts,) = load_manifest("gke_jobset.yaml")["spec"]["replicatedJobs"]
    return hosts["template"]["spec"]


def pods_of(manifest: Any) -> list[dict[str, Any]]:
    """Every pod's spec in a manifest."""
    if isinstance(manifest, dict):
        below = [pod for value in manifest.values() for pod in pods_of(value)]
        return ([manifest] if "containers" in manifest else []) + below
    return (
        [pod for value in manifest for pod in pods_of(value)] if isinstance(manifest, list) else []
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path):
    result = subprocess.run(
        [SHELLCHECK, "--external-sources", str(script)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_stops_at_its_first_failure_and_bash_can_read_it(script: Path):
    text = script.read_text()
    if text.startswith("#!"):
        assert "\nset -euo pipefail\n" in text
    else:
        assert text.startswith("# shellcheck shell=bash\n# Sourced by ")
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_the_table_of_exit_codes_is_found():
    assert ADVICE.keys() == {0, 1, 2, 3, 75, 130, 143, 137, 134, 136, 139}
    assert sorted(AGAIN) == [75, 130, 137, 143]


def test_scripts_start_again_after_the_codes_that_faults_md_names():
    checks = "; ".join(f"starts_again {code} && echo {code}" for code in ADVICE)
    command = f'source "$0"; {checks}; true'
    result = subprocess.run(
        ["bash", "-c", command, str(LAUNCH / "commands.sh")], capture_output=True, text=True
    )
    # 130 is a person's Ctrl-C.
    assert {int(code) for code in result.stdout.split()} == AGAIN - {130}


def test_a_jobset_ends_at_the_codes_to_look_at_and_starts_again_at_the_others():
    job = job_of_hosts()
    (rule,) = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["operator"] == "In"
    ending = set(rule["onExitCodes"]["values"])
    assert ending == {1, 2, 3}
    assert not ending & AGAIN
    # A pod failure policy needs Never; without a retry of single pods all of them start again.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0
    policy = load_manifest("gke_jobset.yaml")["spec"]["failurePolicy"]
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    assert 0 < policy["maxRestarts"] <= 100


def test_a_jobset_has_one_pod_on_each_host_of_its_slice():
    job = job_of_hosts()
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(rows) * int(columns) // chips
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_a_pod_trains_in_a_directory_of_the_volume_that_all_see():
    pod = job_of_hosts()["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "asympo_jax.train"]
    assert "--distributed" in container["args"]
    (workdir,) = (word for word in container["args"] if word.startswith("--workdir="))
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert workdir.startswith(f"--workdir={mounts['runs']}/")
    assert "persistentVolumeClaim" in volumes["runs"]
    assert (mounts["snapshots"], volumes["snapshots"]["emptyDir"]) == (
        "/dev/shm",
        {"medium": "Memory"},
    )


def test_every_launcher_leaves_more_time_than_saving_may_take():
    assert job_of_hosts()["template"]["spec"]["terminationGracePeriodSeconds"] > SAVING_S
    head = load_manifest("ray_cluster.yaml")["spec"]["headGroupSpec"]["template"]["spec"]
    assert head["terminationGracePeriodSeconds"] > SAVING_S
    patterns = {"slurm.sbatch": r"signal=B:TERM@(\d+)", "ray_job.sh": r'WAIT_TIME_S": "(\d+)"'}
    for name, pattern in patterns.items():
        (seconds,) = re.findall(pattern, (LAUNCH / name).read_text())
        assert int(seconds) > SAVING_S


@pytest.mark.parametrize("name", ["gke_jobset.yaml", "ray_cluster.yaml"])
def test_no_pod_has_more_rights_than_it_needs(name: str):
    pods = pods_of(load_manifest(name))
    assert pods
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False}
            assert not {"env", "envFrom", "ports"} & container.keys()
        assert all("hostPath" not in volume for volume in pod.get("volumes", []))


def test_a_ray_cluster_needs_a_token_and_its_dashboard_listens_on_the_loopback():
    spec = load_manifest("ray_cluster.yaml")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"] == {
        "dashboard-host": "127.0.0.1",
        **{"num-cpus": "0", "num-gpus": "0"},  # they are the learner's
    }
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 60, 0)  # as the extra


def test_no_launch_file_has_a_secret_or_listens_for_others():
    for path in LAUNCH.iterdir():
        text = path.read_text()
        assert not re.search(r"0\.0\.0\.0|(?i:password|api_key)|AUTH_TOKEN=\S*[a-z0-9]{8}", text), (
            path
        )


def test_files_and_flags_that_the_documents_name_are_there():
    for document in DOCUMENTS:
        text = document.read_text()
        for name in set(re.findall(r"launch/[\w.]+\w", text)):
            assert (ROOT / name).is_file(), f"{document.name}: {name}"
        for name in set(re.findall(r"configs/\w+\.py", text)):
            assert (ROOT / name).is_file(), f"{document.name}: {name}"
        for module in set(re.findall(r"-m (asympo_jax\.\w+)", text)):
            path = ROOT / module.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file(), module
        for script, flags in re.findall(r"bash launch/(\w+\.sh)((?:[^`\n]|\\\n)*)", text):
            usage = subprocess.run(
                ["bash", str(LAUNCH / script), "--help"], capture_output=True, text=True
            ).stdout
            for flag in re.findall(r"(--\w+)", flags.split(" -- ")[0]):
                assert f"{flag}" in usage, f"{document.name}: {script} {flag}"


def test_every_launch_file_is_described():
    text = (ROOT / "docs/launching.md").read_text()
    for path in LAUNCH.iterdir():
        assert f"launch/{path.name}" in text or f"`{path.name}`" in text, path.name
