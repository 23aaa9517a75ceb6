"""One neuron's program on its working set, compiled by Numba (see nettrim/working_set.py and docs/algorithm).

    minimise    mu sum_i C_i |w_i| + 1/2 w.G w - b.w      subject to  A^T w <= v

with G = X_F X_F^T and b = X_F y over the neuron's samples in the ball, A = X_F over the samples whose bound is watched.
It is the program with the ball's multiplier lambda = 1 / mu, divided by lambda, so that mu = 0 is an ordinary value.

Two methods take turns. `exact` solves the equality-constrained system on a guessed support and guessed active bounds and
corrects the guess by whole blocks (a primal-dual active set): quick when the guess is good, and not always convergent.
`follow` changes the problem continuously from one that the present weights solve into this one, and exchanges one index
at each kink of the path (a parametric active set): it arrives from anywhere, at a price in proportion to the changes.
"""

from __future__ import annotations

import numba as nb
import numpy as np

_FAST = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
#: samples gathered at a time, and rows of a block of the symmetric product
_CHUNK, _ROWS = 512, 64
#: relative shift that keeps the systems solvable when inputs or active bounds are dependent
_SHIFT = 1e-13
#: relative shift of the systems of `follow`, and kinks after which their inverse is computed afresh
_PATH_SHIFT, _REFRESH = 1e-11, 100
#: distance of the bounds that a path is followed to from the true ones, relative to the tolerance of a violation
_APART = 0.03
#: steps of iterative refinement of the solution at the end of a path
_REFINE = 3
#: sets grow by at most one part in this many, but by this many in any case, in one correction of `exact`
_PART, _LEAST = 2, 10


@nb.njit(**_FAST)
def _dot(a, b, n):
    total = 0.0
    for i in range(n):
        total += a[i] * b[i]
    return total


@nb.njit(**_FAST)
def _axpy(y, a, x, n):
    for i in range(n):
        y[i] += a * x[i]


@nb.njit(**_OPTIONS)
def gather_products(X, index, rows, old, G):
    """Fill G[old:, :] and G[:, old:] with the products of rows `rows` of X over the samples `index`, in float64.

    The leading old x old block is left as it is.
    """
    n = rows.size
    for i in range(old, n):
        for j in range(n):
            G[i, j] = 0.0
    for start in range(0, index.size, _CHUNK):
        stop = min(start + _CHUNK, index.size)
        block = np.empty((n, stop - start))
        for i in range(n):
            row = X[rows[i]]
            for q in range(start, stop):
                block[i, q - start] = row[index[q]]
        for first in range(old, n, _ROWS):
            last = min(first + _ROWS, n)
            G[first:last, :last] += np.dot(block[first:last], block[:last].T)
    for i in range(old, n):
        for j in range(i):
            G[j, i] = G[i, j]


@nb.njit(**_OPTIONS)
def gather_columns(X, rows, columns, out):
    """out[i, k] = X[rows[i], columns[k]]."""
    for i in range(rows.size):
        row = X[rows[i]]
        for k in range(columns.size):
            out[i, k] = row[columns[k]]


@nb.njit(**_OPTIONS)
def judge_row(z, y, inside, upper, level):
    """Turn outputs z into residuals on Omega (zero elsewhere), and list the violated bounds off Omega.

    Returns the samples with z - v > level, their excess, the squared residual and the squared excess over the bounds.
    """
    P = z.size
    constant = upper.size == 1
    count, square, excess = 0, 0.0, 0.0
    for p in range(P):
        if inside[p]:
            z[p] -= y[p]
            square += np.float64(z[p]) * z[p]
        else:
            z[p] -= upper[0] if constant else upper[p]
            if z[p] > 0:
                excess += np.float64(z[p]) * z[p]
            if z[p] > level:
                count += 1
    samples, over, k = np.empty(count, np.int64), np.empty(count), 0
    for p in range(P):
        if not inside[p]:
            if z[p] > level:
                samples[k], over[k] = p, z[p]
                k += 1
            z[p] = 0
    return samples, over, square, excess


@nb.njit(**_OPTIONS)
def _largest(excess, most):
    """Indices of the positive entries, the largest ones if there are more than `most`."""
    index = np.flatnonzero(excess > 0)
    if index.size > most:
        index = index[np.argsort(-excess[index])[:most]]
    return index


@nb.njit(**_OPTIONS)
def _size(G, A):
    """Root mean square of the inputs' norms: the unit of the shifts, and of the bounds' rows beside G's."""
    n = G.shape[0]
    squares, bounds = 0.0, 0.0
    for i in range(n):
        squares += G[i, i]
        bounds += _dot(A[i], A[i], A.shape[1])
    return np.sqrt(max(squares, bounds) / max(n, 1)) + 1e-300


