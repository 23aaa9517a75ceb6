"""Random pruning: the floor that any method must beat."""

from __future__ import annotations

import numpy as np

from nettrim.sparsity import Sparsity


def random(W: np.ndarray, pattern: Sparsity, seed: int | np.random.Generator = 0) -> np.ndarray:
    """Weights that stay are drawn at random, every choice of the pattern as likely as any other.

    Parameters
    ----------
    W : (N, M) array
    pattern : Sparsity
    seed : int or numpy.random.Generator

    Returns
    -------
    (N, M) array
    """
    return np.where(pattern.mask(np.random.default_rng(seed).random(W.shape)), W, 0)
