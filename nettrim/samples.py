"""A layer's samples on a device, X, Y, Omega and V, and the passes that ADMM makes over them.

The loop in admm.py touches arrays of size M x P and N x P only through these. :class:`Resident` has all samples on the
device; :class:`nettrim.streamed.Streamed` has as many as fit, :class:`nettrim.fromdisk.FromDisk` reads them from disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from nettrim.convolution import Convolution
from nettrim.operators import Dense
from nettrim.unfolding import Unfolding

__all__ = ["Resident", "Samples", "operator_of"]

Array = Any


def operator_of(X: Any, backend: Any, dtype: Any, shared: Array = None) -> Dense | Unfolding:
    """The operator of a problem's X on a backend; `shared` is X on the device, where the caller has it there."""
    return Unfolding(X, backend, dtype) if isinstance(X, Convolution) else Dense(X, backend, dtype, shared)


class Samples(Protocol):
    """What ADMM needs of a layer's samples. T is the state, M x P, in whatever form `state` has made it.

    Weights W, F and step are N x M device arrays. Sums over samples are by row, (M, 3) float64 on the host, as
    :class:`nettrim.backends.base.Backend` defines them, and `squares` are (M,) float64 on the device.
    """

    backend: Any
    dtype: np.dtype
    #: (N, M, P)
    shape: tuple[int, int, int]

    def state(self) -> Any:
        """T = 0."""

    def fits(self, T: Any) -> bool:
        """Whether an earlier state has the form of this one's."""

    def drain(self) -> None:
        """Wait until nothing is being copied to or from the device, and its work is done."""

    def to_host(self, T: Any) -> np.ndarray:
        """T as an M x P array."""

    def multiplier(self, T: Any, rho: float) -> Any:
        """rho T as an M x P array, or as a Chunked one that is valid as long as T does not change."""

    def load(self, T: Any, values: Any) -> Array:
        """T <- values, M x P on the host, or what gives ``values[:, slice]`` and all of it; returns X T^T."""

    def save(self, T: Any, writer: Any) -> list[dict[str, Any]]:
        """Give the columns of T to a :class:`nettrim.checkpoint.Writer`; its records in the order of the samples."""

    def saved(self, columns: Any) -> None:
        """Be told that what was saved last is on disk for good, as these :class:`nettrim.checkpoint.Columns`."""

    def sizes(self) -> np.ndarray:
        """||y_m|| on Omega, (M,) float64 on the host."""

    def target_product(self) -> Array:
        """X Y^T, N x M."""

    def squares(self, T: Any) -> Array:
        """Squared distance of each row of T to Y on Omega."""

    def project(self, T: Any, scale: Array, alpha: float, sums: bool) -> tuple[Array, np.ndarray | None]:
        """``T <- T - alpha Proj(T)``; returns X T^T and, if `sums`, the multiplier sums of the new T."""

    def advance(self, T: Any, F: Array) -> Array:
        """``T <- T + F^T X``; returns the new `squares`."""

    def rescale(self, T: Any, W: Array, keep: float) -> Array:
        """``T <- keep T + (1 - keep) W^T X``; returns the new `squares`."""

    def measure(self, T: Any, W: Array, step: Array, scale: Array) -> tuple[float, np.ndarray]:
        """||step^T X||, and the residual sums of T and Z = W^T X."""

    def violations(self, W: Array) -> np.ndarray:
        """Violation sums of Z = W^T X."""


class Resident:
    """All samples on the device. Its arrays are for what works on the host: working sets, polish.

    Parameters
    ----------
    operator : Dense or Unfolding
        X.
    target, mask, upper : (M, P), (M, P), (M, P) or (1, 1) device arrays, row-major
        Y, Omega and V.
    backend : Backend
    """

    def __init__(self, operator: Dense | Unfolding, target: Array, mask: Array, upper: Array, backend: Any):
        self.operator, self.backend = operator, backend
        self.target, self.mask, self.upper = target, mask, upper
        self.dtype = target.dtype
        self.shape = (operator.shape[0], *target.shape)

    def state(self) -> Array:
        return self.backend.zeros(self.target.shape, self.dtype)

    def fits(self, T: Any) -> bool:
        return getattr(T, "shape", None) == self.target.shape

    def drain(self) -> None:
        # the caller's own arrays may be what the last iteration still reads
        self.backend.wait()

    def to_host(self, T: Array) -> np.ndarray:
        return self.backend.to_host(T)

    def multiplier(self, T: Array, rho: float) -> np.ndarray:
        return self.to_host(T) * self.dtype.type(rho)

    def load(self, T: Array, values: Any) -> Array:
        T[...] = self.backend.asarray(np.ascontiguousarray(values), self.dtype)
        return self.operator.adjoint(T)

    def save(self, T: Array, writer: Any) -> list[dict[str, Any]]:
        return [writer.write(0, self.to_host(T))]

    def saved(self, columns: Any) -> None:
        """It is of no use here."""

    def sizes(self) -> np.ndarray:
        be, rows = self.backend, []
        for s, zero in self._blocks():
            rows.append(be.to_host(be.ball_norms(zero, self.target[s], self.mask[s])))
        return np.sqrt(np.concatenate(rows))

    def target_product(self) -> Array:
        return self.operator.adjoint(self.target)

    def squares(self, T: Array) -> Array:
        return self.backend.ball_norms(T, self.target, self.mask)

    def project(self, T: Array, scale: Array, alpha: float, sums: bool) -> tuple[Array, np.ndarray | None]:
        self.backend.project_relax(T, self.target, self.mask, self.upper, scale, alpha)
        return self.operator.adjoint(T), self.multiplier_sums(T) if sums else None

    def multiplier_sums(self, Q: Array) -> np.ndarray:
        """Multiplier sums of a device array Q."""
        be = self.backend
        return be.to_host(be.multiplier_sums(Q, self.target, self.mask, self.upper))

    def advance(self, T: Array, F: Array) -> Array:
        self.operator.forward(F, T, 1.0, 1.0)
        return self.squares(T)

    def rescale(self, T: Array, W: Array, keep: float) -> Array:
        self.operator.forward(W, T, 1 - keep, keep)
        return self.squares(T)

    def measure(self, T: Array, W: Array, step: Array, scale: Array) -> tuple[float, np.ndarray]:
        be, moved, rows = self.backend, 0.0, []
        for s, Z in self._blocks():
            self.operator.forward(be.copy(step[:, s]), Z)
            moved += be.norm(Z) ** 2
            self.operator.forward(be.copy(W[:, s]), Z)
            sums = be.residual_sums(T[s], Z, self.target[s], self.mask[s], self._bounds(s), scale[s])
            rows.append(be.to_host(sums))
        return float(np.sqrt(moved)), np.concatenate(rows)

    def violations(self, W: Array) -> np.ndarray:
        be, rows = self.backend, []
        for s, Z in self._blocks():
            self.operator.forward(be.copy(W[:, s]), Z)
            rows.append(be.to_host(be.violation_sums(Z, self.target[s], self.mask[s], self._bounds(s))))
        return np.concatenate(rows)

    def _bounds(self, s: slice) -> Array:
        return self.upper if self.upper.size == 1 else self.upper[s]

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        """Blocks of neurons, and a buffer for their outputs, zero at first."""
        M, P = self.target.shape
        block = max(1, min(M, self.backend.block_bytes // (self.dtype.itemsize * P)))
        Z = self.backend.zeros((block, P), self.dtype)
        for m in range(0, M, block):
            s = slice(m, min(m + block, M))
            yield s, Z[: s.stop - m]