@nb.njit(**_OPTIONS)
def _system(G, b, cost, A, v, S, J, signs, size):
    """w0, w1 on S and eta0, eta1 on J with G w + A eta = b - mu cost signs, A^T w = v, for every mu at once."""
    s, k = S.size, J.size
    K, right = np.zeros((s + k, s + k)), np.zeros((s + k, 2))
    for i in range(s):
        row = G[S[i]]
        for j in range(s):
            K[i, j] = row[S[j]]
        for j in range(k):
            K[i, s + j] = A[S[i], J[j]] * size
            K[s + j, i] = K[i, s + j]
        K[i, i] += _SHIFT * size * size
        right[i, 0], right[i, 1] = b[S[i]], cost[S[i]] * signs[S[i]]
    for j in range(k):
        K[s + j, s + j] = -_SHIFT * size * size
        right[s + j, 0] = v[J[j]] * size
    try:
        solved = np.linalg.solve(K, right)
    except Exception:
        solved = np.full((s + k, 2), np.nan)
    return solved[:s, 0], solved[:s, 1], solved[s:, 0] * size, solved[s:, 1] * size


@nb.njit(**_OPTIONS)
def exact(G, b, yy, C, A, v, mu, path, signs, active, w, eta, tol, feasible, attempts):
    """Active-set corrections from the guess (signs, active); whether one was verified within the tolerances.

    `path` (4 rows: w0, w1 of n entries, eta0, eta1 of k, in two arrays) holds the last affine solution w0 - mu w1; it is
    tried first. On success w, eta, path, signs and active describe the solution; the guess is left as last corrected
    otherwise. Returns (verified, systems solved, c, a) with ||X^T w - y||^2 = c + mu^2 a along the path.
    """
    n, k = A.shape
    cost = C
    floor = 0.0
    for i in range(n):
        floor = max(floor, cost[i])
    size = _size(G, A)
    # weights whose part in the outputs is far below the tolerance are zero: near w = 0 rounding decides their signs
    tiny = 1e-3 * feasible / size
    w0, w1, eta0, eta1 = path[0][0], path[0][1], path[1][0], path[1][1]
    solved = 0
    for attempt in range(attempts + 1):
        if attempt > 0:
            S = np.flatnonzero(signs != 0)
            J = np.flatnonzero(active)
            if S.size == 0 and J.size > 0:
                J = J[:0]
            w0[:], w1[:], eta0[:], eta1[:] = 0.0, 0.0, 0.0, 0.0
            if S.size > 0:
                a0, a1, e0, e1 = _system(G, b, cost, A, v, S, J, signs, size)
                solved += 1
                for i in range(S.size):
                    w0[S[i]], w1[S[i]] = a0[i], a1[i]
                for j in range(J.size):
                    eta0[J[j]], eta1[J[j]] = e0[j], e1[j]
        new_w = w0 - mu * w1
        new_eta = eta0 - mu * eta1
        if not np.isfinite(new_w.sum() + new_eta.sum()):
            return False, solved, np.inf, 0.0
        g = np.dot(G, new_w) - b
        excess = np.zeros(k)
        if k > 0:
            g += np.dot(A, new_eta)
            excess = np.dot(new_w, A) - v
        # what is wrong with the guess
        rounding = -1e-12 * np.max(np.abs(new_eta)) if k > 0 else 0.0
        over = np.zeros(n)
        bad, kept, bound = 0, 0, 0
        for i in range(n):
            allowed = mu * (cost[i] if cost[i] > 0 else floor) * tol
            if signs[i] != 0:
                if abs(g[i] + mu * cost[i] * signs[i]) > max(allowed, 1e-9 * abs(b[i])):
                    # dependent inputs: the system was not solved
                    bad += 1
                if new_w[i] * signs[i] < 0 and cost[i] > 0 and abs(new_w[i]) <= tiny:
                    new_w[i] = 0.0
                    kept += 1
                    if abs(w0[i]) <= tiny:
                        w0[i], w1[i] = 0.0, 0.0
                elif new_w[i] * signs[i] < 0 and cost[i] > 0:
                    bad += 1
                    if attempt > 0:
                        signs[i] = 0.0
                else:
                    kept += 1
            else:
                # an old path may have used another input
                bad += new_w[i] != 0
                beyond = abs(g[i]) - mu * cost[i]
                if beyond > allowed:
                    over[i] = beyond
                    bad += 1
        for p in range(k):
            if active[p]:
                if new_eta[p] < rounding:
                    bad += 1
                    if attempt > 0:
                        active[p] = False
                else:
                    bound += 1
                    # dependent bounds: the system was not solved
                    bad += abs(excess[p]) > feasible
                excess[p] = 0.0
            else:
                bad += new_eta[p] != 0
                if excess[p] > feasible:
                    bad += 1
                else:
                    excess[p] = 0.0
        if bad == 0:
            w[:], eta[:] = new_w, np.maximum(new_eta, 0.0)
            Gw0, Gw1 = np.dot(G, w0), np.dot(G, w1)
            c = max(np.dot(w0, Gw0) - 2 * np.dot(b, w0) + yy, 0.0)
            return True, solved, c, max(np.dot(w1, Gw1), 0.0)
        if attempt == 0:
            # the old path only had to be tried: the guess for the first system comes from w and eta
            continue
        for i in _largest(over, max(_LEAST, kept // _PART)):
            signs[i] = -1.0 if g[i] > 0 else 1.0
        for p in _largest(excess, max(_LEAST, bound // _PART)):
            active[p] = True
    return False, solved, np.inf, 0.0


@nb.njit(**_OPTIONS)
def _entry(G, A, n, i, j, shift):
    """Entry (i, j) of the system over all inputs (0..n-1) and bounds (n..), shifted to be quasi-definite."""
    if i < n and j < n:
        return G[i, j] + (shift if i == j else 0.0)
    if i < n:
        return A[i, j - n]
    if j < n:
        return A[j, i - n]
    return -shift if i == j else 0.0


@nb.njit(**_OPTIONS)
def _invert(G, A, n, basis, m, shift, inverse):
    """Inverse of the basis' system into the leading m x m entries; whether there is one."""
    K = np.empty((m, m))
    for i in range(m):
        for j in range(m):
            K[i, j] = _entry(G, A, n, basis[i], basis[j], shift)
    try:
        inverse[:m, :m] = np.linalg.inv(K)
    except Exception:
        return False
    return True


@nb.njit(**_OPTIONS)
def follow(G, b, C, A, v, mu, w, eta, path, feasible, limit):
    """Follow the exact solution from a problem that (w, eta) solves to this one; in place. Returns (arrived, steps).

    The linear term on the support, the costs of inputs that want to enter and the bounds that are violated start where
    (w, eta) is optimal and move linearly to their values. The solution is piecewise linear in between; at each kink one
    input or one bound enters or leaves, and the inverse of the system of those in use is updated (parametric active
    set). The system is shifted by a relative 1e-11, which makes the solution unique; `exact` removes the shift.
    """
    n, k = A.shape
    size = _size(G, A)
    shift = _PATH_SHIFT * size * size
    # bounds in the units of the inputs' products; each is moved by less than the tolerance, since near w = 0 all bounds
    # of a ReLU meet in one point, which a path could not leave
    A = A * size
    bound = np.empty(k)
    for p in range(k):
        bound[p] = (v[p] + _APART * feasible * _spread(p)) * size
    e = eta / size
    cap = n + k
    basis, position = np.empty(cap, np.int64), np.full(cap, -1)
    sign = np.zeros(n)
    m = 0
    for i in range(n):
        if w[i] != 0 or C[i] == 0:
            sign[i] = -1.0 if w[i] < 0 else 1.0
            basis[m], position[i] = i, m
            m += 1
    # more active bounds than inputs are dependent: near w = 0 all of them are
    active = _bounds(e, m)
    for p in range(k):
        if active[p]:
            basis[m], position[n + p] = n + p, m
            m += 1
        else:
            e[p] = 0.0
    inverse = np.empty((cap, cap))
    if not _invert(G, A, n, basis, m, shift, inverse):
        return False, 0
    # where (w, e) is optimal: g = G w + shift w + A e + f with f = -b off the support
    x = np.dot(G, w) + shift * w
    z = np.zeros(k)
    if k > 0:
        x += np.dot(A, e)
        z = np.dot(w, A) - shift * e
    g = x - b
    cost, dc, df = mu * C, np.zeros(n), np.zeros(n)
    dv = np.zeros(k)
    typical = 0.0
    for i in range(n):
        typical = max(typical, cost[i])
    for i in range(n):
        if position[i] >= 0:
            f0 = -sign[i] * cost[i] - x[i]
            df[i] = -b[i] - f0
            g[i] = -sign[i] * cost[i]
        elif abs(g[i]) >= cost[i]:
            start = abs(g[i]) + 0.01 * (typical + abs(g[i])) * _spread(i)
            dc[i] = cost[i] - start
            cost[i] = start
    reach = 0.0
    for p in range(k):
        reach = max(reach, abs(z[p] - bound[p]))
    for p in range(k):
        if position[n + p] >= 0:
            dv[p] = bound[p] - z[p]
        elif z[p] >= bound[p]:
            start = z[p] + 0.01 * reach * _spread(p) + 1e-300
            dv[p] = bound[p] - start
    at = bound - dv
    left, last, fresh = 1.0, -1, True
    dw, de, dg, dz = np.zeros(n), np.zeros(k), np.empty(n), np.empty(k)
    direction, right = np.empty(cap), np.empty(cap)
    for step in range(limit):
        if fresh:
            for r in range(m):
                q = basis[r]
                right[r] = -df[q] - sign[q] * dc[q] if q < n else dv[q - n]
            for r in range(m):
                direction[r] = _dot(inverse[r], right, m)
        if not np.isfinite(np.sum(direction[:m])):
            if fresh or not _invert(G, A, n, basis, m, shift, inverse):
                return False, step
            fresh = True
            continue
        dw[:] = 0.0
        de[:] = 0.0
        for r in range(m):
            if basis[r] < n:
                dw[basis[r]] = direction[r]
            else:
                de[basis[r] - n] = direction[r]
        dz[:] = 0.0
        for i in range(n):
            if position[i] >= 0:
                dg[i] = -sign[i] * dc[i]
                if dw[i] != 0:
                    step_i, row = dw[i], A[i]
                    for p in range(k):
                        dz[p] += step_i * row[p]
            else:
                dg[i] = df[i] + _dot(G[i], dw, n) + _dot(A[i], de, k)
        # the first kink ahead
        t, which, kind = left, -1, 0
        wrong = False
        for i in range(n):
            if position[i] >= 0:
                if C[i] > 0 and dw[i] * sign[i] < 0:
                    if i == last and w[i] == 0:
                        wrong = True
                        continue
                    length = -w[i] / dw[i]
                    if length < t:
                        t, which, kind = length, i, 1
            elif i != last:
                up, down = dg[i] - dc[i], -dg[i] - dc[i]
                if up > 0:
                    length = (cost[i] - g[i]) / up
                    if length < t:
                        t, which, kind = length, i, 2
                if down > 0:
                    length = (cost[i] + g[i]) / down
                    if length < t:
                        t, which, kind = length, i, 3
        for p in range(k):
            if position[n + p] >= 0:
                if de[p] < 0:
                    if n + p == last and e[p] == 0:
                        wrong = True
                        continue
                    length = -e[p] / de[p]
                    if length < t:
                        t, which, kind = length, n + p, 4
            elif n + p != last:
                ahead = dz[p] - dv[p]
                if ahead > 0:
                    length = (at[p] - z[p]) / ahead
                    if length < t:
                        t, which, kind = length, n + p, 5
        if wrong and not fresh:
            if not _invert(G, A, n, basis, m, shift, inverse):
                return False, step
            fresh = True
            continue
        t = max(t, 0.0)
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
            eta[:] = np.maximum(e, 0.0) * size
            _affine(G, b, C, A, v * size, sign, basis, m, inverse, size, path)
            return True, step + 1
        last = which
        fresh = False
        if kind == 1 or kind == 4:
            r = position[which]
            if kind == 1:
                w[which], g[which] = 0.0, -sign[which] * cost[which]
                sign[which] = 0.0
            else:
                e[which - n], z[which - n] = 0.0, at[which - n]
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
            if abs(pivot) * shift > 1e-4 or not np.isfinite(pivot):
                # the index that leaves had been dependent on the others: updating would carry its errors on
                if not _invert(G, A, n, basis, m, shift, inverse):
                    return False, step
                fresh = True
            else:
                along = direction[r] / pivot
                direction[r] = direction[m]
                for i in range(m):
                    direction[i] -= along * inverse[m, i]
                    factor = inverse[i, m] / pivot
                    if factor != 0:
                        _axpy(inverse[i], -factor, inverse[m], m)
        else:
            if kind == 2:
                sign[which], g[which] = -1.0, cost[which]
            elif kind == 3:
                sign[which], g[which] = 1.0, -cost[which]
            column = np.empty(m)
            for r in range(m):
                column[r] = _entry(G, A, n, basis[r], which, shift)
            u = np.empty(m)
            for r in range(m):
                u[r] = _dot(inverse[r], column, m)
            pivot = _entry(G, A, n, which, which, shift) - _dot(column, u, m)
            along = -df[which] - sign[which] * dc[which] if which < n else dv[which - n]
            along -= _dot(column, direction, m)
            # by quasi-definiteness at least the shift, with the sign of the diagonal
            pivot = max(pivot, shift) if which < n else min(pivot, -shift)
            along /= pivot
            direction[m] = along
            for i in range(m):
                direction[i] -= along * u[i]
                factor = u[i] / pivot
                if factor != 0:
                    _axpy(inverse[i], factor, u, m)
                inverse[i, m] = -factor
                inverse[m, i] = -factor
            inverse[m, m] = 1 / pivot
            basis[m], position[which] = which, m
            m += 1
        if (step + 1) % _REFRESH == 0:
            if not _invert(G, A, n, basis, m, shift, inverse):
                return False, step
            fresh = True
    eta[:] = np.maximum(e, 0.0) * size
    return False, limit


@nb.njit(**_OPTIONS)
def _affine(G, b, C, A, bound, sign, basis, m, inverse, size, path):
    """w0 - mu w1 and eta0 - mu eta1 on the basis, by the path's inverse and refinement on the system without shift."""
    n = b.size
    for column in range(2):
        right, x, y = np.empty(m), np.zeros(m), np.empty(m)
        for r in range(m):
            q = basis[r]
            if q < n:
                right[r] = b[q] if column == 0 else C[q] * sign[q]
            else:
                right[r] = bound[q - n] if column == 0 else 0.0
        y[:] = right
        for _ in range(_REFINE):
            for r in range(m):
                x[r] += _dot(inverse[r], y, m)
            for r in range(m):
                q, total = basis[r], right[r]
                for j in range(m):
                    total -= _entry(G, A, n, q, basis[j], 0.0) * x[j]
                y[r] = total
        path[0][column, :] = 0.0
        path[1][column, :] = 0.0
        for r in range(m):
            q = basis[r]
            if q < n:
                path[0][column, q] = x[r]
            else:
                path[1][column, q - n] = x[r] * size


@nb.njit(**_OPTIONS)
def _spread(i):
    """A fixed number in [1/2, 3/2) for every index, which keeps kinks apart."""
    x = 0.6180339887498949 * (i + 1)
    return 0.5 + x - np.floor(x)


@nb.njit(**_OPTIONS)
def solve(G, b, yy, C, A, v, mu, path_w, path_eta, w, eta, tol, feasible, attempts):
    """One neuron at mu: `exact`, and where it fails `follow` and `exact` again. w, eta and the path are updated.

    Returns (verified, c, a, systems, kinks). c and a describe ||residual||^2 = c + mu^2 a, nearby.
    """
    n = w.size
    path = (path_w, path_eta)
    signs = _guess(w, C)
    verified, systems, c, a = exact(
        G, b, yy, C, A, v, mu, path, signs, _bounds(eta, np.count_nonzero(signs)), w, eta, tol, feasible, attempts
    )
    if verified:
        return True, c, a, systems, 0
    old_w, old_eta = w.copy(), eta.copy()
    _, kinks = follow(G, b, C, A, v, mu, w, eta, path, feasible, 10 * (w.size + eta.size) + 100)
    if not np.isfinite(w.sum() + eta.sum()):
        w[:], eta[:] = old_w, old_eta
    tiny = _APART * feasible / _size(G, A)
    signs = _guess(w, C)
    verified, more, c, a = exact(G, b, yy, C, A, v, mu, path, signs, _bounds(eta, np.count_nonzero(signs)), w, eta, tol, feasible, 3)
    if not verified:
        # what the distance of the bounds alone allows
        for i in range(n):
            if abs(w[i]) <= tiny:
                w[i] = 0.0
        # the slope of the path's last piece, where it makes sense
        c = max(np.dot(w, np.dot(G, w)) - 2 * np.dot(b, w) + yy, 0.0)
        a = np.dot(path_w[1], np.dot(G, path_w[1]))
        if not (np.isfinite(a) and 0 <= a * mu * mu <= c):
            a = 0.0
        c -= a * mu * mu
    return verified, c, a, systems + more, kinks


@nb.njit(**_OPTIONS)
def _guess(w, C):
    signs = np.sign(w)
    for i in range(w.size):
        if C[i] == 0 and signs[i] == 0:
            signs[i] = 1.0
    return signs


@nb.njit(**_OPTIONS)
def _bounds(eta, most):
    """The bounds with a multiplier, the largest ones if there are more than `most`."""
    active = eta > 0
    if np.count_nonzero(active) > most:
        active[:] = False
        active[np.argsort(-eta)[:most]] = True
    return active
