"""One neuron's program on its working set, compiled by Numba (see nettrim/working_set.py and docs/algorithm).

    minimise    mu sum_i C_i |w_i| + 1/2 w.G w - b.w      subject to  A^T w <= v

with G = X_F X_F^T and b = X_F y over the neuron's samples in the ball, A = X_F over the samples whose bound is watched.
It is the program with the ball's multiplier lambda = 1 / mu, divided by lambda, so that mu = 0 is an ordinary value.

Two methods take turns. `exact` solves the equality-constrained system on a guessed support and guessed active bounds
and corrects the guess by whole blocks (a primal-dual active set): quick when the guess is good, not always convergent.
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
#: pivot, in units of the inputs, below which the inverse of `follow` is computed afresh instead of updated
_DEPENDENT = 1e-5
#: kinks after which the inverse of `follow` is checked
_REFRESH = 100
#: halvings of a bisection
_HALVINGS = 40
#: error in K K^-1 x for x of order one up to which an inverse is used again
_ACCURATE = 1e-8
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
def _threshold(excess, most):
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


@nb.njit(**_OPTIONS)
def rms_norm(G, A):
    """Root mean square of the inputs' norms: the unit of the shifts, and of the bounds' rows beside G's."""
    n = G.shape[0]
    squares, bounds = 0.0, 0.0
    for i in range(n):
        squares += G[i, i]
        bounds += _dot(A[i], A[i], A.shape[1])
    return np.sqrt(max(squares, bounds) / max(n, 1)) + 1e-300


@nb.njit(**_OPTIONS)
def _outputs(A, w, out):
    """out = A^T w."""
    for p in range(out.size):
        out[p] = 0.0
    for i in range(w.size):
        if w[i] != 0:
            _axpy(out, w[i], A[i], out.size)


@nb.njit(**_OPTIONS)
def _quadratic(G, x, y):
    total = 0.0
    for i in range(x.size):
        if x[i] != 0:
            total += x[i] * _dot(G[i], y, y.size)
    return total


@nb.njit(**_OPTIONS)
def _judge(G, b, C, A, v, mu, path_w, path_eta, signs, active, tol, feasible, w, eta, over, excess, correct):
    """Evaluate w0 - mu w1 against the optimality conditions for the guess (signs, active).

    w and eta get its values, `over` and `excess` what inputs and bounds outside the guess are over their limits. With
    `correct`, what has the wrong sign leaves the guess. Returns (faults, inputs and bounds that stay); faults are -1
    for values that are not finite.
    """
    n, k = A.shape
    size, floor, rounding, total = rms_norm(G, A), 0.0, 0.0, 0.0
    # weights whose part in the outputs is far below the tolerance are zero: near w = 0 rounding decides their signs
    tiny = 1e-3 * feasible / size
    for i in range(n):
        floor = max(floor, C[i])
        w[i] = path_w[0, i] - mu * path_w[1, i]
        total += w[i]
    for p in range(k):
        eta[p] = path_eta[0, p] - mu * path_eta[1, p]
        rounding = max(rounding, abs(eta[p]))
        total += eta[p]
    if not np.isfinite(total):
        return -1, 0, 0
    rounding *= -1e-12
    _outputs(A, w, excess)
    faults, kept, bound = 0, 0, 0
    for i in range(n):
        g = _dot(G[i], w, n) - b[i] + _dot(A[i], eta, k)
        allowed = mu * (C[i] if C[i] > 0 else floor) * tol
        over[i] = 0.0
        if signs[i] == 0:
            # an old path may have used another input
            faults += w[i] != 0
            if abs(g) - mu * C[i] > allowed:
                over[i] = -g
                faults += 1
            continue
        # dependent inputs: the system was not solved
        faults += abs(g + mu * C[i] * signs[i]) > max(allowed, 1e-9 * abs(b[i]))
        if C[i] == 0 or w[i] * signs[i] >= 0:
            kept += 1
        elif abs(w[i]) <= tiny:
            w[i] = 0.0
            kept += 1
            if abs(path_w[0, i]) <= tiny:
                path_w[0, i] = path_w[1, i] = 0.0
        else:
            faults += 1
            if correct:
                signs[i] = 0.0
    for p in range(k):
        beyond = excess[p] - v[p]
        excess[p] = 0.0
        if not active[p]:
            faults += eta[p] != 0
            if beyond > feasible:
                excess[p] = beyond
                faults += 1
        elif eta[p] < rounding:
            faults += 1
            if correct:
                active[p] = False
        else:
            bound += 1
            eta[p] = max(eta[p], 0.0)
            # dependent bounds: the system was not solved
            faults += abs(beyond) > feasible
    return faults, kept, bound


