"""Arrays of other libraries, on the host or on a GPU: NumPy's view or copy of them, and results where they live.

Anything that speaks DLPack is accepted: torch tensors, CuPy and JAX arrays. The problem and its certificate are
NumPy's, so what lives on a GPU is copied to the host once, after the work that its stream still has to do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from nettrim.extras import install

__all__ = ["on_gpu", "place_of", "to_host"]

#: DLPack's codes of memory that the host can read
_HOST = (1, 3)
#: and of CUDA's
_CUDA = (2, 13)


def to_host(a: Any, name: str) -> np.ndarray:
    """NumPy array of what `a` holds: without a copy if it is on the host.

    Parameters
    ----------
    a : array of any library, or a nested sequence of numbers
    name : str
        The argument, for errors.

    Raises
    ------
    TypeError
        NumPy has no such dtype (bfloat16), or the memory is of a device that is neither the host nor a CUDA GPU.
    ValueError
        The array cannot be shared (a tensor that requires a gradient, a sparse one); the message says why.
    ImportError
        It is on a GPU and CuPy is missing.
    """
    # NumPy's own do not go through DLPack, which refuses read-only ones
    if not hasattr(a, "__dlpack_device__") or (isinstance(a, np.ndarray) and not on_gpu(a)):
        return np.asarray(a)
    try:
        kind, index = a.__dlpack_device__()
        if kind in _HOST:
            return np.from_dlpack(a)
        if kind in _CUDA:
            cp = _cupy(name)
            with cp.cuda.Device(index):
                # what the producer's stream has still to do to the array is done before CuPy's copies it
                return cp.asnumpy(a if isinstance(a, cp.ndarray) else cp.from_dlpack(a))
    except (BufferError, RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0].rstrip(".")
        if "dtype" in text:
            raise TypeError(f"{name} must be float32 or float64: {text}") from error
        raise ValueError(f"{name} cannot be shared with NumPy: {text}") from error
    raise TypeError(f"{name} must be in the memory of the host or of a CUDA GPU; got {type(a).__name__}")


def place_of(a: Any) -> Callable[[np.ndarray], Any]:
    """Function that puts a NumPy result where `a` lives: on its GPU for torch and CuPy to use, else as it is."""
    if not on_gpu(a):
        return _same
    index = a.__dlpack_device__()[1]
    is_torch = type(a).__module__.split(".")[0] == "torch"

    def put(result: np.ndarray) -> Any:
        cp = _cupy("X")
        with cp.cuda.Device(index):
            there = cp.asarray(result)
            # whoever has a tensor has imported torch
            return sys.modules["torch"].from_dlpack(there) if is_torch else there

    return put


def _same(result: np.ndarray) -> np.ndarray:
    return result


def on_gpu(a: Any) -> bool:
    """Whether `a` is an array in the memory of a CUDA GPU."""
    return hasattr(a, "__dlpack_device__") and a.__dlpack_device__()[0] in _CUDA


def _cupy(name: str) -> Any:
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            f"{name} is on a GPU, and copying it needs CuPy: {install('cuda12')}, or cuda13, by the version of CUDA"
        ) from error
    return cupy
