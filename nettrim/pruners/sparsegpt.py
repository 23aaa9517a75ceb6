"""SparseGPT: inputs are decided in order, and what a pruned weight did is passed on to the inputs after it.

Frantar, Alistarh (2023), Algorithm 1. With H = 2 X X^T / P and U the upper Cholesky factor of H^-1, pruning weight i of
a neuron costs w_i^2 / U_ii^2, and the best correction of the weights after it is -U_i,i+1: w_i / U_ii. Masks are
decided for blocks of inputs, so that they see the corrections made before.
"""

from __future__ import annotations

import numpy as np

from nettrim.sparsity import NofM, Sparsity

#: inputs in a block, and the ridge over the mean diagonal of H: the paper's
_BLOCK, _RIDGE = 128, 0.01


def sparsegpt(W: np.ndarray, moments: np.ndarray, pattern: Sparsity) -> np.ndarray:
    """Prune and correct input by input.

    Parameters
    ----------
    W : (N, M) array
    moments : (N, N) array
        X X^T of the inputs; its scale does not matter.
    pattern : Sparsity
        A count is met in every block of 128 inputs, as in the paper.

    Returns
    -------
    (N, M) array
    """
    from scipy.linalg import cholesky, inv

    N = len(W)
    pattern.count(W.shape)
    H, W = moments.astype(np.float64), W.astype(np.float64)
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    W[dead] = 0
    H[np.diag_indices(N)] += _RIDGE * H.diagonal().mean()
    U = cholesky(inv(H, overwrite_a=True, check_finite=False), check_finite=False)
    step = _BLOCK if not isinstance(pattern, NofM) else max(_BLOCK // pattern.m, 1) * pattern.m
    for first in range(0, N, step):
        last = min(first + step, N)
        block, factor = W[first:last], U[first:last, first:last]
        errors = np.zeros_like(block)
        size = None if isinstance(pattern, NofM) else last - first
        mask = np.zeros(block.shape, bool)
        for i in range(last - first):
            if size is not None and i == 0:
                mask = pattern.block(block**2 / factor.diagonal()[:, None] ** 2, first, N)
            elif size is None and i % pattern.m == 0:  # type: ignore[attr-defined]
                group = slice(i, i + pattern.m)  # type: ignore[attr-defined]
                mask[group] = pattern.mask(block[group] ** 2 / factor.diagonal()[group, None] ** 2)
            errors[i] = np.where(mask[i], 0, block[i]) / factor[i, i]
            block[i + 1 :] -= np.outer(factor[i, i + 1 :], errors[i])
            block[i, ~mask[i]] = 0
        W[last:] -= U[first:last, last:].T @ errors
    return W
