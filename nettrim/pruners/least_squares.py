"""Refit on a support by least squares, from second moments; of a layer with a ReLU, against its outputs before it."""

from __future__ import annotations

import numpy as np

#: added to the diagonal, relative to its mean: inputs of one support may be linearly dependent
_RIDGE = 1e-10


def least_squares(
    W: np.ndarray, moments: np.ndarray, support: np.ndarray, products: np.ndarray | None = None
) -> np.ndarray:
    """The weights on a support whose outputs are nearest to those of W on the samples behind `moments`.

    Parameters
    ----------
    W : (N, M) array
        Dense weights.
    moments : (N, N) array
        X X^T of the inputs.
    support : (N, M) bool array
    products : (N, M) array, optional
        X Y^T for other targets than the dense outputs, for which it is X X^T W.

    Returns
    -------
    (N, M) array, zero off the support
    """
    from scipy.linalg import solve

    found, right = np.zeros_like(W), moments @ W if products is None else products
    ridge = _RIDGE * moments.diagonal().mean()
    for m in range(W.shape[1]):
        s = np.flatnonzero(support[:, m])
        if s.size:
            system = moments[np.ix_(s, s)]
            system[np.diag_indices(s.size)] += ridge or 1.0
            found[s, m] = solve(system, right[s, m], assume_a="pos", overwrite_a=True, check_finite=False)
    return found
