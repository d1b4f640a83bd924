"""The conditions of every test: CPU, eight simulated devices, strict numerics, checked shapes."""

import atexit
import os
import pathlib
import shutil
import signal
import sys
import tempfile

assert "jax" not in sys.modules, "jax was imported before its devices could be chosen"
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled in a tenth of the time: most programs run once here, on a few numbers. A version of XLA
# that knows the last option no more passes it over, which it does with no other kind of flag.
_QUICKLY = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} {_QUICKLY} --xla_force_host_platform_device_count=8"
).strip()
# Workers share out the cores, also for the runs that they start, which would all choose the same.
if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    index, count = int(worker[2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    if own := sorted(os.sched_getaffinity(0))[index::count]:
        os.sched_setaffinity(0, own)
# Compiled programs are not kept in the home of whoever runs the tests.
os.environ["ASYMPO_CACHE"] = tempfile.mkdtemp(prefix="asympo-tests-")
atexit.register(shutil.rmtree, os.environ["ASYMPO_CACHE"], ignore_errors=True)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import optax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell starts what runs in the background with these ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples at every run, however slow the machine.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def promoting(function):
    """`function` under jax's standard promotion."""

    def promoted(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return promoted


def making_promoting(make):
    """`make`, with what it makes under jax's standard promotion."""
    return lambda *args, **kwargs: promoting(make(*args, **kwargs))


# Optax mixes floats and integer counts in these, which strict promotion refuses.
optax.tree.bias_correction = promoting(optax.tree.bias_correction)
optax.cosine_decay_schedule = making_promoting(optax.cosine_decay_schedule)
optax.warmup_cosine_decay_schedule = making_promoting(optax.warmup_cosine_decay_schedule)

# So does this in its softmax where queries are bfloat16.
jax.nn.dot_product_attention = promoting(jax.nn.dot_product_attention)

# JAX rebuilds pytrees from leaves that are no arrays, which the check of a dataclass's fields would
# refuse (jaxtyping#277). Functions that take or return one are checked like the others.
register_dataclass = jax.tree_util.register_dataclass


def register_unchecked_dataclass(cls, *args, **kwargs):
    """`jax.tree_util.register_dataclass`, and the class stays out of the import hook."""
    cls.__no_type_check__ = True
    return register_dataclass(cls, *args, **kwargs)


jax.tree_util.register_dataclass = register_unchecked_dataclass

# Shapes and types of the pure floors are checked at every call; users do not pay for it.
# Packages are decorated as they are imported, so that none may be imported above this line.
CHECKED_PACKAGES = [
    "asympo_jax.objectives",
    "asympo_jax.models",
    "asympo_jax.sampling",
    "asympo_jax.learning",
]
assert not any(name.startswith("asympo_jax.") for name in sys.modules)
jaxtyping.install_import_hook(CHECKED_PACKAGES, "beartype.beartype")


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> pathlib.Path:
    """Where every command that a test starts, in whichever worker, keeps its compiled programs."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "programs"


@pytest.fixture(scope="module")
def runner(programs, tmp_path_factory):
    """Starts commands; their snapshots go to a directory of the module's own."""
    from tiny_runs import Runner  # imports the package, which may happen below the hook alone

    return Runner(programs, tmp_path_factory.mktemp("snapshots"))


@pytest.fixture(scope="session")
def longer_run(programs, tmp_path_factory):
    """(Workdir of a run of two updates that was made longer by four, both results by updates).

    For tests that read what a run leaves; the first worker that asks makes it for all.
    """
    from tiny_runs import Runner, longer_run

    folder = programs.parent / "longer_run"
    found = longer_run(Runner(programs, tmp_path_factory.mktemp("snapshots")), folder)
    return folder / "run", found


@pytest.fixture(scope="session")
def needs_torch() -> None:
    """Skips where Hugging Face's code is not installed."""
    for module in ("torch", "transformers"):
        pytest.importorskip(module, reason="needs the extra [parity]")
