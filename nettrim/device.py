"""The choice of a device for ``backend="auto"``: by the speed that each shows on this machine.

ADMM is products. What one costs is measured once a process on the CPU and, for problems large enough to bring the
question up, on the GPU, with the bus between them; the rest is counting.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from nettrim import backends
from nettrim.coarse import iterations
from nettrim.convolution import Convolution
from nettrim.memory import plan
from nettrim.problem import Problem
from nettrim.settings import Settings

__all__ = ["Speed", "choose", "host_speed"]

#: flops of a solve by ADMM (seconds on the CPU) below which no GPU is looked for
WORTHWHILE = 1e12
#: seconds that CuPy, a context and the kernels take to start
START = 3.0
#: least time of the CPU's methods over that of ADMM there: working sets may be that much faster
EXACT = 0.1
#: gaps below this are left to the CPU: ADMM on the GPU has no polish
SMALLEST_GAP = 1e-5
#: sides of the product that is timed (4 GFLOP), and bytes of the copy
PRODUCT, COPY = (1024, 1024, 2048), 1 << 26

log = logging.getLogger("nettrim")


class Speed(NamedTuple):
    """Flops a second of matrix products, and bytes a second of copies to the device."""

    flops: float
    bytes: float = np.inf


def choose(problem: Problem, settings: Settings) -> str:
    """``"cupy"`` if there is a usable GPU on which the problem is expected to be solved sooner, else ``"numba"``."""
    columns = problem.N if problem.compact else problem.P
    N, M = problem.N, problem.M
    relative = problem.epsilon / problem.y_norm if problem.y_norm > 0 else 1.0
    count = iterations(relative, settings.gap_tol)
    work = count * (4.0 * N * M * columns + 2.0 * N**2 * M)
    if work < WORTHWHILE or settings.method == "working_set" or settings.gap_tol < SMALLEST_GAP:
        return "numba"
    try:
        device = backends.get("cupy")
        chunked = isinstance(problem.X, Convolution) and not problem.compact
        free, limit = device.memory()[1], settings.device_memory
        layout = plan(N, M, columns, problem.dtype.itemsize, free, limit, chunked=chunked)
        there = _device_speed(problem.dtype)
    except Exception as error:
        # of any kind: whoever asks for "auto" has not asked for a GPU
        log.info("no GPU for this problem: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
        return "numba"
    here = host_speed(problem.dtype, settings.n_threads)
    moved = layout.per_sample * columns + count * layout.moved
    seconds = START + work / there.flops + moved / there.bytes
    expected = EXACT * work / here.flops
    log.info("expected seconds: %.3g on %s, at least %.3g on the CPU", seconds, layout.device, expected)
    return "cupy" if seconds < expected else "numba"


@cache
def host_speed(dtype: np.dtype, n_threads: int | None) -> Speed:
    """Speed of products on the CPU, measured once a process."""
    from nettrim.threads import limit

    backend = backends.get("numba", n_threads)
    if n_threads is None:
        return Speed(_flops(backend, dtype))
    with limit(n_threads):
        return Speed(_flops(backend, dtype))


@cache
def _device_speed(dtype: np.dtype) -> Speed:
    backend = backends.get("cupy")
    transfers = backend.transfers(1)
    host, device = transfers.host_buffer(COPY, np.uint8), backend.zeros((COPY,), np.uint8)

    transfers.used(0)

    def copy() -> None:
        transfers.send(0, [(device, host)])
        transfers.drain()

    return Speed(_flops(backend, dtype), COPY / _seconds(copy))


def _flops(backend: Any, dtype: np.dtype) -> float:
    m, k, n = PRODUCT
    rng = np.random.default_rng(0)
    # random numbers: on zeros a processor may run faster
    A, B = (backend.asarray(rng.standard_normal(shape).astype(dtype), dtype) for shape in ((m, k), (k, n)))
    C = backend.zeros((m, n), dtype)

    def product() -> None:
        backend.product(A, B, C)
        # the norm is a number on the host: it waits for the product
        backend.norm(C[:1])

    return 2.0 * m * k * n / _seconds(product)


def _seconds(work: Callable[[], None]) -> float:
    """The best of three after a warm-up."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return max(min(times[1:]), 1e-9)
