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

#: samples of a chunk, and of one whose rows are to stay in the cache too
_CHUNK, _SHORT = 2048, 1024


@nb.njit(**FAST)
def _outputs_from(X, inputs, w, start, z):
    """z = w^T X over the rows `inputs` of X, for the samples from `start` on that z has room for."""
    stop = start + z.size
    z[:] = 0
    k = 0
    # four rows at a time: a quarter of the loads and stores of z
    while k + 4 <= w.size:
        a, b, c, d = X.dtype.type(w[k]), X.dtype.type(w[k + 1]), X.dtype.type(w[k + 2]), X.dtype.type(w[k + 3])
        A, B = X[inputs[k], start:stop], X[inputs[k + 1], start:stop]
        C, D = X[inputs[k + 2], start:stop], X[inputs[k + 3], start:stop]
        for p in range(z.size):
            z[p] += a * A[p] + b * B[p] + c * C[p] + d * D[p]
        k += 4
    while k < w.size:
        a, A = X.dtype.type(w[k]), X[inputs[k], start:stop]
        for p in range(z.size):
            z[p] += a * A[p]
        k += 1


@nb.njit(**FAST)
def _add_adjoint_from(X, inputs, r, start, g):
    """g += X r over the rows `inputs` of X, for the samples from `start` on that r is of; sums in the dtype of X."""
    stop = start + r.size
    for k in range(inputs.size):
        A, total = X[inputs[k], start:stop], X.dtype.type(0)
        for p in range(r.size):
            total += A[p] * r[p]
        g[k] += total


@nb.njit(**OPTIONS)
def outputs(X, inputs, w, z):
    """z = w^T X over the rows `inputs` of X, in the dtype of X."""
    for start in range(0, z.size, _CHUNK):
        _outputs_from(X, inputs, w, start, z[start : start + _CHUNK])


@nb.njit(**OPTIONS)
def adjoint(X, inputs, r, g):
    """g = X r over the rows `inputs` of X; sums of a chunk in the dtype of X, of all in float64."""
    g[:] = 0.0
    for start in range(0, r.size, _CHUNK):
        _add_adjoint_from(X, inputs, r[start : start + _CHUNK], start, g)


@nb.njit(**OPTIONS)
def evaluate(X, inputs, w, y, inside, v, g):
    """The loss at the weights w of the rows `inputs` of X, and g = half its derivative: one pass over these rows.

    Nothing of the size of a row is made: the residuals of a chunk are used while they and the rows are in the cache.
    """
    P, total = y.size, 0.0
    r, still = np.empty(_SHORT, X.dtype), np.zeros(1, X.dtype)
    g[:] = 0.0
    for start in range(0, P, _SHORT):
        stop = min(start + _SHORT, P)
        here = r[: stop - start]
        _outputs_from(X, inputs, w, start, here)
        bound = v if v.size == 1 else v[start:stop]
        total += residual_row(here, y[start:stop], inside[start:stop], bound, still, 1.0)
        _add_adjoint_from(X, inputs, here, start, g)
    return total


@nb.njit(**OPTIONS)
def substitute(L, g, x):
    """x = (L L^T)^-1 g for a lower triangular L."""
    n = g.size
    for i in range(n):
        x[i] = (g[i] - dot(L[i], x, i)) / L[i, i]
    for i in range(n - 1, -1, -1):
        x[i] /= L[i, i]
        for j in range(i):
            x[j] -= L[i, j] * x[i]


@nb.njit(**OPTIONS)
def factor(H):
    """Cholesky's factor, in the lower triangle of H; False if there is none."""
    for i in range(H.shape[0]):
        for j in range(i + 1):
            rest = H[i, j] - dot(H[i], H[j], j)
            if i > j:
                H[i, j] = rest / H[j, j]
            elif rest > 0:
                H[i, i] = np.sqrt(rest)
            else:
                return False
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
        if factor(H):
            substitute(H, g, d)
        else:
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
