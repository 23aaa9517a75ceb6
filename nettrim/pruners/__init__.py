"""The pruners that nettrim is compared with, written from their papers, on arrays only.

All of them take a layer's weights as an (N, M) array, inputs by outputs and without the bias, the second moments
X X^T of its inputs where they use them, and a pattern of sparsity; they return the pruned array. None has a
certificate. `prune` calls them by name, with or without a least-squares refit, and takes care of the bias.

>>> import numpy as np, nettrim as nt
>>> from nettrim import pruners
>>> rng = np.random.default_rng(0)
>>> W, X = rng.standard_normal((30, 5)), rng.standard_normal((30, 200))
>>> W_sparse = pruners.prune(W, X, "alps", density=0.2)
>>> int(np.count_nonzero(W_sparse))
30
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nettrim import sparsity
from nettrim.operators import mirror
from nettrim.operators import moments as _moments
from nettrim.pruners.alps import alps
from nettrim.pruners.least_squares import least_squares
from nettrim.pruners.magnitude import magnitude
from nettrim.pruners.random_ import random
from nettrim.pruners.sparsegpt import sparsegpt
from nettrim.pruners.wanda import wanda
from nettrim.sparsity import Sparsity, global_counts

__all__ = [
    "METHODS",
    "alps",
    "global_counts",
    "least_squares",
    "magnitude",
    "prune",
    "random",
    "second_moments",
    "sparsegpt",
    "wanda",
]

#: name -> function(weights, moments, pattern)
METHODS: dict[str, Callable[..., np.ndarray]] = {
    "magnitude": lambda W, H, pattern: magnitude(W, pattern),
    "random": lambda W, H, pattern: random(W, pattern),
    "wanda": wanda,
    "sparsegpt": sparsegpt,
    "alps": alps,
}


def second_moments(X: np.ndarray) -> np.ndarray:
    """X X^T of (N, P) inputs, (N, N) float64, accumulated over chunks of samples."""
    return mirror(_moments(X))


def prune(
    W: np.ndarray,
    X: np.ndarray,
    method: str = "alps",
    *,
    pattern: Sparsity | str | None = None,
    density: float | None = None,
    nnz: int | None = None,
    per: str = "layer",
    refit: bool = False,
    bias: bool = False,
    moments: np.ndarray | None = None,
) -> np.ndarray:
    """Prune a layer by one of the compared methods.

    Parameters
    ----------
    W : (N, M) array
        Dense weights, inputs by outputs.
    X : (N, P) array
        Inputs, a column a sample.
    method : {"magnitude", "random", "wanda", "sparsegpt", "alps"}
    pattern : Sparsity or str, optional
        "2:4" or a pattern of `nettrim.sparsity`. Give one of pattern, density and nnz.
    density, nnz, per
        As in `nettrim.sparsity.make`, of the weights without the bias.
    refit : bool
        Least squares on the support afterwards, against the dense layer's outputs before the ReLU.
    bias : bool
        Whether the last row is a bias, which stays and does not count; a refit changes it.
    moments : (N, N) array, optional
        `second_moments(X)`, where they are at hand.

    Returns
    -------
    (N, M) array in the dtype of W

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    for name, a in (("W", W), ("X", X)):
        if not isinstance(a, np.ndarray) or a.ndim != 2 or a.dtype.kind != "f":
            raise TypeError(f"{name} must be a matrix of a floating dtype")
        if not np.isfinite(a).all():
            raise ValueError(f"{name} contains NaN or inf")
    if len(W) != len(X):
        raise ValueError(f"W and X must have a row for each input: W is {W.shape}, X is {X.shape}")
    H = second_moments(X) if moments is None else moments
    inputs = len(W) - bias
    chosen: Any = pattern
    if pattern is None or isinstance(pattern, str):
        chosen = sparsity.make((inputs, W.shape[1]), density, nnz, per, pattern)
    elif density is not None or nnz is not None:
        raise ValueError("give one of density, nnz and pattern")
    found = W.astype(np.float64)
    found[:inputs] = METHODS[method](W[:inputs].astype(np.float64), H[:inputs, :inputs], chosen)
    if refit:
        support = found != 0
        support[inputs:] = True
        found = least_squares(W.astype(np.float64), H, support)
    return found.astype(W.dtype)
