"""What the machine can do at most: float32 matrix products, and copies from memory and cache.

Speaks like any side, so that the ceilings are measured between the repeats of the others. Its
"tokens" are FLOPs or bytes.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import protocol
from workload import Workload

# Far beyond any cache, and well inside the last level's share of a core or two.
DRAM_BYTES = 512 * 2**20
CACHE_BYTES = 8 * 2**20


def prepare(task: str, work: Workload, options: dict[str, Any]) -> protocol.Prepared:
    """Sets one ceiling up."""
    del work
    imported_bytes = protocol.peak_bytes()
    divided_by = options.get("divided_by", 1)
    if task == "matmul":
        run = _matmul(2048 // divided_by)
    else:
        run = _copies({"dram": DRAM_BYTES, "cache": CACHE_BYTES}[task] // divided_by)
    return protocol.Prepared(run, None, imported_bytes)


def _matmul(size: int) -> Callable[[int], float]:
    """Products of square matrices, by jax on all cores; returns FLOPs."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a, b: a @ b)
    times = 4

    def run(number: int) -> float:
        del number
        for _ in range(times):
            product(matrix, matrix).block_until_ready()
        return 2.0 * times * size**3

    return run


def _copies(total_bytes: int) -> Callable[[int], float]:
    """Copies of arrays that take `total_bytes` in all, a thread a core; returns bytes moved."""
    threads = os.cpu_count() or 1
    length = total_bytes // (2 * threads * 4)
    arrays = [(np.ones(length, np.float32), np.ones(length, np.float32)) for _ in range(threads)]
    times = 2 if total_bytes > CACHE_BYTES else 200
    pool = ThreadPoolExecutor(threads)

    def copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(times):
            np.copyto(*pair)  # without the interpreter's lock

    def run(number: int) -> float:
        del number
        list(pool.map(copy, arrays))
        return 2.0 * 4 * length * threads * times  # read and written

    return run


if __name__ == "__main__":
    protocol.serve(prepare, ("jax", "jaxlib", "numpy"))
