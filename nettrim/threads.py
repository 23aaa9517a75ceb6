"""The thread count of BLAS, looked up once (a scan for its libraries takes 10 ms), and work without threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["Serial", "blas_threads", "limit"]


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


class Serial(Executor):
    """Work done at once, by the caller."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """The result of a call, at once."""
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **options))
        return future

    def map(self, fn: Callable[..., Any], *iterables: Any, timeout: Any = None, chunksize: int = 1) -> Iterator[Any]:
        """As the built-in; `fn` is called when its result is asked for."""
        return map(fn, *iterables)
