"""The seam between the ADMM loop and a device: everything a backend must supply, and nothing else.

Arrays follow the paper's orientation: X is N x P (inputs by samples), Y and the state T are M x P, weights are
N x M. A backend works in one dtype (float32 or float64); the factor is always in float64.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Array = Any  # numpy.ndarray here, cupy.ndarray in a GPU backend


class Backend(Protocol):
    """Functions a device supplies to :mod:`nettrim.admm` and :mod:`nettrim.operators`."""

    name: str
    #: whether its arrays are NumPy's
    on_host: bool

    def asarray(self, a: np.ndarray, dtype: Any) -> Array:
        """Move ``a`` to the device in ``dtype``; no copy when it already is there, contiguous, in that dtype."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array: ...

    def copy(self, a: Array) -> Array: ...

    def to_host(self, a: Array) -> np.ndarray: ...

    def product(self, A: Array, B: Array, out: Array | None = None, alpha: float = 1.0, beta: float = 0.0) -> Array:
        """``out <- alpha A B + beta out``, in place when ``out`` is given."""

    def cast(self, a: Array, dtype: Any) -> Array:
        """``a`` in ``dtype``; no copy when it already is."""

    def moments(self, X: Array) -> np.ndarray:
        """X X^T in float64 on the host."""

    def inverse(self, A: np.ndarray) -> Array:
        """Explicit inverse of the symmetric positive definite float64 ``A`` by Cholesky; ``A`` may be overwritten.

        Raises ``numpy.linalg.LinAlgError`` when ``A`` is not positive definite.
        """

    def norm(self, a: Array) -> float:
        """Frobenius norm."""

    def ball_norms(self, T: Array, target: Array, mask: Array) -> Array:
        """Squared distance of each row of T to Y on Omega, shape (M,), float64."""

    def ball_scale(self, T: Array, target: Array, mask: Array, radii: np.ndarray) -> Array:
        """Factor by which the projection shrinks each row of T - Y on Omega, shape (M,), in the dtype of T.

        `radii` has one entry for a ball around all rows, or one for each row's own.
        """

    def project_relax(self, T: Array, target: Array, mask: Array, upper: Array, scale: Array, alpha: float) -> None:
        """In place ``T <- T - alpha Proj(T)``."""

    def soft_relax(self, T2: Array, threshold: Array, alpha: float) -> None:
        """In place ``T2 <- T2 - alpha soft(T2, threshold)``."""

    def multiplier_sums(self, Q: Array, target: Array, mask: Array, upper: Array) -> np.ndarray:
        """Per row <Q, Y>_Omega, ||Q_Omega||^2, <Q, V>_notOmega: (M, 3) float64 on the host."""

    def violation_sums(self, Z: Array, target: Array, mask: Array, upper: Array) -> np.ndarray:
        """Per row ||(Z - Y)_Omega||^2, ||(Z - V)_+||^2, max (Z - V)_+ off Omega: (M, 3) float64 on the host."""

    def residual_sums(self, T: Array, Z: Array, target: Array, mask: Array, upper: Array, scale: Array) -> np.ndarray:
        """Per row ||Proj(T) - Z||^2, ||Z||^2, ||Z - T||^2: (M, 3) float64 on the host."""
