"""One neuron's solution along a path, a kink at a time: a parametric active set, compiled by Numba.

The linear term on the support, the costs of inputs that want to enter and the bounds that are violated start where the
present weights are optimal (see active_set.py for the program) and move linearly to their values. The solution is
piecewise linear in between; at each kink one input or one bound enters or leaves the basis, and the inverse of its
system is updated by rank one. So the path arrives from anywhere, at a price in proportion to the changes.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from nettrim.kernels.systems import (
    OPTIONS,
    accurate,
    affine,
    axpy,
    dot,
    entry,
    invert,
    largest,
    outputs,
    refine,
    spread,
    system,
)

#: pivot, in units of the inputs, below which an update is not trusted, and kinks after which the inverse is checked
_DEPENDENT, _REFRESH = 1e-5, 100
#: distance of the bounds that a path is followed to from the true ones, relative to the tolerance of a violation
_APART = 0.03
#: distance at which costs and bounds start from those of the present weights
_AHEAD = 0.01
#: what happens at a kink: nothing, a weight reaches zero, a gradient its cost from above or below, a multiplier zero,
#: an output its bound
_NOTHING, _ZERO, _LOWER, _UPPER, _FREE, _MET = 0, 1, 2, 3, 4, 5
#: flops of a matrix product in the time of an entry that a kink reads or changes: scalar code, bound by memory
_ENTRY = 10.0


@nb.njit(**OPTIONS)
def _reuse(G, A, n, shift, basis, position, m, kept, kept_inverse, inverse):
    """Take over an earlier path's basis order and inverse, if it has the same members and is still accurate."""
    if kept.size != m:
        return False
    for r in range(m):
        q = kept[r] if kept[r] >= 0 else n - 1 - kept[r]
        if position[q] < 0:
            return False
    for r in range(m):
        q = kept[r] if kept[r] >= 0 else n - 1 - kept[r]
        basis[r], position[q] = q, r
    for r in range(m):
        for s in range(m):
            inverse[r, s] = kept_inverse[r, s]
    return accurate(G, A, basis, m, shift, inverse)


@nb.njit(**OPTIONS)
def _first_basis(C, w, e, basis, position, sign):
    """The support, what is not penalised, and the bounds with a multiplier; returns its size."""
    n, k = w.size, e.size
    position[:] = -1
    m = 0
    for i in range(n):
        sign[i] = 0.0
        if w[i] != 0 or C[i] == 0:
            sign[i] = -1.0 if w[i] < 0 else 1.0
            basis[m], position[i] = i, m
            m += 1
    # more active bounds than inputs are dependent: near w = 0 all of them are
    active = largest(e, m)
    for p in range(k):
        if active[p]:
            basis[m], position[n + p] = n + p, m
            m += 1
        else:
            e[p] = 0.0
    return m


@nb.njit(**OPTIONS)
def _departure(b, bound, x, z, position, sign, g, cost, df, dc, dv, at):
    """Where (w, e) is optimal: f = -b + left df, costs and bounds, whose distances to their values are df, dc and dv.

    x = G w + shift w + A e, z = A^T w - shift e; g is set to x + f, at to the bounds.
    """
    n, k = b.size, bound.size
    typical, reach = 0.0, 0.0
    for i in range(n):
        typical = max(typical, cost[i])
        g[i] = x[i] - b[i]
        df[i] = dc[i] = 0.0
    for i in range(n):
        if position[i] >= 0:
            df[i] = x[i] - b[i] + sign[i] * cost[i]
            g[i] = -sign[i] * cost[i]
        elif abs(g[i]) >= cost[i]:
            start = abs(g[i]) + _AHEAD * (typical + abs(g[i])) * spread(i)
            dc[i] = cost[i] - start
            cost[i] = start
    for p in range(k):
        reach = max(reach, abs(z[p] - bound[p]))
    for p in range(k):
        dv[p] = 0.0
        if position[n + p] >= 0:
            dv[p] = bound[p] - z[p]
        elif z[p] >= bound[p]:
            dv[p] = bound[p] - (z[p] + _AHEAD * reach * spread(p) + 1e-300)
        at[p] = bound[p] - dv[p]