@nb.njit(**_OPTIONS)
def exact(G, b, yy, C, A, v, mu, path_w, path_eta, w, eta, tol, feasible, attempts):
    """Active-set corrections from the supports of w and eta; whether one was verified within the tolerances.

    `path_w` (w0, w1) and `path_eta` (eta0, eta1) hold the last affine solution w0 - mu w1; it is tried first. On
    success w, eta and the path describe the solution; w and eta are left alone otherwise. Returns (verified, systems
    solved, c, a) with ||X^T w - y||^2 = c + mu^2 a along the path.
    """
    n, k = A.shape
    signs = np.empty(n)
    m = 0
    for i in range(n):
        signs[i] = 1.0 if w[i] > 0 or (w[i] == 0 and C[i] == 0) else (-1.0 if w[i] < 0 else 0.0)
        m += signs[i] != 0
    active = _bounds(eta, m)
    new_w, new_eta, over, excess = np.empty(n), np.empty(k), np.empty(n), np.empty(k)
    faults, kept, bound = _judge(
        G, b, C, A, v, mu, path_w, path_eta, signs, active, tol, feasible, new_w, new_eta, over, excess, False
    )
    solved = 0
    size = rms_norm(G, A)
    basis = np.empty(n + k, np.int64)
    scaled, bounds = np.empty((n if attempts > 0 else 0, k)), np.empty(k)
    while faults != 0 and solved < attempts:
        if solved == 0:
            for i in range(n):
                for p in range(k):
                    scaled[i, p] = A[i, p] * size
            for p in range(k):
                bounds[p] = v[p] * size
        else:
            cut = _threshold(np.abs(over), max(_LEAST, kept // _PART))
            for i in range(n):
                if abs(over[i]) > cut:
                    signs[i] = 1.0 if over[i] > 0 else -1.0
            cut = _threshold(excess, max(_LEAST, bound // _PART))
            for p in range(k):
                if excess[p] > cut:
                    active[p] = True
        m = 0
        for i in range(n):
            if signs[i] != 0:
                basis[m] = i
                m += 1
        inputs = m
        for p in range(k):
            if active[p] and inputs > 0:
                basis[m] = n + p
                m += 1
        inverse = np.empty((m, m))
        if not _invert(_system(G, scaled, n, basis, m, _SHIFT * size * size), inverse):
            break
        _affine(G, b, C, scaled, bounds, signs, basis, m, inverse, size, path_w, path_eta)
        solved += 1
        faults, kept, bound = _judge(
            G, b, C, A, v, mu, path_w, path_eta, signs, active, tol, feasible, new_w, new_eta, over, excess, True
        )
        if faults < 0:
            break
    if faults != 0:
        return False, solved, np.inf, 0.0
    for i in range(n):
        w[i] = new_w[i]
    for p in range(k):
        eta[p] = new_eta[p]
    w0, w1 = path_w[0], path_w[1]
    return True, solved, square(G, b, yy, w0), max(_quadratic(G, w1, w1), 0.0)


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
def _system(G, A, n, basis, m, shift):
    """The basis' system, m x m."""
    K = np.empty((m, m))
    for r in range(m):
        i = basis[r]
        for s in range(r + 1):
            K[r, s] = _entry(G, A, n, i, basis[s], shift)
            K[s, r] = K[r, s]
    return K


@nb.njit(**_OPTIONS)
def _invert(K, inverse):
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


@nb.njit(**_OPTIONS)
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
    return _accurate(_system(G, A, n, basis, m, shift), inverse)


@nb.njit(**_OPTIONS)
def _accurate(K, inverse):
    """Whether the inverse, in the leading entries, is one of K: times one vector, and back."""
    m = K.shape[0]
    x = np.zeros(m)
    for r in range(m):
        for s in range(m):
            x[r] += inverse[r, s] * _spread(s)
    for r in range(m):
        # also false for what is not a number
        if not abs(_dot(K[r], x, m) - _spread(r)) <= _ACCURATE:
            return False
    return True


@nb.njit(**_OPTIONS)
def _refine(K, inverse, right, n, basis, w, e):
    """A step of iterative refinement of the basis' weights and multipliers, which solve K x = right."""
    m = K.shape[0]
    x, rest = np.empty(m), np.empty(m)
    for r in range(m):
        x[r] = w[basis[r]] if basis[r] < n else e[basis[r] - n]
    for r in range(m):
        rest[r] = right[r] - _dot(K[r], x, m)
    for r in range(m):
        value = x[r] + _dot(inverse[r], rest, m)
        if basis[r] < n:
            w[basis[r]] = value
        else:
            e[basis[r] - n] = value


@nb.njit(**_OPTIONS)
def follow(G, b, C, A, v, mu, path_w, path_eta, w, eta, feasible, size, shift, kept, kept_inverse, limit):
    """Follow the exact solution from a problem that (w, eta) solves to this one; in place.

    `size` is the unit of the bounds' rows, `shift` that of the systems in its square, `kept` and `kept_inverse`
    what the neuron's last path ended with: the inputs and bounds (bound p as -1 - p) of its system, and the inverse,
    which is used again if (w, eta) still has these sets.
    Returns (arrived, kinks, kept, kept_inverse).

    The linear term on the support, the costs of inputs that want to enter and the bounds that are violated start where
    (w, eta) is optimal and move linearly to their values. The solution is piecewise linear in between; at each kink one
    input or one bound enters or leaves, and the inverse of the system of those in use is updated (parametric active
    set). The shift makes the solution unique and bounds the condition where inputs or bounds are dependent: below 1e-8
    the inverse loses its digits there. `exact` removes it.
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
        bound[p] = (v[p] + _APART * feasible * _spread(p)) * size
        e[p] = eta[p] / size
    cap = n + k
    basis, position = np.empty(cap, np.int64), np.empty(cap, np.int64)
    sign = np.empty(n)
    m = 0
    for q in range(cap):
        position[q] = -1
    for i in range(n):
        sign[i] = 0.0
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
    if not _reuse(G, A, n, shift, basis, position, m, kept, kept_inverse, inverse):
        if not _invert(_system(G, A, n, basis, m, shift), inverse):
            return False, 0, nothing, no_inverse
    # where (w, e) is optimal: g = G w + shift w + A e + f with f = -b off the support
    x, g, z = np.empty(n), np.empty(n), np.empty(k)
    _outputs(A, w, z)
    for p in range(k):
        z[p] -= shift * e[p]
    cost, dc, df, dv, at = np.empty(n), np.zeros(n), np.zeros(n), np.zeros(k), np.empty(k)
    for i in range(n):
        x[i] = _dot(G[i], w, n) + shift * w[i] + _dot(A[i], e, k)
        g[i], cost[i] = x[i] - b[i], mu * C[i]
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
    for p in range(k):
        at[p] = bound[p] - dv[p]
    left, last, side, fresh = 1.0, -1, 0.0, True
    dw, de, dg, dz = np.zeros(n), np.zeros(k), np.empty(n), np.empty(k)
    direction, right, column, u = np.empty(cap), np.empty(cap), np.empty(cap), np.empty(cap)
    for step in range(limit):
        if fresh:
            for r in range(m):
                q = basis[r]
                right[r] = -df[q] - sign[q] * dc[q] if q < n else dv[q - n]
            for r in range(m):
                direction[r] = _dot(inverse[r], right, m)
        total = 0.0
        for r in range(m):
            total += direction[r]
        if not np.isfinite(total):
            if fresh or not _invert(_system(G, A, n, basis, m, shift), inverse):
                return False, step, nothing, no_inverse
            fresh = True
            continue
        for i in range(n):
            dw[i] = 0.0
        for p in range(k):
            de[p] = 0.0
        for r in range(m):
            if basis[r] < n:
                dw[basis[r]] = direction[r]
            else:
                de[basis[r] - n] = direction[r]
        _outputs(A, dw, dz)
        for i in range(n):
            if position[i] >= 0:
                dg[i] = -sign[i] * dc[i]
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
            else:
                # what has just left starts on one of its limits, and may only reach the other
                up, down = dg[i] - dc[i], -dg[i] - dc[i]
                if up > 0 and not (i == last and side < 0):
                    length = (cost[i] - g[i]) / up
                    if length < t:
                        t, which, kind = length, i, 2
                if down > 0 and not (i == last and side > 0):
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
            if not _invert(_system(G, A, n, basis, m, shift), inverse):
                return False, step, nothing, no_inverse
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
            for p in range(k):
                eta[p] = max(e[p], 0.0) * size
                bound[p] = v[p] * size
            _affine(G, b, C, A, bound, sign, basis, m, inverse, size, path_w, path_eta)
            for r in range(m):
                if basis[r] >= n:
                    basis[r] = n - 1 - basis[r]
            return True, step + 1, basis[:m].copy(), inverse[:m, :m].copy()
        last = which
        fresh = False
        if kind == 1 or kind == 4:
            r = position[which]
            if kind == 1:
                w[which], g[which] = 0.0, -sign[which] * cost[which]
                side, sign[which] = sign[which], 0.0
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
            if not abs(pivot) * size * size < 1 / _DEPENDENT:
                # the index that leaves had been dependent on the others: updating would carry its errors on
                if not _invert(_system(G, A, n, basis, m, shift), inverse):
                    return False, step, nothing, no_inverse
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
            for r in range(m):
                column[r] = _entry(G, A, n, basis[r], which, shift)
            for r in range(m):
                u[r] = _dot(inverse[r], column, m)
            pivot = _entry(G, A, n, which, which, shift) - _dot(column, u, m)
            along = -df[which] - sign[which] * dc[which] if which < n else dv[which - n]
            along -= _dot(column, direction, m)
            # by quasi-definiteness at least the shift, with the sign of the diagonal
            dependent = abs(pivot) < _DEPENDENT * size * size
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
            if dependent:
                K = _system(G, A, n, basis, m, shift)
                if not _accurate(K, inverse):
                    if not _invert(K, inverse):
                        return False, step, nothing, no_inverse
                    fresh = True
        if (step + 1) % _REFRESH == 0:
            K = _system(G, A, n, basis, m, shift)
            if not _accurate(K, inverse) and not _invert(K, inverse):
                return False, step, nothing, no_inverse
            for r in range(m):
                q = basis[r]
                right[r] = b[q] + left * df[q] - sign[q] * cost[q] if q < n else at[q - n]
            _refine(K, inverse, right, n, basis, w, e)
            _outputs(A, w, z)
            for p in range(k):
                z[p] -= shift * e[p]
            for i in range(n):
                g[i] = _dot(G[i], w, n) + shift * w[i] + _dot(A[i], e, k) - b[i] - left * df[i]
            fresh = True
    for p in range(k):
        eta[p] = max(e[p], 0.0) * size
    return False, limit, nothing, no_inverse


@nb.njit(**_OPTIONS)
def _affine(G, b, C, A, bound, sign, basis, m, inverse, size, path_w, path_eta):
    """w0 - mu w1 and eta0 - mu eta1 on the basis, by the inverse and refinement on the system without shift."""
    n = b.size
    right, x, y = np.empty(m), np.empty(m), np.empty(m)
    K = _system(G, A, n, basis, m, 0.0)
    for half in range(2):
        for r in range(m):
            q = basis[r]
            if q < n:
                right[r] = b[q] if half == 0 else C[q] * sign[q]
            else:
                right[r] = bound[q - n] if half == 0 else 0.0
            x[r], y[r] = 0.0, right[r]
        for _ in range(_REFINE):
            for r in range(m):
                x[r] += _dot(inverse[r], y, m)
            for r in range(m):
                y[r] = right[r] - _dot(K[r], x, m)
        for i in range(n):
            path_w[half, i] = 0.0
        for p in range(bound.size):
            path_eta[half, p] = 0.0
        for r in range(m):
            q = basis[r]
            if q < n:
                path_w[half, q] = x[r]
            else:
                path_eta[half, q - n] = x[r] * size


@nb.njit(**_OPTIONS)
def _spread(i):
    """A fixed number in [1/2, 3/2) for every index, which keeps kinks apart."""
    x = 0.6180339887498949 * (i + 1)
    return 0.5 + x - np.floor(x)


@nb.njit(**_OPTIONS)
def _bounds(eta, most):
    """The bounds with a multiplier, the largest ones if there are more than `most`."""
    cut = _threshold(eta, most)
    active = np.empty(eta.size, np.bool_)
    for p in range(eta.size):
        active[p] = eta[p] > cut and most > 0
    return active


@nb.njit(**_OPTIONS)
def square(G, b, yy, w):
    """||X^T w - y||^2 for yy = ||y||^2."""
    return max(_quadratic(G, w, w) - 2 * _dot(b, w, w.size) + yy, 0.0)


@nb.njit(**_OPTIONS)
def settle(G, b, yy, A, mu, path_w, w, feasible):
    """Tidy a neuron that is not exact: tiny weights become zero; (c, a) with ||residual||^2 = c + mu^2 a nearby."""
    n = w.size
    # near w = 0, what the distance of the bounds allows: outputs below the tolerance
    largest = 0.0
    for i in range(n):
        for p in range(A.shape[1]):
            largest = max(largest, abs(A[i, p]))
    for i in range(n):
        if abs(w[i]) * largest <= feasible:
            w[i] = 0.0
    c = square(G, b, yy, w)
    # the slope of the path's last piece, where it makes sense
    a = _quadratic(G, path_w[1], path_w[1])
    if not (np.isfinite(a) and 0 <= a * mu * mu <= c):
        a = 0.0
    return c - a * mu * mu, a
