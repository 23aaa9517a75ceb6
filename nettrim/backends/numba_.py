"""The CPU backend: fused Numba passes around SciPy's BLAS.

All products go through SciPy's BLAS, never NumPy's: wheels of the two carry separate OpenBLAS libraries, and two
thread pools that take turns on the same cores wait for each other (see docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.linalg import blas

from nettrim.backends.numpy_ import NumpyBackend
from nettrim.kernels import cpu
from nettrim.threads import blas_threads

_GEMM = {np.dtype(np.float32): blas.sgemm, np.dtype(np.float64): blas.dgemm}


#: entries below which a block of rows is not worth a thread (about 30 microseconds of streaming)
_MIN_BLOCK = 1 << 16


def _operand(A: np.ndarray) -> tuple[np.ndarray, int]:
    """(F-ordered array, trans flag) such that BLAS reads ``A.T`` without a copy."""
    if A.flags.c_contiguous:
        return A.T, 0
    if A.flags.f_contiguous:
        return A, 1
    return np.ascontiguousarray(A).T, 0


class NumbaBackend(NumpyBackend):
    """See :class:`nettrim.backends.base.Backend` for what each function promises."""

    name = "numba"

    def __init__(self, n_threads: int | None = None):
        self.n_threads = n_threads or blas_threads()
        self._pool = ThreadPoolExecutor(max(1, self.n_threads - 1), thread_name_prefix="nettrim")

    def product(
        self, A: np.ndarray, B: np.ndarray, out: np.ndarray | None = None, alpha: float = 1.0, beta: float = 0.0
    ) -> np.ndarray:
        # row-major C = A B is column-major C^T = B^T A^T
        left, left_trans = _operand(B)
        right, right_trans = _operand(A)
        gemm = _GEMM[A.dtype]
        if out is None:
            return gemm(alpha, left, right, trans_a=left_trans, trans_b=right_trans).T
        gemm(alpha, left, right, beta=beta, c=out.T, trans_a=left_trans, trans_b=right_trans, overwrite_c=1)
        return out

    def ball_norms(self, T: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
        out = np.empty(T.shape[0])
        self._rows(cpu.ball_norms, T.shape, (T, target, mask), (out,))
        return out

    def project_relax(
        self, T: np.ndarray, target: np.ndarray, mask: np.ndarray, upper: np.ndarray, scale: np.ndarray, alpha: float
    ) -> None:
        self._rows(cpu.project_relax, T.shape, (T, target, mask, upper, scale), (), alpha)

    def soft_relax(self, T2: np.ndarray, threshold: np.ndarray, alpha: float) -> None:
        self._rows(cpu.soft_relax, T2.shape, (T2, threshold), (), alpha)

    def multiplier_sums(self, Q: np.ndarray, target: np.ndarray, mask: np.ndarray, upper: np.ndarray) -> np.ndarray:
        out = np.empty((Q.shape[0], 3))
        self._rows(cpu.multiplier_sums, Q.shape, (Q, target, mask, upper), (out,))
        return out

    def violation_sums(self, Z: np.ndarray, target: np.ndarray, mask: np.ndarray, upper: np.ndarray) -> np.ndarray:
        out = np.empty((Z.shape[0], 3))
        self._rows(cpu.violation_sums, Z.shape, (Z, target, mask, upper), (out,))
        return out

    def residual_sums(
        self, T: np.ndarray, Z: np.ndarray, target: np.ndarray, mask: np.ndarray, upper: np.ndarray, scale: np.ndarray
    ) -> np.ndarray:
        out = np.empty((T.shape[0], 3))
        self._rows(cpu.residual_sums, T.shape, (T, Z, target, mask, upper, scale), (out,))
        return out

    def _rows(
        self,
        kernel: Callable[..., None],
        shape: tuple[int, ...],
        inputs: tuple[np.ndarray, ...],
        outputs: tuple[np.ndarray, ...],
        *constants: float,
    ) -> None:
        """Run a kernel on blocks of rows, one a thread; arrays with a single row go to every block whole."""
        rows = shape[0]
        blocks = min(self.n_threads, rows, 1 + shape[0] * shape[1] // _MIN_BLOCK)

        def part(b: int) -> None:
            s = slice(b * rows // blocks, (b + 1) * rows // blocks)
            kernel(*(a if a.shape[0] == 1 < rows else a[s] for a in inputs), *constants, *(a[s] for a in outputs))

        if blocks == 1:
            kernel(*inputs, *constants, *outputs)
            return
        pending = [self._pool.submit(part, b) for b in range(1, blocks)]
        part(0)
        for future in pending:
            future.result()
