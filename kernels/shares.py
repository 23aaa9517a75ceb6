"""The largest ratio of an input to an output over samples, and how often it is reached, compiled by Numba.

For inputs x (N, P) and the inverses u (P,) of one neuron's outputs (see nettrim/bounds/importance.py), a weight's share
of the output is w_n x_np u_p, so that only x_np u_p depends on the sample.
"""

from __future__ import annotations

import numba as nb

#: the arrays are finite, and a maximum is only made into vector instructions if the compiler may count on that
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz", "nnan"}}


@nb.njit(**_OPTIONS)
def largest(X, rows, inverse, found):
    """found[k] <- max_p X[rows[k], p] inverse[p]."""
    for k in range(rows.size):
        x, best = X[rows[k]], 0.0
        for p in range(inverse.size):
            best = max(best, x[p] * inverse[p])
        found[k] = best


@nb.njit(**_OPTIONS)
def count_within(X, rows, inverse, limits, found):
    """found[k] <- number of p with X[rows[k], p] inverse[p] <= limits[k]."""
    for k in range(rows.size):
        x, limit, count = X[rows[k]], limits[k], 0
        for p in range(inverse.size):
            count += x[p] * inverse[p] <= limit
        found[k] = count