@nb.njit(**OPTIONS)
def _rates(G, A, basis, m, position, sign, direction, df, dc, dw, de, dg, dz):
    """Rates of weights, multipliers, gradients and outputs, from those on the basis."""
    n, k = dw.size, de.size
    for i in range(n):
        dw[i] = 0.0
    for p in range(k):
        de[p] = 0.0
    for r in range(m):
        if basis[r] < n:
            dw[basis[r]] = direction[r]
        else:
            de[basis[r] - n] = direction[r]
    outputs(A, dw, dz)
    for i in range(n):
        if position[i] >= 0:
            dg[i] = -sign[i] * dc[i]
        else:
            dg[i] = df[i] + dot(G[i], dw, n) + dot(A[i], de, k)


@nb.njit(**OPTIONS)
def _first_kink(C, position, sign, w, g, cost, e, z, at, dw, dg, dc, de, dz, dv, left, last, side):
    """Length to the first kink ahead, its index and kind; and whether the last kink's index turns back at once.

    `last` has just been exchanged: what left starts on one of its limits (`side`), and may only reach the other.
    """
    n, k = w.size, e.size
    t, which, kind = left, -1, _NOTHING
    wrong = False
    for i in range(n):
        if position[i] >= 0:
            if C[i] > 0 and dw[i] * sign[i] < 0:
                if i == last and w[i] == 0:
                    wrong = True
                    continue
                length = -w[i] / dw[i]
                if length < t:
                    t, which, kind = length, i, _ZERO
        else:
            up, down = dg[i] - dc[i], -dg[i] - dc[i]
            if up > 0 and not (i == last and side < 0):
                length = (cost[i] - g[i]) / up
                if length < t:
                    t, which, kind = length, i, _LOWER
            if down > 0 and not (i == last and side > 0):
                length = (cost[i] + g[i]) / down
                if length < t:
                    t, which, kind = length, i, _UPPER
    for p in range(k):
        if position[n + p] >= 0:
            if de[p] < 0:
                if n + p == last and e[p] == 0:
                    wrong = True
                    continue
                length = -e[p] / de[p]
                if length < t:
                    t, which, kind = length, n + p, _FREE
        elif n + p != last:
            ahead = dz[p] - dv[p]
            if ahead > 0:
                length = (at[p] - z[p]) / ahead
                if length < t:
                    t, which, kind = length, n + p, _MET
    return max(t, 0.0), which, kind, wrong


@nb.njit(**OPTIONS)
def _remove(which, basis, position, m, inverse, direction, most):
    """Take an index out of the basis; returns whether inverse and direction could be updated.

    An inverse with a diagonal entry above `most` there belonged to dependent sets: updating would carry its errors on.
    """
    r = position[which]
    position[which] = -1
    m -= 1
    if r != m:
        basis[r] = basis[m]
        position[basis[r]] = r
        for j in range(m + 1):
            inverse[r, j], inverse[m, j] = inverse[m, j], inverse[r, j]
        for j in range(m + 1):
            inverse[j, r], inverse[j, m] = inverse[j, m], inverse[j, r]
    pivot = inverse[m, m]
    # also for what is not a number
    if not abs(pivot) < most:
        return False
    along = direction[r] / pivot
    direction[r] = direction[m]
    for i in range(m):
        direction[i] -= along * inverse[m, i]
        factor = inverse[i, m] / pivot
        if factor != 0:
            axpy(inverse[i], -factor, inverse[m], m)
    return True


