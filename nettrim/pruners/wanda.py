"""Wanda: weights weighed by the size of their inputs (Sun, Liu, Bair, Kolter 2024, eq. 1)."""

from __future__ import annotations

import numpy as np

from nettrim.sparsity import Sparsity


def wanda(W: np.ndarray, moments: np.ndarray, pattern: Sparsity) -> np.ndarray:
    """The weights with the largest ``|W_ij| ||x_i||``, as they are. The paper keeps as many for every neuron.

    Parameters
    ----------
    W : (N, M) array
    moments : (N, N) array
        X X^T of the inputs.
    pattern : Sparsity

    Returns
    -------
    (N, M) array
    """
    return np.where(pattern.mask(np.abs(W) * np.sqrt(moments.diagonal())[:, None]), W, 0)
