"""The Ray cluster of a run: the one that RAY_ADDRESS names, or one of its own on the loopback.

Ray runs whatever reaches it, so a cluster that asks for no token, or shows its dashboard to others,
is refused before it gets anything to run. Ray reads the environment when it is imported, which is
why nothing here imports it earlier.
"""

import contextlib
import dataclasses
import importlib.util
import ipaddress
import logging
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from asympo_jax.runtime.private_directories import CLUSTER

_ADDRESS, _MODE, _TOKEN = "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
# What Ray does by itself on desktop systems: a node that has the address of the loopback, where
# its processes then listen.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
_PROBE_S = 120.0
_STARTS = 3  # of a cluster of its own: Ray gives it 30 s each time, few on a busy machine


class ClusterRefused(Exception):
    """A cluster that others could use."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster that this process has joined.

    Attributes:
        node_id: Ray's name of the node where this process is.
        directory: of a cluster of its own; None for another's.
    """

    node_id: str
    directory: pathlib.Path | None

    def leave(self) -> None:
        """Leaves the cluster, and ends one of its own."""
        _leave(self.directory)


def is_installed() -> bool:
    """Whether there is a Ray to import."""
    return importlib.util.find_spec("ray") is not None


def check_environment(environ: Mapping[str, str] = os.environ) -> None:
    """Refuses what can be seen to be wrong before Ray is imported.

    Raises:
        ValueError: Ray is not installed, or the environment names a cluster without its token.
    """
    if not is_installed():
        raise ValueError(
            "runtime.name='ray': needs the package ray, which is not installed: run pip install "
            "'asympo_jax[ray]'"
        )
    address, mode = environ.get(_ADDRESS, ""), environ.get(_MODE)
    if (mode or "").lower() != "token" and (address or mode is not None):
        raise ValueError(
            f"{_MODE}={mode or ''!r} with runtime.name='ray': must be 'token', here and on the "
            "cluster, as a cluster without tokens runs what anybody sends it"
        )
    if "://" in address:
        raise ValueError(
            f"{_ADDRESS}={address!r} with runtime.name='ray': must be HOST:PORT of the cluster, or "
            "'auto' on one of its nodes"
        )
    path = environ.get(_TOKEN_PATH) or pathlib.Path.home() / ".ray" / "auth_token"
    if address and not environ.get(_TOKEN) and not os.access(path, os.R_OK):
        raise ValueError(
            f"{_TOKEN_PATH}={environ.get(_TOKEN_PATH, '')!r} with {_ADDRESS}={address!r}: there is "
            "no token, it must name a file that has the cluster's"
        )


def join(
    num_cpus: float, make_directory: Callable[[], pathlib.Path], say: Callable[[str], None]
) -> Cluster:
    """Joins the cluster that RAY_ADDRESS names; without one, starts one here.

    Called in the main thread, in a process that has not imported Ray.

    Args:
        num_cpus: that one of its own says it has: what the samplers ask for.
        make_directory: a directory for the files of one of its own that nobody else can enter.
        say: tells people what may take long.

    Raises:
        ClusterRefused: others could use it.
        ConnectionError: it cannot be joined.
    """
    address = os.environ.get(_ADDRESS)
    if address:
        say(f"joining the Ray cluster {address}; that may take a minute")
        _require_token()
        directory, given = None, {"address": address}
    else:
        say("starting a Ray cluster of this run; that may take a minute")
        _prepare_own()
        directory = make_directory()
        given = {"address": "local", "num_cpus": int(num_cpus), "include_dashboard": False}
        # Ray lets everybody write in its own, so it is in one that nobody else can enter.
        given["_temp_dir"] = str(directory / CLUSTER)
    with contextlib.ExitStack() as stack:
        stack.callback(_leave, directory)  # also what is half begun
        with _own_handlers():
            context = _init(given, directory, say)
        _require_loopback(context.address_info, address)
        stack.pop_all()
    return Cluster(context.address_info["node_id"], directory)


