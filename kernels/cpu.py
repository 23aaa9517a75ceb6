"""The fused passes of the ADMM loop on the CPU, compiled by Numba.

Every kernel streams each M x P array once and handles whole rows (neurons), so a caller may hand blocks of rows to
several threads: the GIL is released, and results do not depend on how the rows were split. Sums are in float64.

The threads are the caller's own (see nettrim.backends.numba_) and not Numba's: the OpenMP threads Numba starts spin
after each kernel and fight BLAS for the cores, and its other layer aborts
the process when two Python threads use it at once.

``mask`` is 1 on Omega (the ball) and 0 elsewhere (the half-spaces); ``upper`` is V, either M x P or 1 x 1.

``fastmath`` is restricted to flags under which NaN and inf keep their meaning.
"""

from __future__ import annotations

import numba as nb
import numpy as np

_FAST = {"reassoc", "contract", "arcp", "nsz"}
_OPTIONS = {"cache": True, "nogil": True, "fastmath": _FAST}


@nb.njit(**_OPTIONS)
def ball_norms(T, target, mask, out):
    """out[m] = sum over Omega of (T - Y)^2, the squared distance of row m to the ball's centre."""
    M, P = T.shape
    for m in range(M):
        total = 0.0
        t, y, inside = T[m], target[m], mask[m]
        for p in range(P):
            d = np.float64(t[p] - y[p])
            total += d * d if inside[p] else 0.0
        out[m] = total


@nb.njit(**_OPTIONS)
def project_relax(T, target, mask, upper, scale, alpha):
    """In place T <- T - alpha Proj(T): ball rows shrink towards Y by scale[m], the rest is clipped at V."""
    M, P = T.shape
    constant = upper.size == 1
    one = T.dtype.type(1)
    a = T.dtype.type(alpha)
    for m in range(M):
        t, y, inside = T[m], target[m], mask[m]
        g = scale[m]
        # alpha (Y + g (T - Y)) = alpha (1 - g) Y + alpha g T
        keep = one - a * g
        pull = a * (one - g)
        if constant:
            v0 = upper[0, 0]
            for p in range(P):
                ball = keep * t[p] - pull * y[p]
                half = t[p] - a * min(t[p], v0)
                t[p] = ball if inside[p] else half
        else:
            v = upper[m]
            for p in range(P):
                ball = keep * t[p] - pull * y[p]
                half = t[p] - a * min(t[p], v[p])
                t[p] = ball if inside[p] else half


@nb.njit(**_OPTIONS)
def soft_relax(T2, threshold, alpha):
    """In place T2 <- T2 - alpha soft(T2, threshold); ``threshold`` is N x M, N x 1 or 1 x 1."""
    N, M = T2.shape
    a, zero = T2.dtype.type(alpha), T2.dtype.type(0)
    rows, cols = threshold.shape
    for i in range(N):
        t = T2[i]
        c = threshold[i if rows > 1 else 0]
        for m in range(M):
            k = c[m if cols > 1 else 0]
            t[m] = t[m] - a * (max(t[m] - k, zero) - max(-t[m] - k, zero))


@nb.njit(**_OPTIONS)
def multiplier_sums(Q, target, mask, upper, out):
    """Per row: <Q, Y> on Omega, ||Q||^2 on Omega, <Q, V> off Omega, the three terms of the dual value."""
    M, P = Q.shape
    constant = upper.size == 1
    for m in range(M):
        q, y, inside = Q[m], target[m], mask[m]
        linear, square, bound = 0.0, 0.0, 0.0
        for p in range(P):
            value = np.float64(q[p])
            linear += value * y[p] if inside[p] else 0.0
            square += value * value if inside[p] else 0.0
        if constant:
            v0 = np.float64(upper[0, 0])
            # an infinite bound never binds, and 0 * inf must not become NaN
            if v0 != 0.0 and np.isfinite(v0):
                for p in range(P):
                    bound += 0.0 if inside[p] else np.float64(q[p])
                bound *= v0
        else:
            v = upper[m]
            for p in range(P):
                # an infinite bound never binds: its multiplier is exactly zero
                if not inside[p] and q[p] != 0:
                    bound += np.float64(q[p]) * v[p]
        out[m, 0], out[m, 1], out[m, 2] = linear, square, bound


@nb.njit(**_OPTIONS)
def violation_sums(Z, target, mask, upper, out):
    """Per row: ||(Z - Y)_Omega||^2, ||(Z - V)_+||^2 off Omega, and the largest (Z - V)_+ off Omega."""
    M, P = Z.shape
    constant = upper.size == 1
    for m in range(M):
        z, y, inside = Z[m], target[m], mask[m]
        square, excess, largest = 0.0, 0.0, 0.0
        for p in range(P):
            d = np.float64(z[p] - y[p])
            square += d * d if inside[p] else 0.0
            e = max(np.float64(z[p]) - (upper[0, 0] if constant else upper[m, p]), 0.0)
            e = 0.0 if inside[p] else e
            excess += e * e
            largest = max(largest, e)
        out[m, 0], out[m, 1], out[m, 2] = square, excess, largest


@nb.njit(**_OPTIONS)
def residual_sums(T, Z, target, mask, upper, scale, out):
    """Per row ||Proj(T) - Z||^2, ||Z||^2 and ||Z - T||^2: primal residual, its scale, the scaled multiplier."""
    M, P = T.shape
    constant = upper.size == 1
    for m in range(M):
        t, z, y, inside = T[m], Z[m], target[m], mask[m]
        g = scale[m]
        primal, size, multiplier = 0.0, 0.0, 0.0
        for p in range(P):
            projected = y[p] + g * (t[p] - y[p]) if inside[p] else min(t[p], upper[0, 0] if constant else upper[m, p])
            d = np.float64(projected - z[p])
            primal += d * d
            size += np.float64(z[p]) * z[p]
            u = np.float64(z[p] - t[p])
            multiplier += u * u
        out[m, 0], out[m, 1], out[m, 2] = primal, size, multiplier
