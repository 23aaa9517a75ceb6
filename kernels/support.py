"""The k-support norm of short blocks: projection onto the ball of its dual (see nettrim/penalties/support.py)."""

from __future__ import annotations

import numba as nb
import numpy as np
from nettrim.kernels.systems import OPTIONS

#: steps of the search for the multiplier, and the relative accuracy that ends it
_STEPS, _ACCURACY = 60, 1e-14


@nb.njit(**OPTIONS)
def _shrunk(b, k, level, u):
    """u of the least ``||u - b||^2 + level (sum of the k largest u^2)`` for b sorted downwards; returns that sum.

    The first k shrink by 1 + level. Where that would put them below the others, both are pooled at one value t.
    """
    n = b.size
    p, q = k, k
    t, total = 0.0, 0.0
    while True:
        # the pool is [p, q); it begins with the two that meet
        if p == q:
            if not (k < n and b[k - 1] / (1.0 + level) < b[k]):
                break
            p, q = k - 1, k + 1
            total = b[k - 1] + b[k]
        t = total / ((k - p) * (1.0 + level) + (q - k))
        if p > 0 and b[p - 1] / (1.0 + level) < t:
            p -= 1
            total += b[p]
        elif q < n and b[q] > t:
            total += b[q]
            q += 1
        else:
            break
    square = 0.0
    for i in range(n):
        if p <= i < q:
            u[i] = t
        else:
            u[i] = b[i] / (1.0 + level) if i < k else b[i]
        if i < k:
            square += u[i] * u[i]
    return square


@nb.njit(**OPTIONS)
def prox(B, C, tau, k, size, W):
    """W <- the prox of ``tau C ||.||`` of each block of `size` rows of B's columns, with C of the block's first row.

    By Moreau's identity the block less its projection onto the ball of radius tau C of the dual norm, the 2-norm of
    the k largest entries. One over that norm is nearly linear in the multiplier, so the secant finds it.
    """
    b, u = np.empty(size), np.empty(size)
    for m in range(B.shape[1]):
        for first in range(0, B.shape[0] - size + 1, size):
            radius = tau * C[first, m]
            values = np.abs(B[first : first + size, m])
            order = np.argsort(-values)
            for i in range(size):
                b[i] = values[order[i]]
            square = _shrunk(b, k, 0.0, u)
            if square <= radius * radius:
                for i in range(size):
                    W[first + i, m] = 0.0
                continue
            if radius == 0.0:
                for i in range(size):
                    W[first + i, m] = B[first + i, m]
                continue
            low, at_low = 0.0, 1.0 / np.sqrt(square) - 1.0 / radius
            high = np.sqrt(square) / radius - 1.0
            at_high = 1.0 / np.sqrt(_shrunk(b, k, high, u)) - 1.0 / radius
            while at_high < 0.0:
                high = 2.0 * high + 1.0
                at_high = 1.0 / np.sqrt(_shrunk(b, k, high, u)) - 1.0 / radius
            side = 0
            for _ in range(_STEPS):
                if at_high == 0.0 or high - low <= _ACCURACY * high:
                    break
                level = high - at_high * (high - low) / (at_high - at_low)
                value = 1.0 / np.sqrt(_shrunk(b, k, level, u)) - 1.0 / radius
                if value >= 0.0:
                    high, at_high = level, value
                    if side == 1:
                        at_low *= 0.5
                    side = 1
                else:
                    low, at_low = level, value
                    if side == -1:
                        at_high *= 0.5
                    side = -1
                if abs(value) * radius <= _ACCURACY:
                    high = level
                    break
            _shrunk(b, k, high, u)
            for i in range(size):
                r = order[i]
                rest = b[i] - u[i]
                W[first + r, m] = rest if B[first + r, m] > 0 else -rest
