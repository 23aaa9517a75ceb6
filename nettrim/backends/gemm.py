"""Matrix products by SciPy's BLAS on any blocks of row-major or column-major arrays, without the GIL.

SciPy's own wrapper copies what is not contiguous, a block of columns say. This one passes the leading dimension on, so
that threads can write their blocks of one product. The functions are those that SciPy publishes for Cython.

Where products alternate with other work on the same threads, `product` on BLAS limited to one thread beats BLAS's own
threads: OpenBLAS's keep spinning for some 30 ms after a product, and take the cores from what comes next.
"""

from __future__ import annotations

import ctypes
import itertools
from concurrent.futures import Executor
from functools import cache
from typing import Any

import numpy as np

__all__ = ["gemm", "product", "syrk"]

#: leading dimensions are BLAS integers of 32 bits
_LARGEST = 2**31 - 1


_KINDS = {np.dtype(np.float32): ("sgemm", ctypes.c_float), np.dtype(np.float64): ("dgemm", ctypes.c_double)}


@cache
def _function(name: str, arguments: int) -> Any:
    """A function of ``scipy.linalg.cython_blas``, all of whose arguments are pointers."""
    # it takes longer to import than all the rest of nettrim
    from scipy.linalg import cython_blas

    get_name, get_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = cython_blas.__pyx_capi__[name]
    # CFUNCTYPE releases the GIL during the call
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(get_pointer(capsule, get_name(capsule)))


def _operand(A: np.ndarray) -> tuple[np.ndarray, bytes, int]:
    """(array, b"N" if its rows are contiguous, leading dimension); a copy if neither rows nor columns are."""
    rows, columns = A.shape
    item = A.itemsize
    if A.strides[1] == item or columns == 1:
        step, flag, least = A.strides[0], b"N", columns
    elif A.strides[0] == item or rows == 1:
        step, flag, least = A.strides[1], b"T", rows
    else:
        return _operand(np.ascontiguousarray(A))
    leading, rest = divmod(step, item)
    if (rows if flag == b"N" else columns) == 1:
        # the stride of a single row means nothing
        leading, rest = least, 0
    if rest or leading < least or (A.strides[0 if flag == b"T" else 1] != item and least > 1):
        return _operand(np.ascontiguousarray(A))
    return A, flag, max(leading, 1)


def gemm(A: np.ndarray, B: np.ndarray, C: np.ndarray, alpha: float = 1.0, beta: float = 0.0) -> None:
    """``C <- alpha A B + beta C`` in place.

    Parameters
    ----------
    A, B : (m, k) and (k, n) arrays of one dtype, float32 or float64
    C : (m, n) array of that dtype
        Rows contiguous, at any distance from each other.
    alpha, beta : float

    Raises
    ------
    ValueError
        Shapes or dtypes do not fit, the rows of C are not contiguous, or a side or a distance of rows exceeds 32 bits.
    """
    name, real = _KINDS[C.dtype]
    function = _function(name, 13)
    (m, n), k = C.shape, A.shape[1]
    if (A.shape, B.shape) != ((m, k), (k, n)) or not A.dtype == B.dtype == C.dtype:
        # BLAS would read past the end of an array
        raise ValueError(f"{A.dtype} {A.shape} by {B.dtype} {B.shape} does not fit {C.dtype} {C.shape}")
    if m == 0 or n == 0:
        return
    if k == 0:
        C *= beta
        return
    A, flag_a, lda = _operand(A)
    B, flag_b, ldb = _operand(B)
    target, flag_c, ldc = _operand(C)
    if target is not C or flag_c != b"N":
        raise ValueError("the rows of C must be contiguous")
    if max(m, n, k, lda, ldb, ldc) > _LARGEST:
        raise ValueError(f"a product of {m} x {k} by {k} x {n} exceeds the integers of BLAS")
    # row-major C = A B is column-major C^T = B^T A^T; operands whose rows are contiguous are transposed already
    numbers = [ctypes.c_int(i) for i in (n, m, k, ldb, lda, ldc)]
    N, M, K, LDB, LDA, LDC = (ctypes.addressof(i) for i in numbers)
    scalars = real(alpha), real(beta)
    flags = ctypes.c_char(flag_b), ctypes.c_char(flag_a)
    function(
        ctypes.addressof(flags[0]),
        ctypes.addressof(flags[1]),
        N,
        M,
        K,
        ctypes.addressof(scalars[0]),
        B.ctypes.data,
        LDB,
        A.ctypes.data,
        LDA,
        ctypes.addressof(scalars[1]),
        C.ctypes.data,
        LDC,
    )


def syrk(A: np.ndarray, C: np.ndarray) -> None:
    """``C <- A A^T + C`` in place, the lower triangle.

    Parameters
    ----------
    A : (m, k) float64 array
    C : (m, m) float64 array, column-major

    Raises
    ------
    ValueError
        Shapes, dtypes or the order of C do not fit, or a side or a distance of rows exceeds 32 bits.
    """
    m, k = A.shape
    if C.shape != (m, m) or not A.dtype == C.dtype == np.float64 or not C.flags.f_contiguous:
        # BLAS would read or write past the end of an array
        raise ValueError(f"{A.dtype} {A.shape} times its transpose does not fit {C.dtype} {C.shape}, column-major")
    if m == 0 or k == 0:
        return
    A, flag, lda = _operand(A)
    if max(m, k, lda) > _LARGEST:
        raise ValueError(f"a product of {m} x {k} by {k} x {m} exceeds the integers of BLAS")
    numbers = [ctypes.c_int(i) for i in (m, k, lda)]
    M, K, LDA = (ctypes.addressof(i) for i in numbers)
    one = ctypes.c_double(1.0)
    ONE = ctypes.addressof(one)
    # row-major A is column-major A^T
    flags = ctypes.c_char(b"L"), ctypes.c_char(b"T" if flag == b"N" else b"N")
    L, T = (ctypes.addressof(f) for f in flags)
    _function("dsyrk", 10)(L, T, M, K, ONE, A.ctypes.data, LDA, ONE, C.ctypes.data, M)


def product(pool: Executor, blocks: int, A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """``A B`` by `blocks` tasks of the pool, each a block of the longer side of the product."""
    C = np.empty((A.shape[0], B.shape[1]), A.dtype)
    side = 0 if C.shape[0] >= C.shape[1] else 1
    # whole cache lines to each
    edges = np.linspace(0, C.shape[side] // 16, blocks + 1).astype(int) * 16
    edges[-1] = C.shape[side]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges.tolist()) if a < b]
    if side == 0:
        work = [pool.submit(gemm, A[s], B, C[s]) for s in parts]
    else:
        work = [pool.submit(gemm, A, B[:, s], C[:, s]) for s in parts]
    for task in work:
        task.result()
    return C
