"""The seam between the ADMM loop and a device: everything a backend must supply, and nothing else.

Arrays follow the paper's orientation: X is N x P (inputs by samples), Y and the state T are M x P, weights are
N x M. A backend works in one dtype (float32 or float64); the factor is always in float64.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

__all__ = ["MOMENTS_BYTES", "Backend", "Transfers", "soft_threshold"]

Array = Any  # numpy.ndarray here, cupy.ndarray in a GPU backend

#: bytes of a float64 copy of inputs on a device, when their moments are summed
MOMENTS_BYTES = 1 << 28


def soft_threshold(B: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    """Proximal operator of ``threshold * |.|``: shrink towards zero, exactly zero inside the threshold."""
    return np.maximum(B - threshold, 0) - np.maximum(-B - threshold, 0)


class Transfers(Protocol):
    """Copies between the host and a few buffers ("slots") on a device, beside the device's own work.

    For each slot in turn: `reusable`, fill the host's buffers, `send`, `arrived`, work on the slot, `used`, `receive`.
    """

    def host_buffer(self, size: int, dtype: Any) -> np.ndarray:
        """One-dimensional host array that can be copied while the device works; not initialised."""

    def reusable(self, slot: int) -> None:
        """Wait until the host arrays that were last sent to the slot have been read."""

    def send(self, slot: int, pairs: list[tuple[Array, np.ndarray]]) -> None:
        """Copy host arrays to (device, host) pairs, after the work on the slot and what was received from it."""

    def arrived(self, slot: int) -> None:
        """Device work from here on sees what was sent."""

    def used(self, slot: int) -> None:
        """The work on the slot has been given to the device."""

    def receive(self, slot: int, host: np.ndarray, device: Array) -> None:
        """Copy a device array of the slot back, after the work on it."""

    def drain(self) -> None:
        """Wait until nothing is being copied."""


class Backend(Protocol):
    """Functions a device supplies to :mod:`nettrim.admm` and :mod:`nettrim.operators`."""

    name: str
    #: whether its arrays are NumPy's
    on_host: bool
    #: bytes of outputs W^T X that are held at a time, beside the state
    block_bytes: int

    def asarray(self, a: np.ndarray, dtype: Any) -> Array:
        """Move ``a`` to the device in ``dtype``; no copy when it already is there, contiguous, in that dtype."""

    def share(self, a: Any) -> Array | None:
        """Another library's array `a` as one of this device without a copy; None if it is not there."""

    def rowwise(self, a: Any, dtype: Any) -> Array:
        """As `asarray`, and row-major: the passes need M x P arrays so."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array: ...

    def copy(self, a: Array) -> Array: ...

    def to_host(self, a: Array) -> np.ndarray: ...

    def product(self, A: Array, B: Array, out: Array | None = None, alpha: float = 1.0, beta: float = 0.0) -> Array:
        """``out <- alpha A B + beta out``, in place when ``out`` is given."""

    def cast(self, a: Array, dtype: Any) -> Array:
        """``a`` in ``dtype``; no copy when it already is."""

    def moments(self, X: Array) -> np.ndarray:
        """X X^T in float64 on the host."""

    def add_moments(self, total: Array, X: Array) -> None:
        """``total <- total + X X^T``, float64 on the device."""

    def inverse(self, A: np.ndarray) -> Array:
        """Explicit inverse of the symmetric positive definite float64 ``A`` by Cholesky; ``A`` may be overwritten.

        Raises ``numpy.linalg.LinAlgError`` when ``A`` is not positive definite.
        """

    def weight_sums(self, W: Array, H: Array, C: Array) -> tuple[float, np.ndarray]:
        """sum |W| C, and for each column the largest |H| / C where C > 0, (M,) float64 on the host."""

    def wait(self) -> None:
        """Until the device has done what it has been given."""

    def norm(self, a: Array) -> float:
        """Frobenius norm."""

    def transfers(self, slots: int) -> Transfers:
        """What copies between the host and that many buffers."""

    def memory(self) -> tuple[str, int] | None:
        """Name of the device and bytes free on it; None on the host, whose arrays are the caller's."""

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that the device's memory is exhausted."""

    def ball_norms(self, T: Array, target: Array, mask: Array) -> Array:
        """Squared distance of each row of T to Y on Omega, shape (M,), float64."""

    def shrink(self, squares: Array, radii: np.ndarray, dtype: Any) -> Array:
        """Factor by which the projection shrinks each row of T - Y on Omega, from `ball_norms`: (M,) in `dtype`.

        `radii` has one entry for a ball around all rows, or one for each row's own.
        """

    def project_relax(self, T: Array, target: Array, mask: Array, upper: Array, scale: Array, alpha: float) -> None:
        """In place ``T <- T - alpha Proj(T)``."""

    def soft_relax(self, T2: Array, threshold: Array, alpha: float) -> None:
        """In place ``T2 <- T2 - alpha soft(T2, threshold)``."""

    def multiplier_sums(self, Q: Array, target: Array, mask: Array, upper: Array) -> Array:
        """Per row <Q, Y>_Omega, ||Q_Omega||^2, <Q, V>_notOmega: (M, 3) float64."""

    def violation_sums(self, Z: Array, target: Array, mask: Array, upper: Array) -> Array:
        """Per row ||(Z - Y)_Omega||^2, ||(Z - V)_+||^2, max (Z - V)_+ off Omega: (M, 3) float64."""

    def residual_sums(self, T: Array, Z: Array, target: Array, mask: Array, upper: Array, scale: Array) -> Array:
        """Per row ||Proj(T) - Z||^2, ||Z||^2, ||Z - T||^2: (M, 3) float64."""
