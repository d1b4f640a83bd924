"""A clone of the repository in which launch scripts meet stand-ins for the tools that they call."""

import shutil
import subprocess
from pathlib import Path

LAUNCH = Path(__file__).parents[1] / "launch"
TOOLS = "awk bash cat cksum cp df dirname find flock git grep gzip head ls mkdir rm sed seq setsid"
TOOLS += " sh sleep sort tail tar touch true wc"

FAKE_PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >>"{calls}"
case "$*" in
  *version_info*) echo "{version}" ;;
  *sys.version*) echo "{version} of some day" ;;
  *ensurepip*) exit {venv_status} ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install "*) {pip} ;;
  "-m asympo_jax.train "*) {train} ;;
esac
"""


class Clone:
    """A clone of the repository with fake tools; `run` returns what one script did."""

    def __init__(self, root: Path):
        """Makes the clone in a folder whose name has a space, which scripts must survive."""
        self.root = root / "a clone"
        self.bin = root / "bin"
        self.calls = root / "calls"
        shutil.copytree(LAUNCH, self.root / "launch")
        (self.root / "pyproject.toml").write_text("[project]\n")
        self.bin.mkdir()
        for tool in TOOLS.split():
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)

    def add_tool(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def add_python(self, name: str, version: str, venv_status=0, pip="true", train="true") -> Path:
        text = FAKE_PYTHON.format(
            calls=self.calls, version=version, venv_status=venv_status, pip=pip, train=train
        )
        return self.add_tool(name, text)

    def run(self, script: str, *args: str, cwd: Path | str | None = None, **variables: str):
        self.calls.write_text("")
        return subprocess.run(
            ["bash", str(self.root / "launch" / script), *args],
            cwd=cwd or self.root,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
        )

    def environment(self, **variables: str) -> dict[str, str]:
        return {"PATH": str(self.bin), "HOME": str(self.root), **variables}

    def commit(self) -> None:
        """Makes it a repository with one commit, as a clone of the real one is."""
        (self.root / "pyproject.toml").write_text('gpu = ["jax"]\ntpu = ["jax"]\n')
        git = ["git", "-C", str(self.root), "-c", "user.name=x", "-c", "user.email=x@localhost"]
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
            subprocess.run([*git, *command], check=True)

    def calls_with(self, word: str) -> list[str]:
        return [call for call in self.calls.read_text().splitlines() if word in call]


def assert_fails_with(result: subprocess.CompletedProcess, *words: str, code: int = 1):
    assert result.returncode == code
    (sentence,) = result.stderr.splitlines()
    for word in words:
        assert word in sentence
