"""Working sets for a radius of zero: the outputs on Omega are met exactly.

Derivation
----------
For epsilon = 0 every neuron is a linear program, and the multiplier mu of working_set.py would have to vanish. The
method of multipliers keeps it: with the residuals so far added to the target,

    minimise    mu sum_i C_i |w_i| + 1/2 || X_Omega^T w - (y + s) ||^2      subject to   X_notOmega^T w <= v,
    s <- s + y - X_Omega^T w,

which for basis pursuit are the Bregman iterations of Yin, Osher, Goldfarb, Darbon (SIAM J. Imaging Sci. 2008, section
3); they end after finitely many steps (their Theorem 3.2). The multipliers of the equalities are the residuals of the
shifted target over mu: as ever H = X L^T for L = (Z - Y - S on Omega, the bounds' multipliers) says which inputs are
missing. On the final support and active bounds one step is exact: w = w_0 - mu w_1 leaves the residual mu X^T w_1,
which the next target takes up.

The first target is met as a ball of a small radius. Its mu, made smaller once, is the one that stays: the iterations
converge the faster the smaller it is, and a part of the residuals, as s, carries the multipliers over.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np

from nettrim.admm import Check, Loop
from nettrim.coarse import Start
from nettrim.working_set import WorkingSet

__all__ = ["Equalities", "determined", "stand_in"]

#: radius of the ball that comes first, relative to ||Y_Omega||; in float32 the multipliers, residuals over mu, need it
#: larger
FIRST_RADIUS = {np.dtype(np.float64): 1e-3, np.dtype(np.float32): 1e-2}
#: by which mu then shrinks
DROP = 4.0


def stand_in(loop: Loop) -> Loop:
    """The loop with small balls in the place of equalities."""
    other = copy.copy(loop)
    whole = float(np.linalg.norm(loop.sizes))
    other.radii = np.full(loop.radii.size, FIRST_RADIUS[loop.dtype] * whole / np.sqrt(loop.radii.size))
    return other


def determined(loop: Loop) -> bool:
    """Whether most neurons have more outputs on Omega than inputs, and so but one choice of weights."""
    return bool(np.median(loop.samples.mask.sum(1)) >= loop.samples.shape[0])


class Equalities(WorkingSet):
    """The method on one problem's arrays, whose radii are zero; see `WorkingSet` for the parameters."""

    patience = 6

    def __init__(self, loop: Loop, *arguments: Any, **options: Any):
        #: what is added to the target on Omega; None while the ball of the first radius is sought
        self.shift: np.ndarray | None = None
        super().__init__(loop, *arguments, **options)
        self.radii = stand_in(loop).radii

    def run(
        self, start: Start, accept: Callable[[Check], bool], observe: Callable[[Check], str | None]
    ) -> tuple[str, int]:
        """As of `WorkingSet`; a start at weights that meet the outputs says nothing about mu."""
        mu = np.where(np.isfinite(start.mu) & (start.mu > 0), start.mu, self._first_mu(start.W))
        return super().run(replace(start, mu=mu), accept, observe)

    def _first_mu(self, W: np.ndarray) -> float:
        """At the optimum of a ball mu sum C |w| is about the radius times ||y||."""
        cost = float((self.C * np.abs(W)).sum()) or 1.0
        return float(np.linalg.norm(self.radii)) * float(np.sqrt(self.squares.sum())) / cost

    def _find_level(self, pool: Executor, settled: bool) -> bool:
        if self.shift is None:
            return super()._find_level(pool, settled)
        mu = np.repeat(self.mu, self.M // self.mu.size).tolist()
        list(pool.map(lambda m: self._solve(m, mu[m], 0.01 * self.settings.gap_tol), range(self.M)))
        self.upcoming = self.mu
        return True

    def _judge(self, m: int, z: np.ndarray) -> tuple[np.ndarray, float, float]:
        judged = super()._judge(m, z)
        if self.shift is not None:
            # the row holds the residual on Omega, and the bounds' multipliers elsewhere
            np.subtract(z, self.shift[m], out=z, where=self.loop.samples.mask[m])
        return judged

    def _advance(self, check: Check, changed: bool, reached: bool) -> None:
        """Take the residuals into the target, once the sets are complete for it."""
        if changed or not reached:
            return
        loop = self.loop
        mask, target = loop.samples.mask, loop.samples.target
        part = 1.0
        if self.shift is None:
            self.shift = np.zeros(target.shape, loop.dtype)
            self.upcoming, part = self.mu / DROP, 1 / DROP
        W = np.ascontiguousarray(check.weights)
        step = max(1, (16 << 20) // (8 * (self.N + self.M)))
        for start in range(0, target.shape[1], step):
            s = slice(start, min(start + step, target.shape[1]))
            X = self.operator.columns(s).astype(np.float64)
            left = np.where(mask[:, s], target[:, s] - loop.backend.product(W.astype(np.float64).T, X), 0)
            self.shift[:, s] += (part * left).astype(loop.dtype)
        # from the shift as it is held, so that target and products agree
        self.b, self.squares = self._right_hand_sides(), self._shifted_squares()

    def _target(self, s: slice) -> np.ndarray:
        Y = super()._target(s)
        return Y if self.shift is None else Y + self.shift[:, s]

    def _shifted_squares(self) -> np.ndarray:
        total = np.zeros(self.M)
        step = max(1, (16 << 20) // (8 * self.M))
        for start in range(0, self.loop.samples.target.shape[1], step):
            Y = self._target(slice(start, start + step))
            total += np.einsum("mp,mp->m", Y, Y)
        return total
