"""Labels that a pruned last layer keeps, from its own residuals, from its ball alone, or for inputs not seen yet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nettrim.bounds.labels import guaranteed, predicted

__all__ = ["LastLayer", "ball_flips", "last_layer", "leverages"]


def ball_flips(logits: np.ndarray, radius: float) -> int:
    """The most labels that any weights within a ball can change, ||W^T X - Y||_F <= radius.

    To change a label costs at least (f_j - f_k)^2 / 2 of the squared radius, half of it on either logit, so the
    cheapest labels that the radius pays for are the most that can change.

    Parameters
    ----------
    logits : (M, P) array
        Y, the dense layer's.
    radius : float
        epsilon in absolute units, not negative.

    Returns
    -------
    int
    """
    if not radius >= 0:
        raise ValueError(f"radius must not be negative; got {radius}")
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or len(logits) < 2:
        raise ValueError(f"logits must have at least two classes; got shape {logits.shape}")
    two = np.partition(logits, -2, axis=0)[-2:]
    costs = np.sort((two[1] - two[0]) ** 2 / 2)
    # the square of the radius and the sum round: a label more rather than one less
    return int(np.searchsorted(np.cumsum(costs), radius**2 * (1 + 1e-9), side="right"))


def leverages(X: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For inputs x, the norm of the smallest a with X a = x; inf where there is none.

    A pruned linear layer errs at x by (W_hat - W)^T x = R a with R its residuals on X, so logit k errs by at most
    ||R_k|| ||a||, whatever the labels.

    Parameters
    ----------
    X : (N, P) array
        Inputs of the residuals.
    new : (N, Q) array

    Returns
    -------
    (Q,) float64 array
    """
    X, new = X.astype(np.float64, copy=False), new.astype(np.float64, copy=False)
    values, vectors = np.linalg.eigh(X @ X.T)
    inside = values > max(values[-1], 0) * 1e-12
    parts = vectors.T @ new
    found = np.sqrt((parts[inside] ** 2 / values[inside, None]).sum(0))
    outside = np.sqrt((parts[~inside] ** 2).sum(0)) if (~inside).any() else np.zeros(new.shape[1])
    found[outside > 1e-6 * np.linalg.norm(new, axis=0)] = np.inf
    return found


@dataclass(frozen=True)
class LastLayer:
    """Labels of a pruned last layer on its samples.

    Attributes
    ----------
    samples : int
    by_ball : int
        Guaranteed by the radius alone, whatever the weights.
    by_residuals : int
        Guaranteed by the sizes of the residuals, which are those of these weights.
    unchanged : int
        That are the same, by comparing.
    radius : float
        Of the ball, in absolute units.
    """

    samples: int
    by_ball: int
    by_residuals: int
    unchanged: int
    radius: float

    def to_dict(self) -> dict[str, Any]:
        """Fields by name."""
        return asdict(self)


def last_layer(X: np.ndarray, Y: np.ndarray, W: np.ndarray, radius: float | None = None) -> LastLayer:
    """What can be said of the labels of a pruned linear layer, such as `nettrim.solve` returns.

    Parameters
    ----------
    X : (N, P) array
    Y : (M, P) array
        Logits of the dense layer.
    W : (N, M) array
        Pruned weights.
    radius : float, optional
        Of the ball; by default, and if they are further from Y, ||W^T X - Y||_F itself.

    Returns
    -------
    LastLayer
    """
    if Y.shape != (W.shape[1], X.shape[1]) or len(W) != len(X):
        raise ValueError(f"X, Y and W do not fit: {X.shape}, {Y.shape} and {W.shape}")
    Y = Y.astype(np.float64, copy=False)
    R = W.T.astype(np.float64) @ X.astype(np.float64, copy=False) - Y
    for name, a in (("X", X), ("Y", Y), ("W", W)):
        if not np.isfinite(a).all():
            raise ValueError(f"{name} contains NaN or inf")
    radius = max(float(np.linalg.norm(R)), 0.0 if radius is None else radius)
    return LastLayer(
        samples=Y.shape[1],
        by_ball=Y.shape[1] - ball_flips(Y, radius),
        by_residuals=int(guaranteed(Y, np.abs(R)).sum()),
        unchanged=int((predicted(Y) == predicted(Y + R)).sum()),
        radius=radius,
    )
