"""Passes over outputs for the loss of a layer with its ReLU, compiled by Numba (see nettrim/relu_loss.py).

With Z = W^T X the loss of a neuron is the sum of (z - y)^2 over Omega and of weight max(z - v + shift, 0)^2 elsewhere.
``shift`` is M x P or 1 x 1, as ``upper`` is. Kernels handle whole rows, so that threads can share the rows of a layer.
One bound for all samples has loops of its own, of which the compiler makes vector instructions.
"""

from __future__ import annotations

import numba as nb
import numpy as np

_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz"}}


@nb.njit(**_OPTIONS)
def residual_row(z, y, inside, v, u, weight):
    """In place z <- half the derivative of a neuron's loss by its outputs z; returns the loss, in float64."""
    flat, still = v.size == 1, u.size == 1
    zero, heavy = z.dtype.type(0), z.dtype.type(weight)
    ball, excess = 0.0, 0.0
    if flat and still:
        bound = v[0] - u[0]
        for p in range(z.size):
            d = z[p] - y[p]
            e = max(z[p] - bound, zero)
            ball += np.float64(d) * d if inside[p] else 0.0
            excess += 0.0 if inside[p] else np.float64(e) * e
            z[p] = d if inside[p] else heavy * e
    else:
        for p in range(z.size):
            d = z[p] - y[p]
            e = max(z[p] - v[0 if flat else p] + u[0 if still else p], zero)
            ball += np.float64(d) * d if inside[p] else 0.0
            excess += 0.0 if inside[p] else np.float64(e) * e
            z[p] = d if inside[p] else heavy * e
    return ball + weight * excess


@nb.njit(**_OPTIONS)
def residuals(Z, target, mask, upper, shift, weight, out):
    """`residual_row` for every row of Z; out[m] = loss of neuron m."""
    flat, still = upper.size == 1, shift.size == 1
    for m in range(Z.shape[0]):
        v, u = upper[0 if flat else m], shift[0 if still else m]
        out[m] = residual_row(Z[m], target[m], mask[m], v, u, weight)


@nb.njit(**_OPTIONS)
def _loss_at(z, step, s, y, inside, v, u, weight):
    """The loss at the outputs z + s step."""
    flat, still, zero = v.size == 1, u.size == 1, z.dtype.type(0)
    ball, excess = 0.0, 0.0
    if flat and still:
        bound = v[0] - u[0]
        for p in range(z.size):
            new = z[p] + s * step[p]
            d = new - y[p]
            e = max(new - bound, zero)
            ball += np.float64(d) * d if inside[p] else 0.0
            excess += 0.0 if inside[p] else np.float64(e) * e
    else:
        for p in range(z.size):
            new = z[p] + s * step[p]
            d = new - y[p]
            e = max(new - v[0 if flat else p] + u[0 if still else p], zero)
            ball += np.float64(d) * d if inside[p] else 0.0
            excess += 0.0 if inside[p] else np.float64(e) * e
    return ball + weight * excess


@nb.njit(**_OPTIONS)
def descend(z, step, y, inside, v, u, weight, before, halvings):
    """In place z <- z + t step for the first t of 1, 1/2, 1/4, ... with a smaller loss than `before`.

    Returns t and the loss there; t = 0, and z as it was, if there is none.
    """
    t = 1.0
    for _ in range(halvings):
        s = z.dtype.type(t)
        after = _loss_at(z, step, s, y, inside, v, u, weight)
        if after < before:
            for p in range(z.size):
                z[p] += s * step[p]
            return t, after
        t *= 0.5
    return 0.0, before


@nb.njit(**_OPTIONS)
def crossings(z, inside, v, u, over):
    """Samples off Omega that now are over their bound and were not, and the other way round; `over` follows."""
    P = z.size
    flat, still, zero = v.size == 1, u.size == 1, z.dtype.type(0)
    now = np.empty(P, np.bool_)
    rising, falling = 0, 0
    # without branches, which the compiler then makes vector instructions of
    if flat and still:
        bound = v[0] - u[0]
        for p in range(P):
            now[p] = (z[p] - bound > zero) & (not inside[p])
    else:
        for p in range(P):
            now[p] = (z[p] - v[0 if flat else p] + u[0 if still else p] > zero) & (not inside[p])
    for p in range(P):
        rising += now[p] & (not over[p])
        falling += over[p] & (not now[p])
    up, down = np.empty(rising, np.int64), np.empty(falling, np.int64)
    if rising + falling == 0:
        return up, down
    i, j = 0, 0
    for p in range(P):
        if now[p] != over[p]:
            if now[p]:
                up[i] = p
                i += 1
            else:
                down[j] = p
                j += 1
        over[p] = now[p]
    return up, down


@nb.njit(**_OPTIONS)
def raise_shift(z, inside, v, shift):
    """shift <- max(z - v + shift, 0) off Omega, 0 on it: the step of the multipliers. Returns the largest z - v."""
    flat = v.size == 1
    largest = 0.0
    for p in range(z.size):
        e = z[p] - v[0 if flat else p]
        largest = largest if inside[p] else max(largest, np.float64(e))
        shift[p] = 0 if inside[p] else max(e + shift[p], z.dtype.type(0))
    return largest
