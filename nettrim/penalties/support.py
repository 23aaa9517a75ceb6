"""The k-support norm of blocks of inputs: the convex relaxation of n:m patterns (Argyriou, Foygel, Srebro 2012)."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from nettrim.penalties.base import Norm, ratio
from nettrim.threads import blas_threads

__all__ = ["KSupport"]


@dataclass(frozen=True)
class KSupport(Norm):
    """``sum over blocks of C ||W_block||_k``, for blocks of `of` consecutive inputs of a neuron, as in n:m patterns.

    The unit ball of the k-support norm is the convex hull of the vectors of at most k non-zeros and 2-norm at most 1,
    so that no convex penalty is nearer to "at most k of each block". Blocks may still have more: `nettrim.l0` with
    ``pattern="2:4"`` goes on from here. The dual norm is the 2-norm of a block's k largest entries.

    The last inputs, fewer than `of`, must be free (C = 0), as a bias is; C is constant in a block.

    Parameters
    ----------
    k, of : int
        n and m of the pattern, such as 2 and 4.
    """

    k: int = 2
    of: int = 4
    name = "k_support"
    separable = True

    def __post_init__(self) -> None:
        for what in ("k", "of"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{what} must be a whole number; got {value!r}")
        if not 0 < self.k <= self.of:
            raise ValueError(f"a pattern n:m needs 0 < k <= of; got {self.k} and {self.of}")

    def check(self, C: np.ndarray, N: int, M: int) -> None:
        blocks = N // self.of
        C = np.broadcast_to(C, (N, M))
        if C[blocks * self.of :].any():
            raise ValueError(
                f"blocks of {self.of} inputs leave {N % self.of} of {N} over, which must be free (C = 0, as a "
                "bias may be) with the penalty k_support"
            )
        grouped = C[: blocks * self.of].reshape(blocks, self.of, M)
        if (grouped != grouped[:, :1]).any():
            raise ValueError("C must be constant within each block of the penalty k_support")

    def _sorted(self, A: np.ndarray) -> np.ndarray:
        """|A| in float64 by blocks, (blocks, size, M), the largest first."""
        blocks = A.shape[0] // self.of
        grouped = np.abs(A[: blocks * self.of].astype(np.float64)).reshape(blocks, self.of, -1)
        return -np.sort(-grouped, axis=1)

    def _weights(self, C: np.ndarray, N: int, M: int) -> np.ndarray:
        blocks = N // self.of
        return np.broadcast_to(C, (N, M))[: blocks * self.of : self.of].astype(np.float64)

    def value(self, W: np.ndarray, C: np.ndarray) -> float:
        a = self._sorted(W)
        norms = np.zeros((a.shape[0], a.shape[2]))
        undecided = np.ones(norms.shape, bool)
        for r in range(self.k):
            # the k - r - 1 largest as they are, and the sum of the others shared by r + 1
            head, tail = a[:, : self.k - r - 1], a[:, self.k - r - 1 :].sum(1)
            above = head[:, -1] > tail / (r + 1) if head.shape[1] else np.ones(norms.shape, bool)
            chosen = undecided & above
            norms = np.where(chosen, np.sqrt((head**2).sum(1) + tail**2 / (r + 1)), norms)
            undecided &= ~chosen
        return float((self._weights(C, *W.shape) * norms).sum())

    def prox(self, B: np.ndarray, tau: float, C: np.ndarray, memory: dict[str, Any] | None = None) -> np.ndarray:
        # Numba is no part of `import nettrim`
        from nettrim.kernels import support

        M = B.shape[1]
        W = B.astype(np.float64)
        values, weights = W.copy(), np.broadcast_to(C.astype(np.float64), B.shape)
        threads = max(min(blas_threads(), M), 1)
        parts = [slice(t * M // threads, (t + 1) * M // threads) for t in range(threads)]

        def work(s: slice) -> None:
            support.prox(values[:, s], weights[:, s], tau, self.k, self.of, W[:, s])

        if threads == 1:
            work(slice(None))
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, parts))
        return W.astype(B.dtype)

    def scales(self, H: np.ndarray, C: np.ndarray) -> np.ndarray:
        largest = np.sqrt((self._sorted(H)[:, : self.k] ** 2).sum(1))
        excess = ratio(largest, self._weights(C, *H.shape))
        return 1 / np.maximum(excess.max(axis=0, initial=0), 1)

    def spread(self, N: int, M: int) -> float:
        return math.sqrt(self.k)

    def expression(self, cp: Any, W: Any, C: np.ndarray) -> tuple[Any, list[Any]]:
        # each block is a sum of vectors on k of its entries, whose 2-norms count
        C = np.broadcast_to(C, W.shape)
        terms, constraints = [], []
        for j in range(W.shape[1]):
            for first in range(0, W.shape[0] - self.of + 1, self.of):
                if C[first, j] == 0:
                    continue
                parts: list[list[Any]] = [[] for _ in range(self.of)]
                for chosen in combinations(range(self.of), self.k):
                    v = cp.Variable(self.k)
                    terms.append(C[first, j] * cp.norm(v, 2))
                    for at, i in enumerate(chosen):
                        parts[i].append(v[at])
                constraints += [W[first + i, j] == sum(parts[i]) for i in range(self.of)]
        return sum(terms), constraints

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "k": self.k, "of": self.of}