@nb.njit(**OPTIONS)
def _insert(G, A, which, rate, shift, basis, position, m, inverse, direction, column, u):
    """Put an index, whose right-hand side moves at `rate`, into the basis; returns the size of the pivot."""
    n = G.shape[0]
    for r in range(m):
        column[r] = entry(G, A, n, basis[r], which, shift)
    for r in range(m):
        u[r] = dot(inverse[r], column, m)
    pivot = entry(G, A, n, which, which, shift) - dot(column, u, m)
    size = abs(pivot)
    # by quasi-definiteness at least the shift, with the sign of the diagonal
    pivot = max(pivot, shift) if which < n else min(pivot, -shift)
    along = (rate - dot(column, direction, m)) / pivot
    direction[m] = along
    for i in range(m):
        direction[i] -= along * u[i]
        factor = u[i] / pivot
        if factor != 0:
            axpy(inverse[i], factor, u, m)
        inverse[i, m] = -factor
        inverse[m, i] = -factor
    inverse[m, m] = 1 / pivot
    basis[m], position[which] = which, m
    return size


@nb.njit(**OPTIONS)
def _again(G, A, basis, m, shift, inverse, work):
    """The inverse of the basis' system, made anew; whether there is one."""
    work[0] += 2.0 * m * m * m
    return invert(system(G, A, G.shape[0], basis, m, shift), inverse)


