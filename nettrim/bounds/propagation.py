"""From errors of layers to errors of the output: "bubbling up" (paper 001, Figure 1 and section 5.2).

Pre-activations z = W^T x, ReLUs between layers, which make no difference larger. If the inputs of a layer err by at
most e, entry by entry, and the layer's own pruning makes an error of at most d there, its outputs err by at most
|W|^T e + d.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["bubble_up", "carry"]


def carry(W: np.ndarray, error: np.ndarray, own: np.ndarray | float = 0.0) -> np.ndarray:
    """Bound on the errors of a layer's outputs.

    Derivation: W_hat^T x_hat - W^T x = (W_hat - W)^T x_hat + W^T (x_hat - x) = (W_hat - W)^T x + W_hat^T (x_hat - x).
    So `W` is the dense layer where `own` bounds the first term at the pruned network's inputs, and the pruned one where
    it does at the dense network's.

    Parameters
    ----------
    W : (N, M) array
    error : array that broadcasts to (N, P)
        Bound on ``|x_hat - x|``; the row of a bias is zero.
    own : array that broadcasts to (M, P)
        Bound on the layer's own error.

    Returns
    -------
    (M, P) float64 array
    """
    W = np.abs(W.astype(np.float64, copy=False))
    error = np.asarray(error, float)
    if error.ndim != 2 or error.shape[0] != len(W):
        raise ValueError(f"error must have a row for each of the {len(W)} inputs; got {error.shape}")
    if (error < 0).any() or (np.asarray(own) < 0).any():
        raise ValueError("error and own must not be negative: they bound sizes")
    return W.T @ error + own


def bubble_up(weights: Sequence[np.ndarray], own: Sequence[np.ndarray], bias: bool = False) -> list[np.ndarray]:
    """Bounds on the errors of every layer's outputs, first to last.

    Parameters
    ----------
    weights : sequence of (N_l, M_l) arrays
        As `carry` wants them.
    own : sequence of arrays that broadcast to (M_l, P)
        Bound on each layer's own error.
    bias : bool
        Whether the last row of every array is a bias, whose input does not err.

    Returns
    -------
    list of (M_l, P) arrays
    """
    if len(weights) != len(own):
        raise ValueError(f"own must have a bound for each of the {len(weights)} layers; got {len(own)}")
    found: list[np.ndarray] = []
    for k, (W, d) in enumerate(zip(weights, own, strict=True)):
        d = np.asarray(d, float)
        d = d if d.ndim == 2 else np.broadcast_to(d, (W.shape[1], 1))
        inputs = len(W) - bias
        if k == 0:
            if (d < 0).any():
                raise ValueError("own must not be negative: it bounds sizes")
            found.append(np.broadcast_to(d, (W.shape[1], d.shape[1])).copy())
        else:
            found.append(carry(W[:inputs], found[-1], d))
    return found
