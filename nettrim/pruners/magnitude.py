"""Magnitude pruning: the largest weights stay as they are (Han et al. 2015; Janowsky 1989)."""

from __future__ import annotations

import numpy as np

from nettrim.sparsity import Sparsity


def magnitude(W: np.ndarray, pattern: Sparsity) -> np.ndarray:
    """The largest weights of a pattern.

    Parameters
    ----------
    W : (N, M) array
    pattern : Sparsity

    Returns
    -------
    (N, M) array
    """
    return np.where(pattern.mask(np.abs(W)), W, 0)
