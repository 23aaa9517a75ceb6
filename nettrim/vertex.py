"""The limit of a vanishing radius: each neuron is a linear program of its own, solved by HiGHS.

With epsilon = 0 the program reads min C |w| subject to X_Omega^T w = y, X_notOmega^T w <= v, neuron by neuron. When
there are more active samples than inputs its weights are determined and ADMM, whose two splits then fight over every
coordinate, crawls. A vertex also gives the supports and active
bounds that the Newton polish needs for a small positive radius.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["solve", "worthwhile"]

#: radii below this fraction of ||Y_Omega||_F count as vanishing
TINY = 1e-3
#: dense entries N x P x M up to which the linear programs are tried
LARGEST = 3e7


def worthwhile(loop: Any) -> bool:
    """Whether the radius is small enough for the limit to help, and the programs small enough to be quick.

    Parameters
    ----------
    loop : Loop
    """
    (M, P), N = loop.samples.target.shape, loop.samples.operator.shape[0]
    return bool(loop.radii.max() < TINY * np.linalg.norm(loop.sizes)) and N * P * M <= LARGEST


def solve(loop: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Weights (N, M) and multipliers (M, P) of the limit; None if a neuron's program is infeasible or fails.

    Parameters
    ----------
    loop : Loop
        The problem's arrays, on the host.
    """
    # scipy.optimize doubles the time of `import nettrim`, and few problems come here
    from scipy.optimize import linprog

    X = loop.samples.operator.X.astype(np.float64)
    N, M = X.shape[0], loop.samples.target.shape[0]
    W, L = np.zeros((N, M)), np.zeros(loop.samples.target.shape)
    C = np.broadcast_to(loop.weights, (N, M)).astype(np.float64)
    for m in range(M):
        V = loop.samples.upper[0, 0] if loop.samples.upper.size == 1 else loop.samples.upper[m]
        on = np.flatnonzero(loop.samples.mask[m])
        off = np.flatnonzero(~loop.samples.mask[m] & np.isfinite(V))
        bound = np.broadcast_to(V, loop.samples.mask.shape[1])[off].astype(np.float64)
        result = linprog(
            np.concatenate([C[:, m], C[:, m]]),
            A_eq=np.hstack([X[:, on].T, -X[:, on].T]) if on.size else None,
            b_eq=loop.samples.target[m, on].astype(np.float64) if on.size else None,
            A_ub=np.hstack([X[:, off].T, -X[:, off].T]) if off.size else None,
            b_ub=bound if off.size else None,
            method="highs",
        )
        if result.status != 0:
            return None
        W[:, m] = result.x[:N] - result.x[N:]
        if on.size:
            # the smallest multipliers with the same X L^T: a vertex has far larger ones, and the ball charges for that
            rows = X[:, on].T
            L[m, on] = rows @ np.linalg.lstsq(rows, -result.eqlin.marginals, rcond=None)[0]
        if off.size:
            L[m, off] = -result.ineqlin.marginals
    return W.astype(loop.dtype), L.astype(loop.dtype)
