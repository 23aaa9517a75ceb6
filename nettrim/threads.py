"""The thread count of BLAS, looked up once: scanning a process for its libraries takes 10 ms."""

from __future__ import annotations

from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["blas_threads", "limit"]


@cache
def _controller() -> ThreadpoolController:
    import scipy.linalg.blas  # noqa: F401  the library must be loaded to be found

    return ThreadpoolController().select(user_api="blas")


def blas_threads() -> int:
    """Threads BLAS uses now."""
    return max((library["num_threads"] for library in _controller().info()), default=1)


def limit(n_threads: int) -> Any:
    """Context in which every BLAS of the process uses `n_threads`; the earlier numbers are restored afterwards."""
    return _controller().limit(limits=n_threads)
