"""The loss of a layer with its ReLU, as a sum over neurons, with products and passes for those who minimise it.

    loss(W) = || (W^T X - Y)_Omega ||^2 + || ((W^T X - V)_+)_notOmega ||^2

With V = 0 and outputs that stay positive on Omega it is the squared error after the ReLU. It is convex, differentiable
and piecewise quadratic: a neuron's Hessian is twice X_A X_A^T, A being Omega and the samples over their bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from nettrim.backends import get
from nettrim.problem import Problem
from nettrim.samples import operator_of
from nettrim.threads import Serial, blas_threads, limit

__all__ = ["ReluLoss"]

_NONE = np.zeros((1, 1))


class ReluLoss:
    """The loss of a problem's samples, on the CPU; its radius and the weights of its norm play no part.

    Parameters
    ----------
    problem : Problem
        Not one given by its second moments.
    n_threads : int, optional
        Default as many as BLAS uses.
    """

    def __init__(self, problem: Problem, n_threads: int | None = None):
        if problem.chunked:
            raise TypeError("X and Y must be arrays in memory here; got Chunked, which solve, sparsest and path take")
        self.problem, self.n_threads = problem, n_threads or blas_threads()
        backend = get("numba", self.n_threads)
        self.dtype, self.shape = problem.dtype, (problem.N, problem.M, problem.P)
        self.operator = operator_of(problem.X, backend, problem.dtype)
        self.target = backend.rowwise(problem.Y, problem.dtype)
        mask = np.broadcast_to(True, problem.Y.shape) if problem.mask is None else problem.mask
        self.mask = backend.rowwise(mask, bool)
        self.upper = backend.rowwise(problem.V, problem.dtype)
        self.no_shift = _NONE.astype(problem.dtype)

    @contextmanager
    def workers(self) -> Iterator[Executor]:
        """Threads for neurons and for products, with BLAS held to one in each."""
        if self.n_threads == 1:
            with limit(1):
                yield Serial()
            return
        with limit(1), ThreadPoolExecutor(self.n_threads) as pool:
            yield pool

    def outputs(self, pool: Executor, W: np.ndarray) -> np.ndarray:
        """``W^T X`` for some neurons' weights."""
        return self.operator.forward_on(pool, self.n_threads, np.ascontiguousarray(W, self.dtype))

    def adjoint(self, pool: Executor, R: np.ndarray) -> np.ndarray:
        """``X R^T``."""
        return self.operator.adjoint_on(pool, self.n_threads, R)

    def residuals(
        self, pool: Executor, Z: np.ndarray, neurons: np.ndarray, shift: np.ndarray | None = None, weight: float = 1.0
    ) -> np.ndarray:
        """In place Z <- half the loss's derivative by the outputs Z of these neurons; returns their losses.

        Off Omega the loss is ``weight max(Z - V + shift, 0)^2``.
        """
        from nettrim.kernels import relu

        shift = self.no_shift if shift is None else shift
        out = np.empty(len(neurons))
        blocks = min(self.n_threads, len(neurons))

        def part(b: int) -> None:
            s = slice(b * len(neurons) // blocks, (b + 1) * len(neurons) // blocks)
            for i in range(s.start, s.stop):
                rows = slice(neurons[i], neurons[i] + 1)
                relu.residuals(
                    *(Z[i : i + 1], self.target[rows], self.mask[rows], self.bound(rows)),
                    *(shift if shift.size == 1 else shift[i : i + 1], weight, out[i : i + 1]),
                )

        list(pool.map(part, range(blocks)))
        return out

    def bound(self, rows: Any) -> np.ndarray:
        """V of some neurons."""
        return self.upper if self.upper.size == 1 else self.upper[rows]

    def row(self, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Y, Omega and V of a neuron; copies where its samples are not adjacent."""
        rows = self.target[m], self.mask[m], self.bound(slice(m, m + 1))[0]
        return np.ascontiguousarray(rows[0]), np.ascontiguousarray(rows[1]), np.ascontiguousarray(rows[2])

    def error(self, pool: Executor, W: np.ndarray) -> np.ndarray:
        """Losses of all neurons at the (N, M) weights W."""
        return self.residuals(pool, self.outputs(pool, W), np.arange(W.shape[1]))
