"""Exchanges of one neuron's inputs on a quadratic model of its loss, compiled by Numba (see nettrim/exchange.py).

The model is q(w) = w^T G w - 2 b^T w over a few inputs, of which the basis S may be used. With K = G_SS^-1, w = K b_S,
B = G_TS K, g = b_T - G_TS w and s_t = G_tt - B_t G_St for the others T, taking i out of the basis costs w_i^2 / K_ii,
and putting t in its place gains (g_t + B_ti w_i / K_ii)^2 / (s_t + B_ti^2 / K_ii). The best exchange is found by trying
all pairs, and everything is updated for it, at a cost of |S| |F|.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from nettrim.kernels.passes import block_product
from nettrim.kernels.systems import OPTIONS, axpy, dot

#: a curvature that is left below this part of an input's own is rounding: the input depends on the basis
_DEPENDENT = 1e-7


@nb.njit(**OPTIONS)
def _best(cost, ratio, inverse, B, g, rest, own, group_s, group_t):
    """(gain, slot, other) of the best exchange; an infinite cost is that of an input that stays."""
    best, slot, other = 0.0, -1, -1
    for t in range(g.size):
        row = B[t]
        for i in range(cost.size):
            curvature = rest[t] + row[i] * row[i] * inverse[i]
            slope = g[t] + row[i] * ratio[i]
            # as gain > best, without the division
            if slope * slope <= (best + cost[i]) * curvature:
                continue
            if group_t[t] == group_s[i] and curvature > _DEPENDENT * own[t]:
                best, slot, other = slope * slope / curvature - cost[i], i, t
    return best, slot, other


@nb.njit(**OPTIONS)
def _complete(G, known, t, block):
    """Make row t of G, and its column, if it is not known."""
    if not known[t]:
        for i in range(known.size):
            # the diagonal is there, with its ridge
            if i != t:
                G[t, i] = G[i, t] = block_product(block, t, i)
        known[t] = True


@nb.njit(**OPTIONS)
def exchange(G, b, basis, others, group, locked, least, most, known, block):
    """Make the best exchanges, one after the other, while each gains more than `least`; `basis` and `others` change.

    `group` is that of each input: only inputs of one group are exchanged. Inputs that are `locked` stay. Of G, the
    diagonal and the rows and columns that are `known` are there; those of inputs in the basis, or that enter it, are
    made of the rows of `block` (see passes.py).

    Returns the number of exchanges, the weights of the basis, what each of its inputs costs to take out then, by
    itself, and what each of the others gains when put in. If the basis is too dependent to begin with there are no
    exchanges, and no prices.
    """
    n, m = basis.size, others.size
    for i in range(n):
        _complete(G, known, basis[i], block)
    # without prices nothing leaves
    costs, gains = np.full(n, np.inf), np.zeros(m)
    K, w, B, g = np.empty((n, n)), np.empty(n), np.empty((m, n)), b[others]
    across = G[others][:, basis]
    if n:
        K = np.ascontiguousarray(np.linalg.inv(G[basis][:, basis]))
        w = np.dot(K, b[basis])
        B = np.dot(across, K)
        g -= np.dot(across, w)
    own, rest = np.empty(m), np.empty(m)
    for t in range(m):
        own[t] = G[others[t], others[t]]
        rest[t] = own[t] - dot(B[t], across[t], n)
    stay, group_s, group_t = locked[basis], group[basis], group[others]
    for i in range(n):
        if not K[i, i] > 0:
            return 0, w, costs, gains
    cost, ratio, inverse = np.empty(n), np.empty(n), np.empty(n)
    column, u, q = np.empty(n), np.empty(n), np.empty(n)
    made = 0
    while made < most:
        for i in range(n):
            inverse[i] = 1.0 / K[i, i]
            ratio[i] = w[i] * inverse[i]
            cost[i] = np.inf if stay[i] else w[i] * ratio[i]
        gain, i, t = _best(cost, ratio, inverse, B, g, rest, own, group_s, group_t)
        if gain <= least:
            break
        made += 1
        leaving, entering = basis[i], others[t]
        _complete(G, known, entering, block)
        # out with input i: its row and column of K vanish
        scale, move = inverse[i], ratio[i]
        column[:] = K[i]
        for a in range(n):
            axpy(K[a], -column[a] * scale, column, n)
        axpy(w, -move, column, n)
        w[i] = 0.0
        K[i, :] = 0.0
        K[:, i] = 0.0
        for k in range(m):
            f = B[k, i] * scale
            g[k] += B[k, i] * move
            rest[k] += B[k, i] * f
            axpy(B[k], -f, column, n)
            B[k, i] = 0.0
        # in with the other: u = K G_S,t is its row of B
        u[:] = B[t]
        inside, slope = rest[t], g[t]
        step = slope / inside
        axpy(w, -step, u, n)
        for a in range(n):
            axpy(K[a], u[a] / inside, u, n)
        w[i] = step
        for a in range(n):
            K[a, i] = K[i, a] = -u[a] / inside
            q[a] = G[entering, basis[a]]
        K[i, i] = 1.0 / inside
        # the one that has left has no part in this
        q[i] = 0.0
        basis[i], others[t] = entering, leaving
        for k in range(m):
            if k == t:
                continue
            mixed = G[entering, others[k]] - dot(B[k], q, n)
            f = mixed / inside
            g[k] -= f * slope
            rest[k] -= f * mixed
            axpy(B[k], -f, u, n)
            B[k, i] = f
        # the input that left is one of the others now
        own[t] = G[leaving, leaving]
        for a in range(n):
            q[a] = G[leaving, basis[a]]
        for a in range(n):
            B[t, a] = dot(K[a], q, n)
        rest[t] = own[t] - dot(B[t], q, n)
        g[t] = b[leaving] - dot(q, w, n)
        group_t[t], group_s[i] = group_s[i], group_t[t]
    for i in range(n):
        costs[i] = w[i] * w[i] / K[i, i]
    for t in range(m):
        if rest[t] > _DEPENDENT * own[t]:
            gains[t] = g[t] * g[t] / rest[t]
    return made, w, costs, gains
