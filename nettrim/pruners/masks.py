"""Masks by the exponent alpha of the probabilistic bounds: ``floor(D^(1 - alpha))`` of D weights are pruned.

A mask is True where a weight is KEPT. Counts are exact, ties included: of equal magnitudes the one with the lowest
index, in row order and in the order of the layers, is pruned first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nettrim.bounds.laws import pruned_count

__all__ = ["magnitude_mask", "magnitude_masks", "random_mask", "random_masks"]


def magnitude_mask(W: np.ndarray, alpha: float) -> np.ndarray:
    """Where the largest weights are, when the smallest ``floor(D^(1 - alpha))`` are pruned.

    >>> import numpy as np
    >>> from nettrim.pruners.masks import magnitude_mask
    >>> magnitude_mask(np.array([[0.5, -3.0], [1.0, 2.0]]), 0.5)  # two of four
    array([[False,  True],
           [False,  True]])

    Parameters
    ----------
    W : (N, M) array
    alpha : float
        In [0, 1]: at 0 all are pruned, at 1 one is.

    Returns
    -------
    (N, M) bool array

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    return _masks("W", [W], "layer", alpha, None)[0]


def random_mask(W: np.ndarray, alpha: float, seed: int | np.random.Generator = 0) -> np.ndarray:
    """A mask that prunes any ``floor(D^(1 - alpha))`` weights, every choice as likely as any other.

    Parameters
    ----------
    W : (N, M) array
        Only its shape matters.
    alpha : float
        In [0, 1].
    seed : int or numpy.random.Generator

    Returns
    -------
    (N, M) bool array

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    return _masks("W", [W], "layer", alpha, np.random.default_rng(seed))[0]


def magnitude_masks(weights: Sequence[np.ndarray], alpha: float, per: str = "layer") -> list[np.ndarray]:
    """Masks of several layers, each with its own count or all with one.

    Parameters
    ----------
    weights : sequence of (N, M) arrays
    alpha : float
        In [0, 1].
    per : {"layer", "network"}
        D is the number of weights of a layer, or of all together; the latter are compared across layers.

    Returns
    -------
    list of (N, M) bool arrays

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    return _masks("weights", weights, per, alpha, None)


def random_masks(
    weights: Sequence[np.ndarray], alpha: float, seed: int | np.random.Generator = 0, per: str = "layer"
) -> list[np.ndarray]:
    """Random masks of several layers, each with its own count or all with one.

    Parameters
    ----------
    weights : sequence of (N, M) arrays
        Only their shapes matter.
    alpha : float
        In [0, 1].
    seed : int or numpy.random.Generator
    per : {"layer", "network"}
        D is the number of weights of a layer, or of all together.

    Returns
    -------
    list of (N, M) bool arrays

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    return _masks("weights", weights, per, alpha, np.random.default_rng(seed))


def _masks(
    name: str, weights: Sequence[np.ndarray], per: str, alpha: float, random: np.random.Generator | None
) -> list[np.ndarray]:
    if per not in ("layer", "network"):
        raise ValueError(f"per must be 'layer' or 'network'; got {per!r}")
    if isinstance(weights, np.ndarray) or not isinstance(weights, Sequence) or not len(weights):
        raise TypeError(f"{name} must be a list of at least one matrix")
    for W in weights:
        if not isinstance(W, np.ndarray) or W.ndim != 2 or W.dtype.kind != "f" or W.size == 0:
            raise TypeError(f"{name} must be a matrix of a floating dtype")
        if not np.isfinite(W).all():
            raise ValueError(f"{name} contains NaN or inf")
    flat = [W.ravel() for W in weights]
    if per == "network":
        joined = _kept(np.concatenate(flat), alpha, random)
        kept = np.split(joined, np.cumsum([f.size for f in flat])[:-1])
    else:
        kept = [_kept(f, alpha, random) for f in flat]
    return [k.reshape(W.shape) for k, W in zip(kept, weights, strict=True)]


def _kept(values: np.ndarray, alpha: float, random: np.random.Generator | None) -> np.ndarray:
    # ranks rather than a partition: where scores are equal, a partition's choice is up to the version of NumPy
    order = np.argsort(np.abs(values), kind="stable") if random is None else random.permutation(values.size)
    kept = np.ones(values.size, bool)
    kept[order[: pruned_count(values.size, alpha)]] = False
    return kept
