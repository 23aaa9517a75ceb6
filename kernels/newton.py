"""One neuron's equality-constrained Newton system on its support, compiled by Numba (see nettrim/polish.py)."""

from __future__ import annotations

import numba as nb
import numpy as np

#: samples gathered at a time: 256 x 512 float64 stay in the second-level cache
_CHUNK = 512
#: relative shift that keeps the system solvable when inputs or active bounds are dependent
_SHIFT = 1e-13


@nb.njit(cache=True, nogil=True)
def support_moments(X, y, inside, support):
    """X_S X_S^T, X_S y and y.y over the samples with ``inside``, in float64; X is N x P, C-ordered."""
    F = support.size
    G, b, yy = np.zeros((F, F)), np.zeros(F), 0.0
    index = np.flatnonzero(inside)
    for start in range(0, index.size, _CHUNK):
        stop = min(start + _CHUNK, index.size)
        block = np.empty((F, stop - start))
        for i in range(F):
            row = X[support[i]]
            for q in range(start, stop):
                block[i, q - start] = row[index[q]]
        G += np.dot(block, block.T)
        for q in range(start, stop):
            target = np.float64(y[index[q]])
            yy += target * target
            for i in range(F):
                b[i] += block[i, q - start] * target
    return G, b, yy


@nb.njit(cache=True, nogil=True)
def solve_neuron(G, b, yy, B, v, cost):
    """Minimiser of mu cost.w + ||X^T w - y||^2 / 2 subject to B^T w = v, as w0 - mu w1, for every mu at once.

    The optimality conditions G w + B eta = b - mu cost, B^T w = v are linear in mu. Returns w0, w1, eta0, eta1 (F and
    K entries) and c, a with ||X^T w - y||^2 = c + mu^2 a.
    """
    F, K = B.shape
    if F == 0:
        return np.zeros(0), np.zeros(0), np.zeros(K), np.zeros(K), yy, 0.0
    # one symmetric indefinite system: a neuron that is rarely active has a singular G which only the bounds complete
    size = np.sqrt(np.trace(G) / F) + 1e-300
    system, right = np.zeros((F + K, F + K)), np.zeros((F + K, 2))
    system[:F, :F] = G
    system[:F, F:] = B * size
    system[F:, :F] = B.T * size
    for i in range(F + K):
        system[i, i] += _SHIFT * size**2 * (1.0 if i < F else -1.0)
    right[:F, 0], right[:F, 1], right[F:, 0] = b, cost, v * size
    solved = np.linalg.solve(system, right)
    w0, w1 = solved[:F, 0].copy(), solved[:F, 1].copy()
    eta0, eta1 = solved[F:, 0] * size, solved[F:, 1] * size
    c = max(np.dot(w0, np.dot(G, w0)) - 2 * np.dot(b, w0) + yy, 0.0)
    a = max(np.dot(w1, np.dot(G, w1)), 0.0)
    return w0, w1, eta0, eta1, c, a
