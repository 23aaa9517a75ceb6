"""Total variation over a grid of inputs: neighbouring pixels get equal weights (Rudin, Osher, Fatemi 1992)."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nettrim.penalties.base import Norm, ratio
from nettrim.penalties.entrywise import positive
from nettrim.threads import blas_threads

__all__ = ["TotalVariation"]

#: accelerated gradient steps of a prox, which starts from the last one's dual variable, and of a bound, which may not
PROX_STEPS, BOUND_STEPS, FIRST_STEPS = 15, 60, 400


@dataclass(frozen=True)
class TotalVariation(Norm):
    """``sum C |W| + weight sum over neighbours |W_i,m - W_j,m|``: the fused lasso (Tibshirani et al. 2005).

    Anisotropic: neighbours are pairs along each axis. The first ``prod(shape)`` inputs are the grid, in C order; the
    rest, such as a bias, are not part of it. C must be larger than 0 on the grid: without an l1 part there would be no
    dual bound, since multipliers could not be scaled into the dual feasible set.

    The prox is iterative, starts from the last one's dual variable, and becomes exact as ADMM settles. The dual bound
    comes from a dual variable that is searched for: every one proves a bound, the best proves the best.

    Parameters
    ----------
    shape : tuple of int
        Of the grid, such as (28, 28), or (3, 32, 32) with ``axes=(1, 2)``.
    weight : float
        Of the differences, next to that of the entries.
    axes : tuple of int, optional
        Along which neighbours differ; default all.
    """

    shape: tuple[int, ...]
    weight: float = 1.0
    axes: tuple[int, ...] | None = None
    name = "total_variation"
    separable = True

    def __post_init__(self) -> None:
        positive("weight", self.weight)
        object.__setattr__(self, "weight", float(self.weight))
        object.__setattr__(self, "shape", _sizes("shape", self.shape, 1))
        axes = tuple(range(len(self.shape))) if self.axes is None else _sizes("axes", self.axes, 0)
        if len(set(axes)) < len(axes) or max(axes) >= len(self.shape):
            raise ValueError(f"axes must be different ones of 0 to {len(self.shape) - 1}; got {axes}")
        object.__setattr__(self, "axes", axes)

    @cached_property
    def ends(self) -> np.ndarray:
        """(E, 2) pairs of neighbours."""
        index = np.arange(np.prod(self.shape)).reshape(self.shape)
        pairs = []
        for axis in self.axes:
            n = self.shape[axis]
            pairs.append(np.stack([index.take(range(n - 1), axis).ravel(), index.take(range(1, n), axis).ravel()], 1))
        return np.concatenate(pairs).astype(np.int32)

    @cached_property
    def _step(self) -> float:
        # the largest eigenvalue of a graph's Laplacian is at most twice the largest degree
        degree = np.bincount(self.ends.ravel()) if self.ends.size else np.ones(1)
        return 1.0 / (2.0 * degree.max())

    def check(self, C: np.ndarray, N: int, M: int) -> None:
        size = int(np.prod(self.shape))
        if size > N:
            raise ValueError(f"shape {self.shape} of the penalty has {size} entries, X has {N} rows")
        if (np.broadcast_to(C, (N, M))[:size] == 0).any():
            raise ValueError("C must be larger than 0 on the grid of the penalty total_variation")

    def value(self, W: np.ndarray, C: np.ndarray) -> float:
        W = W.astype(np.float64)
        differences = np.abs(W[self.ends[:, 1]] - W[self.ends[:, 0]]).sum()
        return float((C * np.abs(W)).sum() + self.weight * differences)

    def _fused(self, B: np.ndarray, C: np.ndarray, tau: float, Q: np.ndarray, steps: int) -> np.ndarray:
        """The kernel over all neurons; Q (M, E) is where it starts, and is left at the end."""
        # Numba is no part of `import nettrim`
        from nettrim.kernels import variation as kernel

        B = np.ascontiguousarray(B.T, np.float64)
        C = np.ascontiguousarray(np.broadcast_to(C.T, B.shape), np.float64)
        W = np.empty_like(B)
        threads = max(min(blas_threads(), len(B)), 1)
        blocks = [slice(k * len(B) // threads, (k + 1) * len(B) // threads) for k in range(threads)]

        def work(s: slice) -> None:
            kernel.fused_all(B[s], C[s], tau, self.weight, self._step, self.ends, Q[s], W[s], steps)

        if threads == 1:
            work(slice(None))
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, blocks))
        return W.T

    def _dual(self, memory: dict[str, Any] | None, key: str, M: int) -> tuple[np.ndarray, bool]:
        """A dual variable to start from, kept in `memory`, and whether it has been used before."""
        memory = {} if memory is None else memory
        known = key in memory and memory[key].shape == (M, len(self.ends))
        if not known:
            memory[key] = np.zeros((M, len(self.ends)))
        return memory[key], known

    def prox(self, B: np.ndarray, tau: float, C: np.ndarray, memory: dict[str, Any] | None = None) -> np.ndarray:
        Q, known = self._dual(memory, "prox", B.shape[1])
        return self._fused(B, C, tau, Q, PROX_STEPS if known else FIRST_STEPS).astype(B.dtype)

    def scales(self, H: np.ndarray, C: np.ndarray, memory: dict[str, Any] | None = None) -> np.ndarray:
        # H = S + D^T Q with |Q| <= weight: the closer |S| comes to C, the less the multipliers must shrink
        Q, known = self._dual(memory, "bound", H.shape[1])
        self._fused(H, C, 1.0, Q, BOUND_STEPS if known else FIRST_STEPS)
        S = H.astype(np.float64)
        np.add.at(S, self.ends[:, 0], Q.T)
        np.subtract.at(S, self.ends[:, 1], Q.T)
        return 1 / np.maximum(ratio(np.abs(S), C).max(axis=0), 1)

    def expression(self, cp: Any, W: Any, C: np.ndarray) -> tuple[Any, list[Any]]:
        differences = W[self.ends[:, 1], :] - W[self.ends[:, 0], :]
        entries = cp.sum(cp.multiply(np.broadcast_to(C, W.shape), cp.abs(W)))
        return entries + self.weight * cp.sum(cp.abs(differences)), []

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "weight": self.weight, "axes": list(self.axes)}


def _sizes(name: str, values: Iterable[int], least: int) -> tuple[int, ...]:
    found = tuple(values)
    if not found or any(isinstance(v, bool) or not isinstance(v, (int, np.integer)) or v < least for v in found):
        raise ValueError(f"{name} must be whole numbers of at least {least}; got {values!r}")
    return tuple(int(v) for v in found)
