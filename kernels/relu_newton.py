"""Newton's method for one neuron of few inputs, compiled by Numba (see nettrim/relu_newton.py for the derivation).

The products are sums over the rows of X that the neuron uses, a chunk of samples at a time, so that the residuals stay
in the nearest cache while the rows pass by: s P multiplications each, where those of a whole layer take N P.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from nettrim.kernels.passes import gather_products
from nettrim.kernels.relu import crossings, descend, residual_row
from nettrim.kernels.systems import FAST, OPTIONS, dot

#: samples of a chunk
_CHUNK = 2048


@nb.njit(**FAST)
def outputs(X, inputs, w, z):
    """z = w^T X over the rows `inputs` of X, in the dtype of X."""
    P = z.size
    for start in range(0, P, _CHUNK):
        stop = min(start + _CHUNK, P)
        part = z[start:stop]
        part[:] = 0
        k = 0
        # four rows at a time: a quarter of the loads and stores of z
        while k + 4 <= w.size:
            a, b, c, d = X.dtype.type(w[k]), X.dtype.type(w[k + 1]), X.dtype.type(w[k + 2]), X.dtype.type(w[k + 3])
            A, B = X[inputs[k], start:stop], X[inputs[k + 1], start:stop]
            C, D = X[inputs[k + 2], start:stop], X[inputs[k + 3], start:stop]
            for p in range(part.size):
                part[p] += a * A[p] + b * B[p] + c * C[p] + d * D[p]
            k += 4
        while k < w.size:
            a, A = X.dtype.type(w[k]), X[inputs[k], start:stop]
            for p in range(part.size):
                part[p] += a * A[p]
            k += 1


@nb.njit(**FAST)
def adjoint(X, inputs, r, g):
    """g = X r over the rows `inputs` of X; sums of a chunk in the dtype of X, of all in float64."""
    P, zero = r.size, X.dtype.type(0)
    g[:] = 0.0
    for start in range(0, P, _CHUNK):
        stop = min(start + _CHUNK, P)
        part = r[start:stop]
        for k in range(inputs.size):
            A, total = X[inputs[k], start:stop], zero
            for p in range(part.size):
                total += A[p] * part[p]
            g[k] += total


@nb.njit(**OPTIONS)
def solve(H, g, x):
    """x = H^-1 g by Cholesky, with the factor in the lower triangle of H; False, and x unchanged, if there is none."""
    n = g.size
    for i in range(n):
        for j in range(i + 1):
            rest = H[i, j] - dot(H[i], H[j], j)
            if i > j:
                H[i, j] = rest / H[j, j]
            elif rest > 0:
                H[i, i] = np.sqrt(rest)
            else:
                return False
    for i in range(n):
        x[i] = (g[i] - dot(H[i], x, i)) / H[i, i]
    for i in range(n - 1, -1, -1):
        x[i] /= H[i, i]
        for j in range(i):
            x[j] -= H[i, j] * x[i]
    return True


@nb.njit(**OPTIONS)
def minimise(X, inputs, w, z, y, inside, v, u, weight, ball, excess, over, tol, ridge, steps, halvings):
    """In place, the weights of the rows `inputs` of X at the loss's minimum, and their outputs.

    Parameters
    ----------
    X : (N, P) array, row-major
    inputs : (s,) int array
    w : (s,) float64 array
    z : (P,) array
        w^T X on entry, in the dtype of X.
    y, inside, v, u : arrays
        The neuron's rows of Y, Omega, V and the shift; the last two may have one entry.
    weight : float
        Of the loss off Omega.
    ball, excess : (s, s) float64 arrays
        X_A X_A^T for Omega, and for the samples `over`, which both change.
    over : (P,) bool array
    tol, ridge, steps, halvings
        As in relu_newton.py.
    """
    s, P = inputs.size, z.size
    r, moved = np.empty(P, z.dtype), np.empty(P, z.dtype)
    g, d, H, G = np.empty(s), np.empty(s), np.empty((s, s)), np.empty((s, s))
    for _ in range(steps):
        r[:] = z
        before = residual_row(r, y, inside, v, u, weight)
        adjoint(X, inputs, r, g)
        up, down = crossings(z, inside, v, u, over)
        if up.size:
            gather_products(X, up, inputs, 0, G)
            excess += G
        if down.size:
            gather_products(X, down, inputs, 0, G)
            excess -= G
        size = 0.0
        for i in range(s):
            for j in range(s):
                H[i, j] = ball[i, j] + weight * excess[i, j]
            size += H[i, i] / s
        for i in range(s):
            H[i, i] += ridge * size if size > 0 else 1.0
        if not solve(H, g, d):
            # rounding has made it indefinite: a shorter step along the gradient still falls
            most = 0.0
            for i in range(s):
                total = 0.0
                for j in range(s):
                    total += abs(ball[i, j] + weight * excess[i, j])
                most = max(most, total)
            for i in range(s):
                d[i] = g[i] / most
        for i in range(s):
            d[i] = -d[i]
        outputs(X, inputs, d, moved)
        t, after = descend(z, moved, y, inside, v, u, weight, before, halvings)
        for i in range(s):
            w[i] += t * d[i]
        if t == 0 or before - after <= tol * before:
            return
