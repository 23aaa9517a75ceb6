"""Refit on a support by least squares, against the dense layer's outputs before the ReLU."""

from __future__ import annotations

import numpy as np

#: added to the diagonal, relative to its mean: inputs of one support may be linearly dependent
_RIDGE = 1e-9


def least_squares(W: np.ndarray, moments: np.ndarray, support: np.ndarray) -> np.ndarray:
    """The weights on a support whose outputs are nearest to those of W on the samples behind `moments`.

    Parameters
    ----------
    W : (N, M) array
        Dense weights.
    moments : (N, N) array
        X X^T of the inputs.
    support : (N, M) bool array

    Returns
    -------
    (N, M) array, zero off the support
    """
    from scipy.linalg import solve

    found, right = np.zeros_like(W), moments @ W
    ridge = _RIDGE * moments.diagonal().mean()
    for m in range(W.shape[1]):
        s = np.flatnonzero(support[:, m])
        if s.size:
            system = moments[np.ix_(s, s)]
            system[np.diag_indices(s.size)] += ridge or 1.0
            found[s, m] = solve(system, right[s, m], assume_a="pos", overwrite_a=True, check_finite=False)
    return found
