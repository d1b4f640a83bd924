"""What is no fault of the program becomes one sentence; everything else stays what it is."""

import jax
import pytest

from asympo_jax.endings import RunFailed, failures

FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 8 GB wanted\nand a page of details")


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError("no room"), "no room"),
        (FULL, "out of memory, take less: RESOURCE_EXHAUSTED: 8 GB wanted"),
        (MemoryError(), "out of memory, take less: no words on how much"),
    ],
    ids=repr,
)
def test_a_named_kind_and_full_memory_become_a_sentence(raised, words):
    with pytest.raises(RunFailed) as found, failures(OSError, advice=", take less"):
        raise raised
    assert str(found.value) == words and found.value.__cause__ is raised


@pytest.mark.parametrize("raised", [ValueError("x"), jax.errors.JaxRuntimeError("INTERNAL: x")])
def test_a_fault_of_the_program_keeps_its_traceback(raised):
    with pytest.raises(type(raised)), failures(OSError):
        raise raised
