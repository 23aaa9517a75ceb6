"""Devices the solver runs on. :func:`get` turns a name into a backend."""

from __future__ import annotations

from nettrim.backends.base import Backend

__all__ = ["NAMES", "Backend", "get"]

NAMES = ("auto", "numpy", "numba", "cupy")


def get(name: str, n_threads: int | None = None) -> Backend:
    """Backend called ``name``; ``"auto"`` is ``"numba"``. Imported on first use: Numba takes half a second.

    `n_threads` is for the backend's own passes; None means as many as BLAS uses.
    """
    if name in ("auto", "numba"):
        from nettrim.backends.numba_ import NumbaBackend

        return NumbaBackend(n_threads)
    if name == "numpy":
        from nettrim.backends.numpy_ import NumpyBackend

        return NumpyBackend()
    if name == "cupy":
        from nettrim.backends.cupy_ import CupyBackend

        return CupyBackend()
    raise ValueError(f"backend must be one of {', '.join(NAMES)}; got {name!r}")
