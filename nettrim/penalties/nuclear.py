"""The nuclear norm: weights of low rank, which two thinner layers can hold (Fazel, Hindi, Boyd 2001)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim.penalties.base import Norm

__all__ = ["Nuclear"]


@dataclass(frozen=True)
class Nuclear(Norm):
    """``C ||W||_*``, the sum of the singular values; C is one number, or zero for rows that are free, such as a bias.

    The dual norm is the largest singular value. Entries do not become zero: what shrinks is the rank.
    """

    name = "nuclear"

    def check(self, C: np.ndarray, N: int, M: int) -> None:
        if C.shape[1] > 1 and not (C == C[:, :1]).all():
            raise ValueError("C must be the same for all neurons with the penalty nuclear")
        positive = C[C > 0]
        if positive.size and not (positive == positive[0]).all():
            raise ValueError("C must be one number, but for zero rows, with the penalty nuclear")

    def _rows(self, C: np.ndarray, N: int) -> tuple[slice | np.ndarray, float]:
        """The rows that are not free, and their weight."""
        weight = float(C.max())
        rows = np.flatnonzero(np.broadcast_to(C[:, 0] > 0, (N,)))
        return (slice(None) if rows.size == N else rows), weight

    def value(self, W: np.ndarray, C: np.ndarray) -> float:
        rows, weight = self._rows(C, W.shape[0])
        return weight * float(_singular_values(W[rows].astype(np.float64)).sum()) if weight > 0 else 0.0

    def prox(self, B: np.ndarray, tau: float, C: np.ndarray, memory: dict[str, Any] | None = None) -> np.ndarray:
        rows, weight = self._rows(C, B.shape[0])
        out = B.copy()
        # SciPy's linear algebra is no part of `import nettrim`
        from scipy.linalg import svd

        U, s, Vt = svd(B[rows], full_matrices=False, check_finite=False)
        rank = int(np.count_nonzero(s > tau * weight))
        kept = (s[:rank] - tau * weight).astype(B.dtype)
        out[rows] = (U[:, :rank] * kept) @ Vt[:rank]
        return out

    def scales(self, H: np.ndarray, C: np.ndarray) -> np.ndarray:
        rows, weight = self._rows(C, H.shape[0])
        if weight == 0:
            return np.ones(1)
        return 1 / np.maximum(_singular_values(H[rows].astype(np.float64)).max(keepdims=True) / weight, 1)

    def spread(self, N: int, M: int) -> float:
        # the largest singular value of a random matrix over its entries
        return math.sqrt(N) + math.sqrt(M)

    def expression(self, cp: Any, W: Any, C: np.ndarray) -> tuple[Any, list[Any]]:
        rows, weight = self._rows(C, W.shape[0])
        return weight * cp.normNuc(W[rows, :]), []


def _singular_values(A: np.ndarray) -> np.ndarray:
    from scipy.linalg import svdvals

    return svdvals(A)
