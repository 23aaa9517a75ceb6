"""Algorithm 5.1 of Aghasi, Abdi, Romberg (2020) as published: the baseline of bench/solvers.py.

Plain NumPy in float64: X and Y divided by c0 = 0.3 sqrt(max X X^T), a fixed rho, one Cholesky factor, two triangular
solves an iteration, no relaxation, no adaptation, W2 returned as it is. It is given every fairness that does not
change the algorithm: temporaries are reused, the mask is precomputed, and its products and its solves run in one
BLAS (SciPy's), because NumPy's and SciPy's wheels carry two OpenBLAS thread pools that would wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from scipy.linalg import blas, lapack


def proximal_steps(
    T: np.ndarray, Y: np.ndarray, mask: np.ndarray, radius: float, W1: np.ndarray, B: np.ndarray, rho: float
) -> np.ndarray:
    """W1 <- projection of T, in place: the ball on Omega, the half-space z <= 0 elsewhere; returns W2."""
    np.subtract(T, Y, out=W1)
    W1 *= mask
    flat = W1.ravel(order="K")
    norm = np.sqrt(np.vdot(flat, flat))
    if norm > radius:
        W1 *= radius / norm
    W1 += Y
    np.minimum(T, 0, out=W1, where=~mask)
    return np.sign(B) * np.maximum(np.abs(B) - 1 / rho, 0)


def published_admm(
    X: np.ndarray, Y: np.ndarray, mask: np.ndarray, epsilon: float, rho: float, check_every: int
) -> Iterator[tuple[int, float, np.ndarray, np.ndarray]]:
    """Iterate for ever; yield (iteration, seconds, W2, multipliers of the unscaled problem) every `check_every`.

    X is N x P, Y and mask M x P, float64. The time spent by the caller between two yields is not counted.
    """
    began, away = time.perf_counter(), 0.0
    N, P = X.shape
    M = Y.shape[0]
    gram = blas.dsyrk(1.0, X.T, trans=1, lower=1)
    c0 = 0.3 * np.sqrt(gram.max())
    Xs, Ys, radius = X / c0, Y / c0, epsilon / c0
    system = gram / c0**2
    system[np.diag_indices(N)] += 1
    factor, info = lapack.dpotrf(system, lower=1, overwrite_a=1)
    if info:
        raise np.linalg.LinAlgError("X X^T + I is not positive definite")
    # state and work arrays, all in the order BLAS writes: (P, M) and (N, M) column-major
    Ys, mask = np.asfortranarray(Ys.T), np.asfortranarray(mask.T)
    W3, U2 = np.zeros((N, M), order="F"), np.zeros((N, M), order="F")
    U1, Z, T, W1 = (np.zeros((P, M), order="F") for _ in range(4))
    XF = np.asfortranarray(Xs.T)  # P x N
    iteration = 0
    while True:
        iteration += 1
        np.subtract(Z, U1, out=T)
        W2 = proximal_steps(T, Ys, mask, radius, W1, W3 - U2, rho)
        if iteration % check_every == 0:
            pause = time.perf_counter()
            yield iteration, pause - began - away, W2, (rho / c0) * (T - W1).T
            away += time.perf_counter() - pause
        U1 += W1
        right = blas.dgemm(1.0, XF, U1, trans_a=1) + W2 + U2
        W3 = blas.dtrsm(1.0, factor, right, lower=1)
        W3 = blas.dtrsm(1.0, factor, W3, lower=1, trans_a=1)
        Z = blas.dgemm(1.0, XF, W3, c=Z, overwrite_c=1)
        U1 -= Z
        U2 += W2 - W3
