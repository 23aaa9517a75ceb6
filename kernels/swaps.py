"""Exchanges of one neuron's inputs on a quadratic model of its loss, compiled by Numba (see nettrim/exchange.py).

The model is q(w) = w^T G w - 2 b^T w over a few inputs, of which the basis S may be used. With K = G_SS^-1, w = K b_S,
B = G_TS K, g = b_T - G_TS w and s_t = G_tt - B_t G_St for the others T, taking i out of the basis costs w_i^2 / K_ii,
and putting t in its place gains (g_t + B_ti w_i / K_ii)^2 / (s_t + B_ti^2 / K_ii). The best exchange is found by trying
all pairs, and everything is updated for it, at a cost of |S| |F|.
"""

from __future__ import annotations

import numba as nb
import numpy as np

_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
#: a curvature that is left below this part of an input's own is rounding: the input depends on the basis
_DEPENDENT = 1e-7


@nb.njit(**_OPTIONS)
def _best(K, w, B, g, rest, own, group_s, group_t, locked):
    """(gain, slot, other) of the best exchange."""
    best, slot, other = 0.0, -1, -1
    for i in range(w.size):
        if locked[i]:
            continue
        cost, ratio, inverse = w[i] * w[i] / K[i, i], w[i] / K[i, i], 1.0 / K[i, i]
        for t in range(g.size):
            if group_t[t] != group_s[i]:
                continue
            curvature = rest[t] + B[t, i] * B[t, i] * inverse
            if curvature <= _DEPENDENT * own[t]:
                continue
            slope = g[t] + B[t, i] * ratio
            gain = slope * slope / curvature - cost
            if gain > best:
                best, slot, other = gain, i, t
    return best, slot, other


@nb.njit(**_OPTIONS)
def exchange(G, b, basis, others, group, locked, least, most):
    """Make the best exchanges, one after the other, while each gains more than `least`; `basis` and `others` change.

    `group` is that of each input: only inputs of one group are exchanged. Inputs that are `locked` stay. Returns the
    number of exchanges; they are not made at all if the basis is too dependent to begin with.
    """
    n, m = basis.size, others.size
    if n == 0 or m == 0:
        return 0
    K = np.linalg.inv(G[basis][:, basis])
    w = np.dot(K, b[basis])
    across = G[others][:, basis]
    B = np.dot(across, K)
    g = b[others] - np.dot(across, w)
    own, rest = np.empty(m), np.empty(m)
    for t in range(m):
        own[t] = G[others[t], others[t]]
        rest[t] = own[t] - np.dot(B[t], across[t])
    stay, group_s, group_t = locked[basis], group[basis], group[others]
    for i in range(n):
        if not K[i, i] > 0:
            return 0
    column, u = np.empty(n), np.empty(n)
    for count in range(most):
        gain, i, t = _best(K, w, B, g, rest, own, group_s, group_t, stay)
        if gain <= least:
            return count
        leaving, entering = basis[i], others[t]
        # out with input i: its row and column of K vanish
        scale, move = 1.0 / K[i, i], w[i] / K[i, i]
        for a in range(n):
            column[a] = K[a, i]
        for a in range(n):
            w[a] -= column[a] * move
            for c in range(n):
                K[a, c] -= column[a] * column[c] * scale
        w[i] = 0.0
        for a in range(n):
            K[a, i] = K[i, a] = 0.0
        for k in range(m):
            f = B[k, i] * scale
            g[k] += B[k, i] * move
            rest[k] += B[k, i] * f
            for a in range(n):
                B[k, a] -= f * column[a]
            B[k, i] = 0.0
        # in with the other: u = K G_S,t is its row of B
        u[:] = B[t]
        inside, slope = rest[t], g[t]
        step = slope / inside
        for a in range(n):
            w[a] -= u[a] * step
            for c in range(n):
                K[a, c] += u[a] * u[c] / inside
        w[i] = step
        for a in range(n):
            K[a, i] = K[i, a] = -u[a] / inside
        K[i, i] = 1.0 / inside
        basis[i], others[t] = entering, leaving
        for k in range(m):
            if k == t:
                continue
            mixed = G[others[k], entering]
            for a in range(n):
                if a != i:
                    mixed -= B[k, a] * G[basis[a], entering]
            f = mixed / inside
            g[k] -= f * slope
            rest[k] -= f * mixed
            for a in range(n):
                B[k, a] -= f * u[a]
            B[k, i] = f
        # the input that left is one of the others now
        own[t] = G[leaving, leaving]
        rest[t], g[t] = own[t], b[leaving]
        for a in range(n):
            total = 0.0
            for c in range(n):
                total += G[leaving, basis[c]] * K[c, a]
            B[t, a] = total
        for a in range(n):
            rest[t] -= B[t, a] * G[leaving, basis[a]]
            g[t] -= G[leaving, basis[a]] * w[a]
        group_t[t], group_s[i] = group_s[i], group_t[t]
    return most


@nb.njit(**_OPTIONS)
def prices(G, b, basis, others):
    """What each input of the basis costs to take out, and what each other one gains when put in, by itself."""
    n, m = basis.size, others.size
    costs, gains = np.zeros(n), np.zeros(m)
    across = G[others][:, basis]
    g, B = b[others].copy(), np.zeros((m, n))
    if n:
        K = np.linalg.inv(G[basis][:, basis])
        w = np.dot(K, b[basis])
        for i in range(n):
            costs[i] = w[i] * w[i] / K[i, i] if K[i, i] > 0 else 0.0
        B = np.dot(across, K)
        g -= np.dot(across, w)
    for t in range(m):
        own = G[others[t], others[t]]
        rest = own
        for a in range(n):
            rest -= B[t, a] * across[t, a]
        if rest > _DEPENDENT * own:
            gains[t] = g[t] * g[t] / rest
    return costs, gains
