"""Compiled programs are kept for hosts of one kind, counted, and change no bit."""

import jax
import jax.numpy as jnp
import pytest
from tiny_runs import Runner

from asympo_jax.runtime import compilation, placement
from asympo_jax.runtime.compilation import Compilations, keep_compiled, make_step_watch


def cache_directory() -> str | None:
    return getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009, no attribute to types


@pytest.fixture
def own_settings(monkeypatch):
    """Leaves jax's settings as they were."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_hosts_with_other_instructions_or_another_number_of_cores_share_nothing(
    own_settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("ASYMPO_CACHE", str(tmp_path))
    places = [keep_compiled(None)]
    monkeypatch.setattr(placement, "available_cores", lambda: list(range(77)))
    places.append(keep_compiled(None))
    monkeypatch.setattr(compilation, "_cpu_features", lambda: "flags: other")
    places.append(keep_compiled(None))
    assert len(set(places)) == 3
    assert all(place is not None and place.parent == tmp_path / "xla" for place in places)
    assert cache_directory() == str(places[-1])


def test_an_empty_field_and_jaxs_own_variable_keep_nothing_here(
    own_settings, tmp_path, monkeypatch
):
    before = cache_directory()
    assert keep_compiled("") is None
    (tmp_path / "file").touch()
    assert keep_compiled(str(tmp_path / "file")) is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    assert keep_compiled(str(tmp_path)) is None
    assert cache_directory() == before


def test_a_directory_that_others_may_write_or_put_there_is_not_used(own_settings, tmp_path):
    place = keep_compiled(str(tmp_path))
    assert place is not None
    place.chmod(0o770)
    assert keep_compiled(str(tmp_path)) is None
    place.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    place.symlink_to(tmp_path / "elsewhere")
    assert keep_compiled(str(tmp_path)) is None
    place.unlink()
    assert keep_compiled(str(tmp_path)) == place


def test_the_oldest_programs_go_when_there_is_no_room(own_settings, tmp_path, monkeypatch):
    place = keep_compiled(str(tmp_path))
    assert place is not None
    for name in ("first", "second", "third"):
        (place / name).write_bytes(bytes(100))
    monkeypatch.setattr(compilation, "_MAX_BYTES", 250)
    keep_compiled(str(tmp_path))
    assert sorted(path.name for path in place.iterdir()) == ["second", "third"]


def test_a_step_that_is_compiled_for_another_shape_is_told_once():
    told, metrics = [], {}

    @jax.jit
    def step(x):
        return x + 1

    watch = make_step_watch(Compilations(), "jit(step)", told.append)
    for version, size in enumerate((3, 3, 5, 3, 5), start=1):
        step(jnp.zeros(size))
        metrics = watch(version)
    assert len(told) == 1 and told[0].startswith("update 3: its step was compiled")
    assert metrics["compile/count"] + metrics["compile/found"] >= 2
    assert metrics["compile/seconds"] > 0


def test_the_seconds_told_of_a_step_are_its_own_alone():
    compilations, told = Compilations(), []
    watch = make_step_watch(compilations, "step", told.append)
    for version, (name, seconds) in enumerate((("step", 1.0), ("other", 70.0), ("step", 2.5))):
        compilations._hear_seconds(compilation._COMPILED, seconds, fun_name=name)
        watch(version)
    assert told == ["update 2: its step was compiled, for shape number 2 (2.5 s)"]


def test_a_run_finds_the_programs_of_the_one_before_and_ends_with_the_same_bits(tmp_path):
    runner = Runner(tmp_path / "unused", tmp_path)
    del runner.environment["JAX_COMPILATION_CACHE_DIR"]
    fields = {"runtime__compilation_cache": str(tmp_path / "cache"), "num_updates": 2}
    fields["runtime__name"] = "sync"
    cold, warm = (runner.train(tmp_path / name, **fields) for name in ("cold", "warm"))
    assert cold.sha == warm.sha
    first, second = (run.metrics[-1] for run in (cold, warm))
    assert first["compile/found"] == 0 < first["compile/count"]
    assert second["compile/count"] == 0 < second["compile/found"]
    assert not (tmp_path / "unused").exists()
    assert "rror" not in warm.stderr, warm.stderr
