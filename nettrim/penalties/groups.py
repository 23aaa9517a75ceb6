"""Group norms, l2,1: inputs, outputs or channels leave as a whole (Yuan, Lin 2006)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nettrim.penalties.base import Norm, ratio

__all__ = ["Columns", "Groups", "Rows"]


class _GroupNorm(Norm):
    """``sum over groups of C_g ||W_g||_2``; C is constant in a group but for zeros, whose entries are free.

    The dual norm is the largest ``||H_g||_2 / C_g``.
    """

    counts = True

    @abstractmethod
    def _sums(self, A: np.ndarray) -> np.ndarray:
        """Sums over the groups of an (N, M) array, in float64, one entry a group."""

    @abstractmethod
    def _spread(self, g: np.ndarray) -> np.ndarray:
        """One value a group, as `_sums` orders them, broadcastable to (N, M)."""

    @abstractmethod
    def _largest(self, A: np.ndarray) -> np.ndarray:
        """Maxima over the groups of an (N, M) array, one entry a group."""

    def _weights(self, C: np.ndarray, N: int, M: int) -> np.ndarray:
        return self._largest(np.broadcast_to(C, (N, M))).astype(np.float64)

    def check(self, C: np.ndarray, N: int, M: int) -> None:
        full = np.broadcast_to(C, (N, M))
        same = (full == 0) | (full == self._spread(self._largest(full)))
        if not same.all():
            raise ValueError(f"C must be constant within each group of the penalty {self.name}, but for zeros")

    def _norms(self, A: np.ndarray, C: np.ndarray) -> np.ndarray:
        """||A_g||_2 over the entries that are not free, one entry a group, in float64."""
        if (C == 0).any():
            A = np.where(C > 0, A, 0)
        return np.sqrt(self._sums(A))

    def value(self, W: np.ndarray, C: np.ndarray) -> float:
        return float((self._weights(C, *W.shape) * self._norms(W, C)).sum())

    def prox(self, B: np.ndarray, tau: float, C: np.ndarray, memory: dict[str, Any] | None = None) -> np.ndarray:
        norms = self._norms(B, C)
        shrink = np.maximum(1 - ratio(tau * self._weights(C, *B.shape), norms), 0)
        factor = np.broadcast_to(self._spread(np.where(norms > 0, shrink, 0)), B.shape)
        if (C == 0).any():
            factor = np.where(C > 0, factor, 1)
        return B * factor.astype(B.dtype)

    def scales(self, H: np.ndarray, C: np.ndarray) -> np.ndarray:
        excess = ratio(self._norms(H, C), self._weights(C, *H.shape))
        return 1 / np.maximum(excess if self.separable else excess.max(keepdims=True), 1).ravel()

    def size(self, W: np.ndarray) -> np.ndarray:
        return self._spread(np.sqrt(self._sums(W)))

    @abstractmethod
    def _members(self, N: int, M: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Indices of the entries of each group."""

    def expression(self, cp: Any, W: Any, C: np.ndarray) -> tuple[Any, list[Any]]:
        C = np.broadcast_to(C, W.shape)
        terms = []
        for i, j in self._members(*W.shape):
            paid = C[i, j] > 0
            if paid.any():
                entries = cp.hstack([W[a, b] for a, b in zip(i[paid], j[paid], strict=True)])
                terms.append(C[i, j].max() * cp.norm(entries, 2))
        return cp.sum(cp.hstack(terms)) if terms else cp.Constant(0.0), []


@dataclass(frozen=True)
class Rows(_GroupNorm):
    """``sum_i C_i ||W_i,:||_2``: an input is used by the layer or by none of its neurons."""

    name = "rows"

    def _sums(self, A: np.ndarray) -> np.ndarray:
        return np.einsum("nm,nm->n", A, A, dtype=np.float64)[:, None]

    def _spread(self, g: np.ndarray) -> np.ndarray:
        return g

    def _largest(self, A: np.ndarray) -> np.ndarray:
        return A.max(axis=1, keepdims=True)

    def spread(self, N: int, M: int) -> float:
        return math.sqrt(M)

    def _members(self, N: int, M: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.full(M, i), np.arange(M)) for i in range(N)]


@dataclass(frozen=True)
class Columns(_GroupNorm):
    """``sum_j C_j ||W_:,j||_2``: a neuron, or an output channel, keeps its weights or becomes constant."""

    name = "columns"
    separable = True

    def _sums(self, A: np.ndarray) -> np.ndarray:
        return np.einsum("nm,nm->m", A, A, dtype=np.float64)[None]

    def _spread(self, g: np.ndarray) -> np.ndarray:
        return g

    def _largest(self, A: np.ndarray) -> np.ndarray:
        return A.max(axis=0, keepdims=True)

    def spread(self, N: int, M: int) -> float:
        return math.sqrt(N)

    def _members(self, N: int, M: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.arange(N), np.full(N, j)) for j in range(M)]


@dataclass(frozen=True, eq=False)
class Groups(_GroupNorm):
    """``sum_g C_g ||W_g||_2`` over any partition of the entries, such as the input channels of a convolution.

    Parameters
    ----------
    labels : (N,) or (N, M) int array
        The group of each input, for all neurons, or of each entry: 0, 1, ... For an unfolded convolution with `k`
        weights a channel: ``np.arange(C).repeat(k)``, and a label of its own for the bias row.
    """

    labels: np.ndarray
    name = "groups"
    _count: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        labels = np.array(self.labels)
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels must be integers; got {labels.dtype}")
        if labels.ndim not in (1, 2) or labels.size == 0:
            raise ValueError(f"labels must be (N,) or (N, M); got shape {labels.shape}")
        if labels.min() < 0:
            raise ValueError("labels must be at least 0")
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "_count", int(labels.max()) + 1)

    def check(self, C: np.ndarray, N: int, M: int) -> None:
        if self.labels.shape not in ((N,), (N, M)):
            raise ValueError(f"labels of the penalty must be ({N},) or ({N}, {M}); got {self.labels.shape}")
        super().check(C, N, M)

    def _sums(self, A: np.ndarray) -> np.ndarray:
        if self.labels.ndim == 1:
            return np.bincount(self.labels, np.einsum("nm,nm->n", A, A, dtype=np.float64), self._count)
        return np.bincount(self.labels.ravel(), (A.astype(np.float64) ** 2).ravel(), self._count)

    def _spread(self, g: np.ndarray) -> np.ndarray:
        return g[self.labels][:, None] if self.labels.ndim == 1 else g[self.labels]

    def _largest(self, A: np.ndarray) -> np.ndarray:
        out = np.zeros(self._count, A.dtype)
        np.maximum.at(out, self.labels, A.max(axis=1) if self.labels.ndim == 1 else A)
        return out

    def spread(self, N: int, M: int) -> float:
        return math.sqrt(N * M / self._count)

    def _members(self, N: int, M: int) -> list[tuple[np.ndarray, np.ndarray]]:
        labels = np.broadcast_to(self.labels[:, None] if self.labels.ndim == 1 else self.labels, (N, M))
        return [(i, j) for i, j in (np.nonzero(labels == g) for g in range(self._count))]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "labels": self.labels.tolist()}
