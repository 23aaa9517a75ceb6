"""ADMM's passes over a layer's samples, a chunk at a time: what is left to a subclass is where the chunks come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Chunk", "Sweeps"]

Array = Any


@dataclass
class Chunk:
    """Device arrays of some samples: X (N, w), Y (M, w), Omega (M, w), V (M, w) or (1, 1), and the state T (M, w).

    What a pass has not asked for is None or stale.
    """

    X: Array
    Y: Array
    mask: Array
    V: Array
    T: Array = None


class Sweeps(ABC):
    """The passes of :class:`nettrim.samples.Samples`, in the order of the samples, so that sums repeat.

    A subclass has the attributes below and `_sweep`.

    Attributes
    ----------
    backend : Backend
    dtype : numpy dtype
    shape : (N, M, P)
    """

    backend: Any
    dtype: np.dtype
    shape: tuple[int, int, int]

    @abstractmethod
    def _sweep(self, work: Callable[[Chunk], Any], *names: str, T: Any = None, write: bool = False) -> None:
        """Call `work` with every chunk, with the arrays called `names` and, if given, the state, kept if `write`."""

    def saved(self, columns: Any) -> None:  # noqa: B027  of use to those on other machines only
        """It is of no use here."""

    def target_product(self) -> Array:
        total = self._weights()
        self._sweep(lambda c: self._product(c.X, c.Y.T, total, 1.0, 1.0), "X", "Y")
        return total

    def squares(self, T: Any) -> Array:
        squares: list[Array] = []
        self._sweep(lambda c: squares.append(self.backend.ball_norms(c.T, c.Y, c.mask)), "Y", "mask", T=T)
        return sum(squares[1:], squares[0])

    def project(self, T: Any, scale: Array, alpha: float, sums: bool) -> tuple[Array, np.ndarray | None]:
        be, total = self.backend, self._weights()
        parts: list[Array] = []

        def work(c: Chunk) -> None:
            be.project_relax(c.T, c.Y, c.mask, c.V, scale, alpha)
            self._product(c.X, c.T.T, total, 1.0, 1.0)
            if sums:
                parts.append(be.multiplier_sums(c.T, c.Y, c.mask, c.V))

        self._sweep(work, "X", "Y", "mask", "V", T=T, write=True)
        return total, self._sum(parts) if sums else None

    def advance(self, T: Any, F: Array) -> Array:
        return self._move(T, F, 1.0, 1.0)

    def rescale(self, T: Any, W: Array, keep: float) -> Array:
        return self._move(T, W, 1 - keep, keep)

    def measure(self, T: Any, W: Array, step: Array, scale: Array) -> tuple[float, np.ndarray]:
        be, moved = self.backend, [0.0]
        parts: list[Array] = []

        def work(c: Chunk) -> None:
            Z = self._product(step.T, c.X)
            moved[0] += be.norm(Z) ** 2
            self._product(W.T, c.X, Z)
            parts.append(be.residual_sums(c.T, Z, c.Y, c.mask, c.V, scale))

        self._sweep(work, "X", "Y", "mask", "V", T=T)
        return float(np.sqrt(moved[0])), self._sum(parts)

    def violations(self, W: Array) -> np.ndarray:
        be, parts = self.backend, []

        def work(c: Chunk) -> None:
            parts.append(be.violation_sums(self._product(W.T, c.X), c.Y, c.mask, c.V))

        self._sweep(work, "X", "Y", "mask", "V")
        found = [be.to_host(part) for part in parts]
        total = np.sum(found, axis=0)
        total[:, 2] = np.max([part[:, 2] for part in found], axis=0)
        return total

    def _move(self, T: Any, W: Array, alpha: float, beta: float) -> Array:
        """``T <- alpha W^T X + beta T``, and the squares of the new T."""
        be = self.backend
        squares: list[Array] = []

        def work(c: Chunk) -> None:
            self._product(W.T, c.X, c.T, alpha, beta)
            squares.append(be.ball_norms(c.T, c.Y, c.mask))

        self._sweep(work, "X", "Y", "mask", T=T, write=True)
        return sum(squares[1:], squares[0])

    def _product(self, A: Array, B: Array, out: Array = None, alpha: float = 1.0, beta: float = 0.0) -> Array:
        """``out <- alpha A B + beta out``, as the backend's."""
        return self.backend.product(A, B, out, alpha, beta)

    def _weights(self) -> Array:
        return self.backend.zeros(self.shape[:2], self.dtype)

    def _sum(self, parts: list[Array]) -> np.ndarray:
        return np.sum([self.backend.to_host(part) for part in parts], axis=0)
