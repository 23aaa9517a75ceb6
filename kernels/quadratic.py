"""One neuron's quadratic model, searched or descended on in one call, compiled by Numba (see nettrim/exchange.py)."""

from __future__ import annotations

import numba as nb
import numpy as np
from nettrim.kernels.passes import block_products, gather_block, gather_products
from nettrim.kernels.relu_newton import evaluate, factor, outputs, substitute
from nettrim.kernels.swaps import exchange
from nettrim.kernels.systems import FAST, OPTIONS

#: up to so many inputs the rows of a Hessian are gathered whole, and how many more samples the next one has, if needed
_WIDE, _MORE = 256, 16


@nb.njit(**FAST)
def curved(z, inside, v, over):
    """Samples where the loss has curvature at the outputs z: Omega, and those over their bound, noted in `over`."""
    P, flat, count = z.size, v.size == 1, 0
    # without branches, which the compiler then makes vector instructions of
    if flat:
        bound = v[0]
        for p in range(P):
            over[p] = (z[p] > bound) & (not inside[p])
    else:
        for p in range(P):
            over[p] = (z[p] > v[p]) & (not inside[p])
    for p in range(P):
        count += over[p] | inside[p]
    index, k = np.empty(count + 1, np.int64), 0
    for p in range(P):
        # always written, and kept if it counts
        index[k] = p
        k += over[p] | inside[p]
    return index[:count]


@nb.njit(**OPTIONS)
def promising(slope, norms, used, most):
    """The inputs that are not `used` with the largest slope^2 / norm, at most so many, in order of their numbers."""
    N = slope.size
    promise = np.zeros(N)
    if most == 0:
        return np.empty(0, np.int64)
    for n in range(N):
        if not used[n] and norms[n] > 0:
            promise[n] = slope[n] * slope[n] / norms[n]
    least = np.partition(promise, N - most)[N - most] if most < N else 0.0
    found, k = np.empty(most, np.int64), 0
    for n in range(N):
        if promise[n] > least:
            found[k] = n
            k += 1
    for n in range(N):
        if k < most and promise[n] == least and least > 0:
            found[k] = n
            k += 1
    return found[:k]


@nb.njit(**OPTIONS)
def search(X, z, inside, v, over, slope, norms, free, groups, support, weights, tried, least, ridge):
    """The model of a neuron over its support and the `tried` inputs that promise most, after its exchanges.

    Parameters
    ----------
    X : (N, P) array, row-major
    z, inside, v, over : arrays
        Its outputs, and its rows of Omega and V (of one entry if all have the same bound); `over` is written.
    slope : (N,) float64 array
        Half the derivatives of its loss.
    norms, free, groups : (N,) arrays
        Squared norms of the rows of X, whether an input stays in every support, and what it may be exchanged with.
    support, weights : arrays
        Its inputs, and their weights in float64.
    tried : int
    least : float
        What an exchange gains at least.
    ridge : float
        Over the mean of the diagonal.

    Returns
    -------
    tuple
        inputs, G, known, b, basis, others, weights, costs, gains, exchanges; see `nettrim.exchange._Model`.
    """
    s = support.size
    used = free.copy()
    used[support] = True
    inputs = np.concatenate((support, promising(slope, norms, used, min(tried, slope.size))))
    n = inputs.size
    block, G = gather_block(X, curved(z, inside, v, over), inputs), np.empty((n, n))
    block_products(block, s, G)
    size = 0.0
    for i in range(n):
        size += G[i, i] / n
    b = np.empty(n)
    for i in range(n):
        # a neuron that nothing reaches has no curvature at all
        G[i, i] += ridge * size if size > 0 else 1.0
        b[i] = -slope[inputs[i]]
    for i in range(s):
        for j in range(n):
            b[j] += weights[i] * G[i, j]
    basis, others, known = np.arange(s), np.arange(s, n), np.arange(n) < s
    made, w, costs, gains = exchange(G, b, basis, others, groups[inputs], free[inputs], least, 2 * s, known, block)
    return inputs, G, known, b, basis, others, w, costs, gains, made


@nb.njit(**OPTIONS)
def enter(inputs, G, b, basis, weights):
    """A model's basis and its products, in the order of the inputs, and its weights: the minimum if none are given."""
    order = np.argsort(inputs[basis])
    n, found = order.size, np.zeros(order.size)
    support, products, right = np.empty(n, np.int64), np.empty((n, n)), np.empty(n)
    for i in range(n):
        k = basis[order[i]]
        support[i], right[i] = inputs[k], b[k]
        for j in range(n):
            products[i, j] = G[k, basis[order[j]]]
    if weights.size == n:
        found[:] = weights[order]
    else:
        H = products.copy()
        if factor(H):
            substitute(H, right, found)
    return support, products, found


@nb.njit(**OPTIONS)
def _factor_near(X, support, w, inside, v, each, ridge, z, over, H):
    """In H the factor of the Hessian at the weights w, a sum over every k-th of its samples, `each` for every weight.

    Returns k, or 0 if there is no factor.
    """
    s = w.size
    outputs(X, support, w, z)
    index = curved(z, inside, v, over)
    k = max(1, index.size // max(1, each * s))
    part = index[::k].copy()
    if s <= _WIDE:
        block_products(gather_block(X, part, support), s, H)
    else:
        gather_products(X, part, support, 0, H)
    scale, size = index.size / max(1, part.size), 0.0
    for i in range(s):
        for j in range(s):
            H[i, j] *= scale
        size += H[i, i] / s
    for i in range(s):
        H[i, i] += ridge * size if size > 0 else 1.0
    return k if factor(H) else 0


@nb.njit(**OPTIONS)
def settle(X, support, w, y, inside, v, each, ridge, tol, hessians, steps, halvings):
    """In place, weights near the minimum of the loss on a support.

    Newton's method whose Hessian is a sum over every k-th of the samples that count, so that there are `each` for every
    weight, and serves for a few steps, which cost a pass over the rows. If a full step does not lower the loss, as
    where these samples do not have what an input needs, the next Hessian has more of them. It ends when a full step
    gains less than `tol` of the loss, or when with all of them nothing does.
    """
    s = w.size
    if s == 0:
        return
    z, over, H = np.empty(y.size, X.dtype), np.empty(y.size, np.bool_), np.empty((s, s))
    g, d, new, new_g = np.empty(s), np.empty(s), np.empty(s), np.empty(s)
    before = evaluate(X, support, w, y, inside, v, g)
    for _ in range(hessians):
        k = _factor_near(X, support, w, inside, v, each, ridge, z, over, H)
        if k == 0:
            return
        taken, t = 0, 1.0
        while taken < steps and t == 1.0:
            substitute(H, g, d)
            after = before
            for _ in range(halvings):
                for i in range(s):
                    new[i] = w[i] - t * d[i]
                after = evaluate(X, support, new, y, inside, v, new_g)
                if after < before:
                    break
                t *= 0.5
            if not after < before:
                break
            w[:], g[:] = new, new_g
            gain, before, taken = before - after, after, taken + 1
            if t == 1.0 and gain <= tol * after:
                return
        if taken == 0 and k == 1:
            return
        if t < 1.0 or taken == 0:
            each *= _MORE
