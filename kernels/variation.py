"""Accelerated projected gradient for differences along the edges of a graph (see nettrim/penalties/variation.py)."""

from __future__ import annotations

import numba as nb
import numpy as np
from nettrim.kernels.systems import OPTIONS


@nb.njit(**OPTIONS)
def _soft(x, level):
    if x > level:
        return x - level
    if x < -level:
        return x + level
    return 0.0


@nb.njit(**OPTIONS)
def fused(b, c, beta, step, ends, q, w, iterations):
    """One neuron's ``min over w of sum c |w| + beta sum |w_j - w_i| + ||w - b||^2 / 2`` through its dual.

    `ends` is (E, 2): the edges (i, j). `q` is (E,), the dual variable, |q| <= beta, from where it starts and is left;
    `w` receives the weights. `step` is one over the largest eigenvalue of the graph's Laplacian, or less. Nesterov's
    acceleration starts again when the steps turn round (O'Donoghue, Candes 2015).
    """
    E, N = ends.shape[0], b.size
    z, r = q.copy(), np.empty(N)
    t = 1.0
    for _ in range(iterations):
        for i in range(N):
            r[i] = b[i]
        for e in range(E):
            r[ends[e, 0]] += z[e]
            r[ends[e, 1]] -= z[e]
        for i in range(N):
            r[i] = _soft(r[i], c[i])
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * t * t))
        momentum = (t - 1.0) / following
        turned = 0.0
        for e in range(E):
            old = q[e]
            new = min(max(z[e] + step * (r[ends[e, 1]] - r[ends[e, 0]]), -beta), beta)
            turned += (z[e] - new) * (new - old)
            q[e] = new
            z[e] = new + momentum * (new - old)
        t = following
        if turned > 0.0:
            t = 1.0
            for e in range(E):
                z[e] = q[e]
    for i in range(N):
        w[i] = b[i]
    for e in range(E):
        w[ends[e, 0]] += q[e]
        w[ends[e, 1]] -= q[e]
    for i in range(N):
        w[i] = _soft(w[i], c[i])


@nb.njit(**OPTIONS)
def fused_all(B, C, tau, beta, step, ends, Q, W, iterations):
    """`fused` of every neuron: B, C and W are (M, N), Q is (M, E) in units of tau."""
    for m in range(B.shape[0]):
        q = Q[m] * tau
        fused(B[m], C[m] * tau, beta * tau, step, ends, q, W[m], iterations)
        for e in range(q.size):
            Q[m, e] = q[e] / tau
