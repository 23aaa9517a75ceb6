"""The systems of one neuron's working set, compiled by Numba: shared by active_set.py and path.py.

A basis is a list of inputs (0..n-1) and bounds (n..n+k-1) in use. Its system is [[G, A], [A^T, 0]] on these, shifted by
a small multiple of the identity, negative on the bounds, which makes it quasi-definite: solvable whatever the basis.
"""

from __future__ import annotations

import numba as nb
import numpy as np

#: reassociated sums where the order does not matter
FAST = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
#: halvings of a bisection
_HALVINGS = 40
#: error in K K^-1 x for x of order one up to which an inverse is used again
_ACCURATE = 1e-8
#: steps of iterative refinement of `affine`
_REFINE = 3


@nb.njit(**FAST)
def dot(a, b, n):
    total = 0.0
    for i in range(n):
        total += a[i] * b[i]
    return total


@nb.njit(**FAST)
def axpy(y, a, x, n):
    for i in range(n):
        y[i] += a * x[i]


@nb.njit(**OPTIONS)
def outputs(A, w, out):
    """out = A^T w."""
    for p in range(out.size):
        out[p] = 0.0
    for i in range(w.size):
        if w[i] != 0:
            axpy(out, w[i], A[i], out.size)


@nb.njit(**OPTIONS)
def quadratic(G, x, y):
    total = 0.0
    for i in range(x.size):
        if x[i] != 0:
            total += x[i] * dot(G[i], y, y.size)
    return total


@nb.njit(**OPTIONS)
def square(G, b, yy, w):
    """||X^T w - y||^2 for yy = ||y||^2."""
    return max(quadratic(G, w, w) - 2 * dot(b, w, w.size) + yy, 0.0)


@nb.njit(**OPTIONS)
def rms_norm(G, A):
    """Root mean square of the inputs' norms: the unit of the shifts, and of the bounds' rows beside G's."""
    n = G.shape[0]
    squares, bounds = 0.0, 0.0
    for i in range(n):
        squares += G[i, i]
        bounds += dot(A[i], A[i], A.shape[1])
    return np.sqrt(max(squares, bounds) / max(n, 1)) + 1e-300


@nb.njit(**OPTIONS)
def spread(i):
    """A fixed number in [1/2, 3/2) for every index, which keeps kinks apart."""
    x = 0.6180339887498949 * (i + 1)
    return 0.5 + x - np.floor(x)


@nb.njit(**OPTIONS)
def threshold(excess, most):
    """A level above which at most `most` of the positive entries lie, by bisection; 0 if there are not more."""
    high, count = 0.0, 0
    for i in range(excess.size):
        count += excess[i] > 0
        high = max(high, excess[i])
    low = 0.0
    if count <= most:
        return low
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        count = 0
        for i in range(excess.size):
            count += excess[i] > middle
        if count > most:
            low = middle
        else:
            high = middle
    return high


@nb.njit(**OPTIONS)
def largest(eta, most):
    """The bounds with a multiplier, the largest ones if there are more than `most`."""
    cut = threshold(eta, most)
    active = np.empty(eta.size, np.bool_)
    for p in range(eta.size):
        active[p] = eta[p] > cut and most > 0
    return active


@nb.njit(**OPTIONS)
def entry(G, A, n, i, j, shift):
    """Entry (i, j) of the system over all inputs (0..n-1) and bounds (n..), shifted to be quasi-definite."""
    if i < n and j < n:
        return G[i, j] + (shift if i == j else 0.0)
    if i < n:
        return A[i, j - n]
    if j < n:
        return A[j, i - n]
    return -shift if i == j else 0.0


@nb.njit(**OPTIONS)
def system(G, A, n, basis, m, shift):
    """The basis' system, m x m."""
    K = np.empty((m, m))
    for r in range(m):
        i = basis[r]
        for s in range(r + 1):
            K[r, s] = entry(G, A, n, i, basis[s], shift)
            K[s, r] = K[r, s]
    return K


@nb.njit(**OPTIONS)
def invert(K, inverse):
    """Inverse of K into the leading entries; whether there is one."""
    try:
        found = np.linalg.inv(K)
    except Exception:
        return False
    m = K.shape[0]
    for r in range(m):
        for s in range(m):
            inverse[r, s] = found[r, s]
    return True


@nb.njit(**OPTIONS)
def times(G, A, basis, m, shift, x, out, w, e):
    """out = K x for the basis' system K, from rows of G and A, without forming K; w (n) and e (k) are scratch."""
    n, k = A.shape
    w[:] = 0.0
    e[:] = 0.0
    bounds = False
    for r in range(m):
        if basis[r] < n:
            w[basis[r]] = x[r]
        else:
            e[basis[r] - n] = x[r]
            bounds = True
    for r in range(m):
        i = basis[r]
        if i < n:
            out[r] = dot(G[i], w, n) + shift * x[r]
            if bounds:
                out[r] += dot(A[i], e, k)
    if bounds:
        outputs(A, w, e)
        for r in range(m):
            if basis[r] >= n:
                out[r] = e[basis[r] - n] - shift * x[r]


@nb.njit(**OPTIONS)
def accurate(G, A, basis, m, shift, inverse):
    """Whether the inverse, in the leading entries, is one of the basis' system: times one vector, and back."""
    n, k = A.shape
    x, y = np.empty(m), np.empty(m)
    for r in range(m):
        y[r] = spread(r)
    for r in range(m):
        x[r] = dot(inverse[r], y, m)
    times(G, A, basis, m, shift, x, y, np.empty(n), np.empty(k))
    for r in range(m):
        # also false for what is not a number
        if not abs(y[r] - spread(r)) <= _ACCURATE:
            return False
    return True


@nb.njit(**OPTIONS)
def refine(G, A, basis, m, shift, inverse, right, w, e):
    """A step of iterative refinement of the basis' weights and multipliers, which solve K x = right."""
    n, k = A.shape
    x, rest = np.empty(m), np.empty(m)
    for r in range(m):
        x[r] = w[basis[r]] if basis[r] < n else e[basis[r] - n]
    times(G, A, basis, m, shift, x, rest, np.empty(n), np.empty(k))
    for r in range(m):
        rest[r] = right[r] - rest[r]
    for r in range(m):
        value = x[r] + dot(inverse[r], rest, m)
        if basis[r] < n:
            w[basis[r]] = value
        else:
            e[basis[r] - n] = value


@nb.njit(**OPTIONS)
def affine(G, b, C, A, bound, sign, basis, m, inverse, size, path_w, path_eta):
    """w0 - mu w1 and eta0 - mu eta1 on the basis, by the inverse and refinement on the system without shift."""
    n, k = A.shape
    right, x, y = np.empty(m), np.empty(m), np.empty(m)
    w, e = np.empty(n), np.empty(k)
    for half in range(2):
        for r in range(m):
            q = basis[r]
            if q < n:
                right[r] = b[q] if half == 0 else C[q] * sign[q]
            else:
                right[r] = bound[q - n] if half == 0 else 0.0
            x[r], y[r] = 0.0, right[r]
        for step in range(_REFINE):
            for r in range(m):
                x[r] += dot(inverse[r], y, m)
            if step + 1 < _REFINE:
                times(G, A, basis, m, 0.0, x, y, w, e)
                for r in range(m):
                    y[r] = right[r] - y[r]
        for i in range(n):
            path_w[half, i] = 0.0
        for p in range(k):
            path_eta[half, p] = 0.0
        for r in range(m):
            q = basis[r]
            if q < n:
                path_w[half, q] = x[r]
            else:
                path_eta[half, q - n] = x[r] * size