def _init(
    given: Mapping[str, Any], directory: pathlib.Path | None, say: Callable[[str], None]
) -> Any:
    """Joins a cluster, or starts one with its files in a directory; what Ray says of it.

    Raises:
        ConnectionError: that fails.
    """
    import ray

    for start in range(_STARTS):
        try:
            # What samplers print stays on their nodes: Ray would mix in logs of other programs.
            # What is wrong with a start is raised; the rest is of a dashboard that nobody wants.
            context = ray.init(**given, log_to_driver=False, logging_level=logging.CRITICAL)
            logging.getLogger("ray").setLevel(logging.ERROR)
            return context
        except Exception as error:  # Ray raises the bare class, too
            if directory is None:
                raise ConnectionError(f"the Ray cluster {given['address']}: {error}") from error
            if start == _STARTS - 1:
                raise ConnectionError(
                    f"the Ray cluster of this run: {error}; it was started {_STARTS} times, is the "
                    "machine busy?"
                ) from error
            _leave(directory)
            again = f"{start + 1} of {_STARTS - 1} times"
            say(f"Ray did not start ({error}); it is started again, {again}")


def _leave(directory: pathlib.Path | None) -> None:
    """Leaves the cluster; ends one of its own, whose files are in the directory, and its processes.

    Of a node that did not come up in time Ray leaves some. They have the token and, unlike what
    else this process has started, name the directory or are no children.
    """
    import ray

    ray.shutdown()
    if directory is None:
        return
    token, name = f"{_TOKEN}={os.environ[_TOKEN]}".encode(), os.fsencode(directory)
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(process.name)
            if token in (process / "environ").read_bytes().split(b"\0") and (
                name in (process / "cmdline").read_bytes() or not _is_descendant(pid)
            ):
                os.kill(pid, signal.SIGKILL)


def _is_descendant(pid: int) -> bool:
    """Whether a process is this one, or was started by it, or by one that was."""
    while pid not in (0, os.getpid()):
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
        pid = int(status.rpartition(")")[2].split()[1])
    return pid != 0


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Within it Ray may start processes; SIGTERM, which Ray then answers, is as before after it."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            # jax warns of each fork; a process of Ray's sets its signals and becomes a program.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _prepare_own() -> None:
    """Sets what Ray reads when it is imported: a token of this process, and the loopback.

    Raises:
        ClusterRefused: it was imported before.
    """
    if "ray" not in sys.modules:
        os.environ.update({_MODE: "token", _TOKEN: secrets.token_hex(32), **_LOOPBACK})
        # Ray's own 15 would starve samplers on a busy machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
    elif any(os.environ.get(name) != value for name, value in _LOOPBACK.items()):
        raise ClusterRefused(
            "the Ray cluster of this run: ray was imported before the run began, so that it would "
            "listen for others; import it in the task's methods, and not with its module"
        )


def _require_token() -> None:
    """Refuses a cluster that answers who has no token.

    Raises:
        ClusterRefused: it does.
        ConnectionError: it does not answer at all.
    """
    stranger = {name: value for name, value in os.environ.items() if name != _TOKEN}
    stranger |= {_MODE: "disabled", _TOKEN_PATH: os.devnull}
    command = [sys.executable, "-m", "ray.scripts.scripts", "status"]
    try:
        asked = subprocess.run(
            command, env=stranger, capture_output=True, text=True, timeout=_PROBE_S
        )
    except subprocess.TimeoutExpired as error:
        words = f"no answer within {_PROBE_S:.0f} s"
        raise ConnectionError(f"the Ray cluster {os.environ[_ADDRESS]}: {words}") from error
    if asked.returncode == 0:
        raise ClusterRefused(
            f"the Ray cluster {os.environ[_ADDRESS]}: it answers who has no token; start all of "
            f"its nodes with {_MODE}=token"
        )
    if "AuthenticationError" not in asked.stderr:
        last = (asked.stderr.strip().splitlines() or ["it does not answer"])[-1]
        raise ConnectionError(f"the Ray cluster {os.environ[_ADDRESS]}: {last}")


def _require_loopback(found: Mapping[str, Any], address: str | None) -> None:
    """Refuses a dashboard, and a node of a cluster of its own, that are not on the loopback.

    Raises:
        ClusterRefused: naming the address.
    """
    dashboard = str(found.get("webui_url") or "")
    if dashboard and not _is_loopback(dashboard.rsplit(":", 1)[0]):
        raise ClusterRefused(
            f"the Ray cluster {address or 'of this run'}: its dashboard is at {dashboard}, where "
            "others reach it; start its head with --dashboard-host=127.0.0.1"
        )
    node = str(found["node_ip_address"])
    if not address and not _is_loopback(node):
        raise ClusterRefused(
            f"the Ray cluster of this run: it listens at {node}, where others reach it, must be on "
            "the loopback"
        )


def _is_loopback(host: str) -> bool:
    """Whether an address is one of this machine's alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
