"""Imports go downwards only, pure floors stay pure, and rooms stay small."""

from pathlib import Path

import floors
import pytest

SOURCE = Path(__file__).parents[1] / floors.PACKAGE


@pytest.fixture(scope="module")
def modules() -> dict[str, floors.Module]:
    return floors.read_modules(SOURCE)


def test_every_module_has_a_floor(modules: dict[str, floors.Module]):
    assert floors.unplaced_modules(modules) == []


def test_imports_go_downwards_only(modules: dict[str, floors.Module]):
    assert floors.upward_imports(modules) == []


def test_only_the_wiring_imports_a_transport(modules: dict[str, floors.Module]):
    assert floors.transport_imports(modules) == []


def test_sampler_and_learner_never_reach_each_other(modules: dict[str, floors.Module]):
    assert floors.meetings(modules) == []


def test_pure_floors_have_no_threads_clocks_flags_or_files(modules: dict[str, floors.Module]):
    assert floors.impurities(modules) == []


def test_importing_the_package_alone_loads_nothing_heavy(modules: dict[str, floors.Module]):
    assert floors.eager_imports(modules) == []


def test_no_module_and_no_function_is_too_long(modules: dict[str, floors.Module]):
    assert floors.too_long(modules) == []


LONGEST_FUNCTION = 'def f():\n    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * 59


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        (floors.unplaced_modules, "helpers.py", ""),
        (floors.unplaced_modules, "helpers/__init__.py", ""),
        (floors.upward_imports, "types.py", "import asympo_jax.runtime.broker"),
        (floors.upward_imports, "types.py", "from asympo_jax import tasks"),
        (floors.upward_imports, "types.py", "from asympo_jax.runtime import broker"),
        (floors.upward_imports, "types.py", "def f():\n    from . import tasks"),
        (
            floors.upward_imports,
            "types.py",
            "import importlib\nimportlib.import_module('asympo_jax.tasks')",
        ),
        (floors.upward_imports, "models/hf.py", "from ..objectives import loss"),
        (floors.upward_imports, "models/hf.py", "if TYPE_CHECKING:\n    import asympo_jax.tasks"),
        (floors.upward_imports, "learning/train_step.py", "from asympo_jax import sampling"),
        (floors.upward_imports, "tokenizers.py", "from .tasks import base"),
        (floors.upward_imports, "config.py", "from . import train"),
        (
            floors.transport_imports,
            "runtime/broker.py",
            "from asympo_jax.runtime.local import serve",
        ),
        (floors.transport_imports, "runtime/learner.py", "from . import ray"),
        (floors.meetings, "runtime/sampler.py", "from asympo_jax.runtime import learner"),
        (floors.meetings, "runtime/broker.py", "from asympo_jax.runtime.sampler import run"),
        (floors.impurities, "types.py", "import time"),
        (floors.impurities, "learning/train_step.py", "def f():\n    from absl import flags"),
        (floors.impurities, "models/__init__.py", "import multiprocessing.shared_memory"),
        (floors.impurities, "objectives/loss.py", "text = open('x').read()"),
        (floors.impurities, "learning/train_step.py", "text = path.read_text()"),
        (floors.impurities, "types.py", "def f():\n    global x\n    x = 1"),
        (floors.eager_imports, "__init__.py", "from asympo_jax import models"),
        (
            floors.eager_imports,
            "__init__.py",
            "try:\n    import jax\nexcept ImportError:\n    pass",
        ),
        (floors.too_long, "types.py", "x = 1\n" * 301),
        (floors.too_long, "types.py", LONGEST_FUNCTION + "    x = 1"),
    ],
)
def test_a_breach_of_the_floors_is_found(check, path: str, source: str, tmp_path: Path):
    sound = {
        "__init__.py": "def __getattr__(name):\n    import jax",
        "types.py": LONGEST_FUNCTION + "x = 1\n" * 236,
        "tokenizers.py": "text = open('x').read()",
        "models/__init__.py": "from asympo_jax.models import hf",
        "models/hf.py": "import asympo_jax.types\ntext = path.read_text()",
        "objectives/__init__.py": "",
        "objectives/loss.py": "import timeit",
        "tasks/__init__.py": "",
        "tasks/base.py": "text = path.read_text()",
        "learning/__init__.py": "",
        "learning/train_step.py": "from ..objectives import loss",
        "sampling/__init__.py": "",
        "runtime/__init__.py": "",
        "runtime/broker.py": "import threading",
        "runtime/sampler.py": "from . import broker",
        "runtime/learner.py": "from asympo_jax.runtime.broker import Broker",
        "runtime/local.py": "from . import learner, sampler",
        "runtime/ray.py": "import ray",
        "config.py": "",
        "experiment.py": "from asympo_jax import config\nfrom asympo_jax.runtime import local",
        "train.py": "from . import experiment",
    }
    for name, text in sound.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert check(floors.read_modules(tmp_path)) == []
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(source)
    if check is floors.meetings:  # through the broker, whom both see
        (tmp_path / "runtime/learner.py").write_text("from . import broker")
    assert check(floors.read_modules(tmp_path)) != []
