"""Samples on the workers of a cluster, as ADMM asks for them; see :class:`nettrim.samples.Samples`.

An iteration asks twice: it sends the step F (N x M) and gets squared norms back, and sends the M factors of the
projection and gets X T^T (N x M) back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim.distributed.shards import Multiplier, Shards
from nettrim.problem import Problem

__all__ = ["Sharded"]

Array = Any


@dataclass(frozen=True)
class _Token:
    """Stands for the state: there is one at a time."""

    shards: Shards
    number: int


class Sharded:
    """Samples of a `ShardedProblem`.

    Parameters
    ----------
    shards : Shards
    problem : Problem
    backend : Backend
        Of this process, for what is N x M.
    """

    def __init__(self, shards: Shards, problem: Problem, backend: Any):
        self.backend, self.dtype = backend, problem.dtype
        self.shape = (problem.N, problem.M, problem.P)
        self._shards, self._problem = shards, problem

    def state(self) -> _Token:
        self._shards.total("zero", changes=True)
        self._shards.token = _Token(self._shards, self._shards.number)
        return self._shards.token

    def fits(self, T: Any) -> bool:
        return T is self._shards.token

    def drain(self) -> None:
        """Every call waits for its result."""

    def to_host(self, T: _Token) -> np.ndarray:
        raise MemoryError("the state is on the workers, and too large for one machine")

    def multiplier(self, T: _Token, rho: float) -> Multiplier:
        return self._shards.multiplier(rho)

    def load(self, T: _Token, values: Any) -> Array:
        return self._shards.load(values).sums[0]

    def save(self, T: _Token, writer: Any) -> list[dict[str, Any]]:
        return self._shards.save(writer)

    def saved(self, columns: Any) -> None:
        self._shards.saved(columns)

    def sizes(self) -> np.ndarray:
        # known since the problem was made
        return self._problem._row_norms

    def gram(self) -> np.ndarray:
        """X X^T in float64."""
        return np.asfortranarray(self._shards.total("gram").sums[0])

    def target_product(self) -> Array:
        return self._shards.total("target_product").sums[0]

    def squares(self, T: _Token) -> Array:
        return self._shards.total("squares").sums[0]

    def project(self, T: _Token, scale: Array, alpha: float, sums: bool) -> tuple[Array, np.ndarray | None]:
        found = self._shards.total("project", scale, alpha, sums, changes=True).sums
        # the loop adds to it, and it may be what a shard in this process remembers
        return found[0].copy(), found[1] if sums else None

    def advance(self, T: _Token, F: Array) -> Array:
        return self._shards.total("advance", F, changes=True).sums[0]

    def rescale(self, T: _Token, W: Array, keep: float) -> Array:
        return self._shards.total("rescale", W, keep, changes=True).sums[0]

    def measure(self, T: _Token, W: Array, step: Array, scale: Array) -> tuple[float, np.ndarray]:
        moved, sums = self._shards.total("measure", W, step, scale).sums
        return float(np.sqrt(moved)), sums

    def violations(self, W: Array) -> np.ndarray:
        total = self._shards.total("violations", W)
        return np.column_stack([total.sums[0], total.peaks[0]])
