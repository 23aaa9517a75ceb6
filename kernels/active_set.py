"""One neuron by corrections of its active set in whole blocks, compiled by Numba (see nettrim/working_set.py).

    minimise    mu sum_i C_i |w_i| + 1/2 w.G w - b.w      subject to  A^T w <= v

with G = X_F X_F^T and b = X_F y over the neuron's samples in the ball, A = X_F over the samples whose bound is watched.
It is the program with the ball's multiplier lambda = 1 / mu, divided by lambda, so that mu = 0 is an ordinary value.

`exact` solves the equality-constrained system on a guessed support and guessed active bounds and corrects the guess by
whole blocks (a primal-dual active set): quick when the guess is good, not always convergent. path.py always arrives.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from nettrim.kernels.systems import (
    OPTIONS,
    affine,
    dot,
    invert,
    largest,
    outputs,
    quadratic,
    rms_norm,
    square,
    system,
    threshold,
)

#: relative shift that keeps the systems solvable when inputs or active bounds are dependent
_SHIFT = 1e-13
#: sets grow by at most one part in this many, but by this many in any case, in one correction of `exact`
_PART, _LEAST = 2, 10


@nb.njit(**OPTIONS)
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
    outputs(A, w, excess)
    faults, kept, bound = 0, 0, 0
    for i in range(n):
        g = dot(G[i], w, n) - b[i] + dot(A[i], eta, k)
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


@nb.njit(**OPTIONS)
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
    active = largest(eta, m)
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
            cut = threshold(np.abs(over), max(_LEAST, kept // _PART))
            for i in range(n):
                if abs(over[i]) > cut:
                    signs[i] = 1.0 if over[i] > 0 else -1.0
            cut = threshold(excess, max(_LEAST, bound // _PART))
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
        if not invert(system(G, scaled, n, basis, m, _SHIFT * size * size), inverse):
            break
        affine(G, b, C, scaled, bounds, signs, basis, m, inverse, size, path_w, path_eta)
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
    # the residual at w itself: where active bounds are nearly dependent, w0 alone has lost digits
    slope = max(quadratic(G, path_w[1], path_w[1]), 0.0)
    return True, solved, square(G, b, yy, w) - slope * mu * mu, slope


@nb.njit(**OPTIONS)
def optimal(G, b, C, A, v, mu, w, eta, tol, feasible):
    """Whether w and eta themselves meet the optimality conditions within the tolerances."""
    n, k = A.shape
    signs, active = np.sign(w), eta > 0
    path_w, path_eta = np.zeros((2, n)), np.zeros((2, k))
    path_w[0], path_eta[0] = w, eta
    same_w, same_eta, over, excess = np.empty(n), np.empty(k), np.empty(n), np.empty(k)
    faults, _, _ = _judge(
        G, b, C, A, v, mu, path_w, path_eta, signs, active, tol, feasible, same_w, same_eta, over, excess, False
    )
    return faults == 0


@nb.njit(**OPTIONS)
def nearby(G, b, yy, mu, path_w, w):
    """(c, a) with ||X^T w - y||^2 = c + mu^2 a nearby, for weights that no path describes."""
    c = square(G, b, yy, w)
    # the slope of the path's last piece, where it makes sense
    a = quadratic(G, path_w[1], path_w[1])
    if not (np.isfinite(a) and 0 <= a * mu * mu <= c):
        a = 0.0
    return c - a * mu * mu, a


@nb.njit(**OPTIONS)
def tidy(A, w, feasible):
    """w without the weights whose outputs are below the tolerance: near w = 0, what the bounds' distance allows."""
    largest = 0.0
    for i in range(w.size):
        for p in range(A.shape[1]):
            largest = max(largest, abs(A[i, p]))
    out = w.copy()
    for i in range(w.size):
        if abs(w[i]) * largest <= feasible:
            out[i] = 0.0
    return out
