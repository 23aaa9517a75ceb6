"""Newton polish: exact neurons on guessed supports and active bounds, for a nearly solved problem.

Derivation
----------
At the optimum a neuron has a support S with signs s, active bounds A, and the ball has a multiplier lambda:

    lambda (G w - b) + X_SA nu + C s = 0,     X_SA^T w = v_A,     G = X_SOmega X_SOmega^T,  b = X_SOmega y.

With mu = 1 / lambda and nu = lambda eta this is linear in (w, eta) and in mu, so a neuron is w0 - mu w1 for all mu at
once. w1 moves inside the active bounds, to which the residual of w0 is orthogonal; hence ||residual||^2 = c + mu^2 a
and the ball's equation, sum(c) + mu^2 sum(a) = epsilon^2, is solved in closed form. The multipliers are
Lambda = (X^T w - y) / mu on Omega and nu on A, with the limits -X^T w1 and -eta1 for epsilon = 0.

Implementation
--------------
S, s and A are read off the ADMM iterate and corrected for a few rounds (wrong signs leave, violated bounds and dual
constraints enter): a primal-dual active-set method, which can fail. So each neuron keeps the best pair (weights,
multiplier) it has seen, ADMM's to begin with, by its own duality gap at the common lambda,

    C |w| + lambda/2 ||residual||^2  -  ( -<Lambda, Y or V> - ||Lambda_Omega||^2 / (2 lambda) ),

and the caller judges the sum by its certificate. One neuron's Gram matrix at a time is built, used and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nettrim.threads import limit

__all__ = ["Polished", "cost", "polish"]

#: rounds of active-set correction in one attempt
ROUNDS = 8
#: what a neuron in a round, and an iteration, cost besides arithmetic, in float operations (0.1 ms at 100 GFLOP/s)
OVERHEAD = 1e7
#: a set grows by at most one part in this many a round: entering all at once makes it oscillate
GROWTH = 4
#: bytes of a block of neurons' outputs, of which a few copies are needed at a time
_BLOCK_BYTES = 5 << 20
#: rows of the largest system that is solved: its copies (6 MB each) stay within the memory promise
_LARGEST = 800


@dataclass
class Polished:
    """A proposal: weights (N, M), multipliers (M, P) and the estimated relative gap and violation."""

    W: np.ndarray
    multiplier: np.ndarray
    gap: float
    violation: float


@dataclass
class _Neuron:
    """Sets to solve on, and the solution w0 - mu w1, eta0 - mu eta1 with ||residual||^2 = c + mu^2 a."""

    support: np.ndarray
    signs: np.ndarray
    active: np.ndarray
    w0: np.ndarray = field(default_factory=lambda: np.zeros(0))
    w1: np.ndarray = field(default_factory=lambda: np.zeros(0))
    eta0: np.ndarray = field(default_factory=lambda: np.zeros(0))
    eta1: np.ndarray = field(default_factory=lambda: np.zeros(0))
    c: float = np.inf
    a: float = 0.0

    def bound_multiplier(self, mu: float) -> np.ndarray:
        return self.eta0 / mu - self.eta1 if mu > 0 else -self.eta1


def cost(loop: Any, W: np.ndarray) -> float:
    """Work of one round over that of one ADMM iteration: float operations, and a constant a neuron and an iteration."""
    N, M = W.shape
    P = loop.samples.target.shape[1]
    support = np.count_nonzero(W, axis=0).astype(np.float64)
    flops = 8 / loop.dtype.itemsize * (2 * support**2 * loop.samples.mask.sum(1) + support**3).sum()
    return float((flops + OVERHEAD * M) / (4.0 * N * M * P + 2.0 * N * N * M + OVERHEAD))


def polish(
    loop: Any,
    W: np.ndarray,
    multiplier: np.ndarray,
    gap_tol: float,
    feas_tol: float,
    rounds: int = ROUNDS,
    stopped: Callable[[], Any] = lambda: False,
) -> Polished | None:
    """Proposal made of each neuron's best pair after a few rounds; None if no neuron gained, or if it was stopped.

    Parameters
    ----------
    loop : Loop
        The problem's arrays, on the host.
    W : (N, M) array
        Sparse iterate; copied.
    multiplier : (M, P) array
        Its multipliers; overwritten with the proposal's.
    gap_tol, feas_tol : float
        A neuron is finished when its share of the gap and of the violation is a tenth of these.
    rounds : int
        Active-set corrections at most.
    stopped : callable
        Asked before each neuron: many neurons with dense supports take minutes.
    """
    return _Polish(loop, W, multiplier, gap_tol, feas_tol).run(rounds, stopped)


class _Polish:
    def __init__(self, loop: Any, W: np.ndarray, multiplier: np.ndarray, gap_tol: float, feas_tol: float):
        self.loop, self.W, self.multiplier = loop, W.copy(), multiplier
        self.X = np.ascontiguousarray(loop.samples.operator.X)
        N, M = W.shape
        self.C = np.broadcast_to(loop.weights, (N, M))
        self.objective = float((np.abs(W) * self.C).sum(dtype=np.float64)) or 1.0
        self.gap_tol = gap_tol
        # each neuron's share of what is allowed
        self.gap_share = gap_tol * self.objective / M
        self.size = float(np.linalg.norm(loop.sizes)) or 1.0
        self.violation_share = feas_tol * self.size / np.sqrt(M)
        # 1 / lambda of the ADMM multipliers, which stands in while the ball is out of the trial supports' reach
        squares = loop.samples.multiplier_sums(multiplier)[:, 1]
        norms = np.sqrt(squares.sum(keepdims=True) if loop.radii.size == 1 else squares)
        radii = np.maximum(loop.radii, 1e-6 * np.linalg.norm(loop.sizes))
        self.mu_admm = np.divide(radii, norms, out=np.zeros_like(norms), where=norms > 0)
        self.mu, self.reached = np.zeros(M), np.ones(M, bool)
        self.tiny = float(loop.radii.max()) < 1e-3 * np.linalg.norm(loop.sizes)
        self.trial = [
            _Neuron(s, np.sign(W[s, m]).astype(np.float64), np.flatnonzero(~loop.samples.mask[m] & (multiplier[m] > 0)))
            for m, s in enumerate(np.flatnonzero((W[:, m] != 0) | (self.C[:, m] == 0)) for m in range(M))
        ]
        self.best: list[_Neuron | None] = [None] * M
        # what ADMM's own columns spend of the ball, known once they are judged
        self.spent = np.zeros(M)
        self.score = np.full(M, np.inf)

    def run(self, rounds: int, stopped: Callable[[], Any]) -> Polished | None:
        todo = np.arange(self.W.shape[1])
        self.spent = self.loop.violations(self.W)[0]
        started = False
        for _ in range(rounds):
            self._solve(todo, stopped)
            if stopped():
                return None
            self._level()
            if not started:
                self._judge(todo, incumbent=True)
                started = True
            todo = self._judge(todo)
            if todo.size == 0:
                break
        if not any(n is not None for n in self.best):
            return None
        return self._assemble()

    def _solve(self, todo: np.ndarray, stopped: Callable[[], Any]) -> None:
        """Newton systems of the trial neurons, one neuron a thread, BLAS held to one thread each."""
        from nettrim.kernels import newton

        loop = self.loop

        def solve(m: int) -> None:
            n = self.trial[m]
            if stopped():
                return
            if n.support.size + n.active.size > _LARGEST:
                n.c = np.inf
                return
            B = self.X[np.ix_(n.support, n.active)].astype(np.float64, order="C")
            upper = loop.samples.upper[0, 0] if loop.samples.upper.size == 1 else loop.samples.upper[m, n.active]
            v = np.full(n.active.size, upper, np.float64)
            G, b, yy = newton.support_moments(self.X, loop.samples.target[m], loop.samples.mask[m], n.support)
            weights = self.C[n.support, m] * n.signs
            try:
                n.w0, n.w1, n.eta0, n.eta1, n.c, n.a = newton.solve_neuron(G, b, yy, B, v, weights)
            except np.linalg.LinAlgError:
                n.c = np.inf
            limit = 10 * np.abs(self.W[:, m]).sum(dtype=np.float64)
            if not np.isfinite(n.c + n.a) or np.abs(n.w0).sum() > limit + 1e-300:
                n.c = np.inf

        with limit(1), ThreadPoolExecutor(getattr(loop.backend, "n_threads", 1)) as pool:
            list(pool.map(solve, todo))

    def _level(self) -> None:
        """mu of the ball (of each ball, neuron-wise) from the trial neurons where they are usable."""
        usable = [t if np.isfinite(t.c) else b for t, b in zip(self.trial, self.best, strict=True)]
        c = np.array([s if n is None else n.c for n, s in zip(usable, self.spent, strict=True)])
        a = np.array([0.0 if n is None else n.a for n in usable])
        radii, M = self.loop.radii, c.size
        if radii.size == 1:
            c, a = c.sum(keepdims=True), a.sum(keepdims=True)
        room = radii**2 - c
        mu = np.sqrt(np.divide(np.maximum(room, 0), a, out=np.zeros_like(room), where=a > 0))
        mu = np.where((room <= 0) | (a == 0), self.mu_admm, mu)
        # a radius of zero is reached up to rounding only
        reached = room >= -1e-12 * (self.loop.sizes**2).sum()
        self.mu = np.repeat(np.where((radii > 0) | ~reached, mu, 0), M // mu.size)
        self.reached = np.repeat(reached, M // mu.size)

    def _judge(self, todo: np.ndarray, incumbent: bool = False) -> np.ndarray:
        """Score the trial neurons (or ADMM's), keep the better, prepare the next sets; returns those not finished."""
        P = self.loop.samples.target.shape[1]
        block = max(1, _BLOCK_BYTES // (self.loop.dtype.itemsize * P))
        unfinished = []
        for start in range(0, todo.size, block):
            rows = todo[start : start + block]
            if not incumbent:
                rows = rows[[np.isfinite(self.trial[m].c) for m in rows]]
            if rows.size:
                unfinished.append(self._judge_rows(rows, incumbent))
        return np.concatenate(unfinished) if unfinished else np.zeros(0, int)

    def _judge_rows(self, rows: np.ndarray, incumbent: bool) -> np.ndarray:
        loop, be = self.loop, self.loop.backend
        mu = self.mu[rows]
        if incumbent:
            W, L = np.ascontiguousarray(self.W[:, rows]), np.ascontiguousarray(self.multiplier[rows])
            Z = be.product(W.T, self.X)
        else:
            W, L, Z = self._build([self.trial[m] for m in rows], rows)
        Y, mask = loop.samples.target[rows], loop.samples.mask[rows]
        upper = loop.samples.upper if loop.samples.upper.size == 1 else loop.samples.upper[rows]
        squares, excess, _ = be.violation_sums(Z, Y, mask, upper).T
        H = be.product(self.X, L.T)
        linear, norms, bound = be.multiplier_sums(L, Y, mask, upper).T
        C = self.C[:, rows]
        over = np.divide(np.abs(H), C, out=np.zeros(H.shape), where=C > 0).max(0)
        scale = 1 / np.maximum(over, 1)
        # ball terms lambda/2 ||R||^2 and ||L||^2 / (2 lambda); both vanish for a radius of zero
        half = np.divide(0.5, mu, out=np.zeros_like(mu), where=mu > 0)
        dual = -(linear + bound) * scale - norms * scale**2 * mu / 2
        gap = (np.abs(W) * C).sum(0, dtype=np.float64) + half * squares - dual
        missed = np.where(mu > 0, 0, np.sqrt(squares))
        score = np.abs(gap) / self.gap_share + (np.sqrt(excess) + missed) / self.violation_share
        better = score < self.score[rows]
        for j in np.flatnonzero(better).tolist():
            m = int(rows[j])
            self.score[m] = score[j]
            if not incumbent:
                self.best[m], self.W[:, m], self.multiplier[m] = self.trial[m], W[:, j], L[j]
        if not incumbent:
            for j, m in enumerate(rows.tolist()):
                if score[j] > 0.1:
                    excess_m = np.where(mask[j], 0, Z[j] - (upper[0, 0] if upper.size == 1 else upper[j]))
                    self.trial[m] = self._next(m, W[:, j], H[:, j], excess_m)
        return rows[score > 0.1]

    def _build(self, neurons: list[_Neuron], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, multipliers and outputs of neurons at the present mu."""
        loop = self.loop
        W, step = np.zeros((2, self.X.shape[0], rows.size), loop.dtype)
        for j, (m, n) in enumerate(zip(rows, neurons, strict=True)):
            W[n.support, j] = n.w0 - self.mu[m] * n.w1
            step[n.support, j] = -n.w1
        Z = loop.backend.product(W.T, self.X)
        zero = self.mu[rows] == 0
        L = np.zeros_like(Z)
        if zero.any():
            L[zero] = loop.backend.product(np.ascontiguousarray(step[:, zero]).T, self.X)
        L[~zero] = (Z[~zero] - loop.samples.target[rows[~zero]]) / self.mu[rows[~zero], None].astype(loop.dtype)
        L[~loop.samples.mask[rows]] = 0
        for j, (m, n) in enumerate(zip(rows, neurons, strict=True)):
            L[j, n.active] = np.maximum(n.bound_multiplier(self.mu[m]), 0)
        return W, L, Z

    def _next(self, m: int, w: np.ndarray, h: np.ndarray, excess: np.ndarray) -> _Neuron:
        """Sets corrected by what the last solution showed."""
        n = self.trial[m]
        right = w[n.support] * n.signs >= 0
        # where (nearly) no error is allowed, or the ball is out of reach, determined weights do not depend on the
        # signs: these are corrected and those kept
        fixed = (self.tiny or not self.reached[m]) and self.loop.samples.mask[m].sum() >= n.support.size
        signs = np.where(right, n.signs, -n.signs) if fixed else n.signs
        keep = right | fixed
        slack = np.abs(h) - self.C[:, m] * (1 + 0.01 * self.gap_tol)
        slack[n.support] = 0
        enter = _worst(slack, max(10, keep.sum() // GROWTH))
        violated = _worst(excess, max(10, n.active.size // GROWTH))
        support = np.concatenate([n.support[keep], enter])
        signs = np.concatenate([signs[keep], -np.sign(h[enter], dtype=np.float64)])
        order = np.argsort(support)
        active = np.union1d(n.active[n.bound_multiplier(self.mu[m]) > 0], violated)
        return _Neuron(support[order], signs[order], active)

    def _assemble(self) -> Polished:
        """All kept neurons at one common mu, with the resulting gap and violation."""
        loop = self.loop
        self.trial = [_Neuron(np.zeros(0, int), np.zeros(0), np.zeros(0, int)) if n is None else n for n in self.best]
        self._level()
        newton = np.array([m for m, n in enumerate(self.best) if n is not None])
        block = max(1, _BLOCK_BYTES // (loop.dtype.itemsize * self.X.shape[1]))
        for start in range(0, newton.size, block):
            rows = newton[start : start + block]
            W, L, _ = self._build([self.trial[m] for m in rows], rows)
            self.W[:, rows], self.multiplier[rows] = W, L
        violation = loop.relative_violation(*loop.violations(self.W)[:2])
        objective, dual = loop.bound(
            self.W, loop.samples.operator.adjoint(self.multiplier), loop.samples.multiplier_sums(self.multiplier)
        )
        gap = abs(objective - dual) / max(abs(objective), abs(dual), np.finfo(float).tiny)
        return Polished(self.W, self.multiplier, gap, violation)


def _worst(excess: np.ndarray, most: int) -> np.ndarray:
    """Indices of the positive entries, the largest ones if there are too many, in order."""
    index = np.flatnonzero(excess > 0)
    if index.size > most:
        index = np.sort(index[np.argsort(excess[index])[-most:]])
    return index