@nb.njit(**OPTIONS)
def follow(G, b, C, A, v, mu, path_w, path_eta, w, eta, feasible, size, shift, kept, kept_inverse, limit, work):
    """Follow the exact solution from a problem that (w, eta) solves to this one; in place.

    `size` is the unit of the bounds' rows, `shift` that of the systems in its square, `kept` and `kept_inverse` what
    the neuron's last path ended with: the inputs and bounds (bound p as -1 - p) of its system, and the inverse, which
    is used again if (w, eta) still has these sets. `work` is what the path takes, in flops of matrix products of the
    same time, and the most that it may take. Returns (arrived, kinks, kept, kept_inverse); path_w and path_eta get the
    affine solution w0 - mu w1 of the last piece.

    The shift makes the solution unique and bounds the condition where inputs or bounds are dependent: below 1e-8 the
    inverse loses its digits there. `exact` removes it.
    """
    n, k = A.shape
    nothing, no_inverse = np.empty(0, np.int64), np.empty((0, 0))
    shift = shift * size * size
    # bounds in the units of the inputs' products; each is moved by less than the tolerance, since near w = 0 all bounds
    # of a ReLU meet in one point, which a path could not leave
    scaled, bound, e = np.empty((n, k)), np.empty(k), np.empty(k)
    for i in range(n):
        for p in range(k):
            scaled[i, p] = A[i, p] * size
    A = scaled
    for p in range(k):
        bound[p] = (v[p] + _APART * feasible * spread(p)) * size
        e[p] = eta[p] / size
    cap = n + k
    basis, position, sign = np.empty(cap, np.int64), np.empty(cap, np.int64), np.empty(n)
    m = _first_basis(C, w, e, basis, position, sign)
    inverse = np.empty((cap, cap))
    if not _reuse(G, A, n, shift, basis, position, m, kept, kept_inverse, inverse):
        if not _again(G, A, basis, m, shift, inverse, work):
            return False, 0, nothing, no_inverse
    x, z, cost = np.empty(n), np.empty(k), np.empty(n)
    outputs(A, w, z)
    for p in range(k):
        z[p] -= shift * e[p]
    for i in range(n):
        x[i] = dot(G[i], w, n) + shift * w[i] + dot(A[i], e, k)
        cost[i] = mu * C[i]
    g, at, df, dc, dv = np.empty(n), np.empty(k), np.empty(n), np.empty(n), np.empty(k)
    _departure(b, bound, x, z, position, sign, g, cost, df, dc, dv, at)
    left, last, side, fresh = 1.0, -1, 0.0, True
    dw, de, dg, dz = np.empty(n), np.empty(k), np.empty(n), np.empty(k)
    direction, right, column, u = np.empty(cap), np.empty(cap), np.empty(cap), np.empty(cap)
    for step in range(limit):
        work[0] += _ENTRY * (n * (n + k) + 2.0 * m * m)
        if work[0] > work[1]:
            return False, step, nothing, no_inverse
        if fresh:
            for r in range(m):
                q = basis[r]
                right[r] = -df[q] - sign[q] * dc[q] if q < n else dv[q - n]
            for r in range(m):
                direction[r] = dot(inverse[r], right, m)
        total = 0.0
        for r in range(m):
            total += direction[r]
        wrong = not np.isfinite(total)
        if not wrong:
            _rates(G, A, basis, m, position, sign, direction, df, dc, dw, de, dg, dz)
            t, which, kind, wrong = _first_kink(
                C, position, sign, w, g, cost, e, z, at, dw, dg, dc, de, dz, dv, left, last, side
            )
            wrong = wrong and not fresh
        if wrong:
            if (fresh and not np.isfinite(total)) or not _again(G, A, basis, m, shift, inverse, work):
                return False, step, nothing, no_inverse
            fresh = True
            continue
        for i in range(n):
            w[i] += t * dw[i]
            g[i] += t * dg[i]
            cost[i] += t * dc[i]
        for p in range(k):
            e[p] += t * de[p]
            z[p] += t * dz[p]
            at[p] += t * dv[p]
        left -= t
        if which < 0 or left <= 0:
            for p in range(k):
                eta[p] = max(e[p], 0.0) * size
                bound[p] = v[p] * size
            affine(G, b, C, A, bound, sign, basis, m, inverse, size, path_w, path_eta)
            for r in range(m):
                if basis[r] >= n:
                    basis[r] = n - 1 - basis[r]
            return True, step + 1, basis[:m].copy(), inverse[:m, :m].copy()
        last, fresh = which, False
        if kind == _ZERO or kind == _FREE:
            if kind == _ZERO:
                w[which], g[which] = 0.0, -sign[which] * cost[which]
                side, sign[which] = sign[which], 0.0
            else:
                e[which - n], z[which - n] = 0.0, at[which - n]
            trusted = _remove(which, basis, position, m, inverse, direction, 1 / (_DEPENDENT * size * size))
            m -= 1
            if not trusted:
                if not _again(G, A, basis, m, shift, inverse, work):
                    return False, step, nothing, no_inverse
                fresh = True
        else:
            if kind == _LOWER:
                sign[which], g[which] = -1.0, cost[which]
            elif kind == _UPPER:
                sign[which], g[which] = 1.0, -cost[which]
            rate = -df[which] - sign[which] * dc[which] if which < n else dv[which - n]
            pivot = _insert(G, A, which, rate, shift, basis, position, m, inverse, direction, column, u)
            m += 1
            if pivot < _DEPENDENT * size * size and not accurate(G, A, basis, m, shift, inverse):
                if not _again(G, A, basis, m, shift, inverse, work):
                    return False, step, nothing, no_inverse
                fresh = True
        if (step + 1) % _REFRESH == 0:
            if not accurate(G, A, basis, m, shift, inverse):
                if not _again(G, A, basis, m, shift, inverse, work):
                    return False, step, nothing, no_inverse
            for r in range(m):
                q = basis[r]
                right[r] = b[q] + left * df[q] - sign[q] * cost[q] if q < n else at[q - n]
            refine(G, A, basis, m, shift, inverse, right, w, e)
            outputs(A, w, z)
            for p in range(k):
                z[p] -= shift * e[p]
            for i in range(n):
                g[i] = dot(G[i], w, n) + shift * w[i] + dot(A[i], e, k) - b[i] - left * df[i]
            fresh = True
    for p in range(k):
        eta[p] = max(e[p], 0.0) * size
    return False, limit, nothing, no_inverse
