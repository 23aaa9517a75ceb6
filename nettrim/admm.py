"""ADMM for the layer program (Aghasi et al. 2020, Algorithm 5.1), one loop for every backend and operator.

Derivation
----------
Two copies are split off: Z = W^T X, on which the ball and the half-spaces act (prox: a projection), and W2 = W, on
which the l1 norm acts (prox: soft-threshold). The penalties of the two are rho1 and rho2; the loop only knows

    r = rho2 / rho1     the balance, in the linear system X X^T + r I, and
    tau = 1 / rho2      the soft threshold (times C).

With U the scaled multipliers, let T1 = W^T X - U1 and T2 = W - U2 be the points that are projected. One relaxed
iteration of Algorithm 5.1 is then, exactly,

    B1 = T1 - alpha Proj(T1),            B2 = T2 - alpha soft(T2, tau C)
    D  = (X X^T + r I)^-1 (X B1^T + r B2)
    F  = (2 - alpha) W - 2 D
    W <- (2 - alpha) W - D,   T1 <- B1 + F^T X,   T2 <- B2 + F

which follows from U1 = W^T X - T1 and U2 = W - T2 alone. So the only M x P state is T1: it is overwritten by B1 and
the product accumulates onto it. After every solve X U1^T + r U2 = 0, which makes the multipliers dual feasible in the
limit. Proj(T1) is scale * (T1 - Y) + Y on Omega and min(T1, V) elsewhere.

A check iteration is unrelaxed (alpha = 1): then B1 = T1 - Proj(T1) is the multiplier of Z over rho1, and the product
X B1^T, needed anyway, is the dual constraint. The dual bound costs one pass over M x P and no product.

Implementation
--------------
Nothing of size M x P leaves the device between checks; a check moves O(M) numbers and N x M weights at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from nettrim.penalties import L1, Penalty
from nettrim.penalties.base import ball_bound
from nettrim.settings import Settings

__all__ = ["Factor", "Loop", "State"]

#: r starts here times the largest diagonal entry of X X^T (0.3^2, in the middle of the good ones)
BALANCE_START = 0.09
#: r moves on a grid of this ratio, so that factors are found again
BALANCE_GRID = 2.0**0.25
#: the threshold tau starts at this many times the mean size of the ridge solution's weights
THRESHOLD_START = 4.0
#: penalties are adapted at these iterations and then at every third multiple of the last one: later changes cost more
#: iterations than they save (tried on the hidden layers of an MNIST network)
ADAPT_AT, ADAPT_GROWTH = (10, 20, 30, 50), 3
#: a penalty changes by at most this factor at a time, and not for less than the second (the third after ADAPT_AT)
ADAPT_CLIP, ADAPT_DEADBAND, ADAPT_LATE = 5.0, 1.3, 2.0


class Factor:
    """Solves (X X^T + r I) D = R with explicit float64 inverses, cached by r.

    For a dense X with N > P the P x P form is used: (R - X (X^T X + r I)^-1 X^T R) / r (Woodbury).

    Parameters
    ----------
    operator : Dense
    backend : Backend
    dtype : numpy dtype
    """

    #: inverses kept; with G that is at most four N x N float64 arrays, the copy being factored included
    KEPT = 2

    def __init__(self, operator: Any, backend: Any, dtype: Any):
        self._operator, self._backend, self._dtype = operator, backend, dtype
        self._cache: dict[int, Any] = {}
        self.computed = 0

    @cached_property
    def gram(self) -> np.ndarray:
        """X X^T, or X^T X if not direct; accumulated when first needed, since working sets need none."""
        return self._operator.gram()

    @cached_property
    def size(self) -> float:
        """The largest diagonal entry of X X^T, in the units of which r is set."""
        if self._operator.direct:
            return float(self.gram.diagonal().max())
        return max(float(np.vdot(x, x)) for x in (row.astype(np.float64) for row in self._operator._host))

    def balance(self, r: float) -> float:
        """The nearest r on the grid."""
        unit = BALANCE_START * (self.size or 1.0)
        return unit * BALANCE_GRID ** round(np.log(r / unit) / np.log(BALANCE_GRID))

    def solve(self, R: Any, r: float) -> Any:
        """D, N x M in the working dtype, for R of N x M (R may be overwritten).

        The inverse is applied in float64. A float32 one is not backward stable: its error, though small next to D, is
        multiplied by the largest eigenvalues of X X^T in the dual constraint, and the gap stalls.
        """
        inverse = self._inverse(r)
        be = self._backend
        if self._operator.direct:
            return be.cast(be.product(inverse, be.cast(R, np.float64)), self._dtype)
        inner = be.cast(be.product(self._operator.X.T, R), np.float64)
        inner = be.cast(be.product(inverse, inner), self._dtype)
        return be.product(self._operator.X, inner, R, -1 / r, 1 / r)

    def _inverse(self, r: float) -> Any:
        unit = BALANCE_START * (self.size or 1.0)
        key = round(np.log(r / unit) / np.log(BALANCE_GRID))
        if key not in self._cache:
            while len(self._cache) >= self.KEPT:
                self._cache.pop(next(iter(self._cache)))
            system = self.gram.copy(order="F")
            system[np.diag_indices_from(system)] += r
            self._cache[key] = self._backend.inverse(system)
            self.computed += 1
        return self._cache[key]


@dataclass
class State:
    """What ADMM carries from one iteration, and from one solve, to the next."""

    T: Any
    T2: Any
    W: Any
    r: float
    tau: float
    iteration: int = 0
    #: of a penalty whose prox is iterative
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass
class Check:
    """What is known at a check. `multiplier` is only valid during the check; `last` when the loop is about to stop.

    The relative violation costs ADMM a product, so only working sets know it at every check; `details` has further
    numbers of theirs for the history.
    """

    iteration: int
    objective: float
    dual_bound: float
    gap: float
    seconds: float
    weights: Any
    multiplier: Callable[[], Any]
    last: bool = False
    violation: float | None = None
    details: dict[str, float] = field(default_factory=dict)


class Loop:
    """The iteration on one problem's device arrays.

    Parameters
    ----------
    samples : Samples
        X, Y, Omega and V.
    weights : (N, M), (N, 1) or (1, 1) device array
        C.
    radii : (1,) or (M,) array
    factor : Factor
        Of the same X.
    penalty : Penalty
        On the host, except l1.
    """

    def __init__(
        self,
        samples: Any,
        weights: Any,
        radii: np.ndarray,
        factor: Factor,
        penalty: Penalty = L1(),  # noqa: B008
    ):
        self.samples, self.factor, self.backend = samples, factor, samples.backend
        self.weights, self.radii, self.dtype = weights, radii, samples.dtype
        self.penalty, self.plain = penalty, isinstance(penalty, L1)
        #: ||y_m|| on Omega
        self.sizes = samples.sizes()
        # checks compute with them: on the host in float64
        self._judge = weights.astype(np.float64) if self.backend.on_host else weights

    def start(self) -> State:
        """State at W = 0, with the threshold in the units of the ridge solution's weights."""
        N, M, _ = self.samples.shape
        be = self.backend
        r = self.factor.balance(BALANCE_START * (self.factor.size or 1.0))
        ridge = np.abs(be.to_host(self.factor.solve(self.samples.target_product(), r)))
        typical = THRESHOLD_START * float(ridge.mean(dtype=np.float64)) or 1.0
        tau = self.penalty.start(typical, be.to_host(self.weights), N, M)
        return State(self.samples.state(), be.zeros((N, M), self.dtype), be.zeros((N, M), self.dtype), r, tau)

    def start_at(self, W: np.ndarray, multiplier: np.ndarray | None) -> State:
        """State whose weights and multipliers (M, P), if given, are these; with the penalties of `start`.

        There Proj(T1) = W^T X and T1 - Proj(T1) = L / rho1, and T2 is W minus X L^T / rho2.
        """
        state, be = self.start(), self.backend
        weights = be.asarray(np.ascontiguousarray(W), self.dtype)
        state.W, state.T2 = weights, be.copy(weights)
        rho1 = 1 / (state.r * state.tau)
        if multiplier is not None:
            product = self.samples.load(state.T, multiplier / rho1)
            # rho1 tau = 1 / r
            state.T2 -= product * self.dtype.type(1 / state.r)
        self.samples.advance(state.T, weights)
        return state

    def run(
        self,
        state: State,
        settings: Settings,
        accept: Callable[[Check], bool],
        stopped: Callable[[], str | None],
        observe: Callable[[Check], str | None],
        done: int = 0,
        keep: Callable[[State, int], Any] | None = None,
    ) -> str:
        """Iterate `state` in place until `accept` is true, or a limit; returns "accepted" or the name of the limit.

        `done` iterations of the same solve have been made before; they count.

        `stopped` is asked at every iteration for a reason to stop; the iteration then ends with a check.
        `observe` sees every check and may give a reason to stop too. `keep` sees the state, and the number of the
        iteration, at the end of each that is not the last.
        """
        alpha = settings.relaxation
        began, first = time.perf_counter(), state.iteration - done
        adapt_at = iter(_schedule())
        # a warm start keeps the penalties it had found: the schedule goes on where it was
        next_adapt = next(k for k in adapt_at if k > state.iteration)
        squares = self.samples.squares(state.T)
        while True:
            state.iteration += 1
            k = state.iteration - first
            reason = stopped() or ("max_iterations" if k >= settings.max_iterations else None)
            checking = reason is not None or k % settings.check_every == 0
            a = 1.0 if checking else alpha
            scale = self._scale(squares)
            if checking:
                weights = self._shrunk(state)
            self._relax(state, a)
            R, sums = self.samples.project(state.T, scale, a, sums=checking)
            verdict = None
            if checking:
                check = self._check(state, weights, R, sums, k, time.perf_counter() - began)
                check.last = reason is not None
                if not np.isfinite(check.objective):
                    # what nothing satisfies makes the iterates grow without end
                    return "diverged"
                if accept(check):
                    verdict = "accepted"
                else:
                    verdict = reason or observe(check)
            R += self.dtype.type(state.r) * state.T2
            D = self.factor.solve(R, state.r)
            F = self.dtype.type(2 - a) * state.W
            W = F - D
            F -= 2 * D
            squares = self.samples.advance(state.T, F)
            state.T2 += F
            old, state.W = state.W, W
            if verdict is not None:
                return verdict
            if settings.adapt and state.iteration >= next_adapt:
                next_adapt = next(adapt_at)
                deadband = ADAPT_DEADBAND if state.iteration <= ADAPT_AT[-1] else ADAPT_LATE
                squares = self._adapt(state, W - old, squares, deadband)
            if keep is not None:
                keep(state, k)

    def _shrunk(self, state: State) -> Any:
        """The weights that the penalty's prox makes of T2; sparse for l1."""
        if not self.plain:
            return self.penalty.prox(state.T2, state.tau, self.weights, state.memory)
        weights = self.backend.copy(state.T2)
        self.backend.soft_relax(weights, self.weights * self.dtype.type(state.tau), 1.0)
        return state.T2 - weights

    def _relax(self, state: State, alpha: float) -> None:
        """In place T2 <- T2 - alpha prox(T2)."""
        if self.plain:
            self.backend.soft_relax(state.T2, self.weights * self.dtype.type(state.tau), alpha)
        else:
            weights = self.penalty.prox(state.T2, state.tau, self.weights, state.memory)
            state.T2 -= self.dtype.type(alpha) * weights

    def _scale(self, squares: Any) -> Any:
        """Shrink factor of each row towards Y, from its squared distance: the projection onto the ball or balls."""
        return self.backend.shrink(squares, self.radii, self.dtype)

    def _check(
        self, state: State, weights: Any, product: Any, sums: np.ndarray, iteration: int, seconds: float
    ) -> Check:
        """Objective of W2 and the bound of the multipliers rho1 B1, whose dual constraint is `product`."""
        rho1 = 1 / (state.r * state.tau)
        objective, dual = self.bound(weights, product, sums, rho1)
        size = max(abs(objective), abs(dual))
        gap = (objective - dual) / size if size > 0 else 0.0
        kept = state.T

        def multiplier() -> Any:
            return self.samples.multiplier(kept, rho1)

        return Check(iteration, objective, dual, gap, seconds, weights, multiplier)

    def bound(self, weights: Any, product: Any, sums: np.ndarray, rho: float | np.ndarray = 1.0) -> tuple[float, float]:
        """Objective of `weights`, and dual value of rho times a multiplier scaled into |X L^T| <= C, row by row.

        `product` is X multiplier^T, N x M, and `sums` the multiplier sums. Rows with C = 0 are taken as balanced: the
        certificate does that properly.
        """
        linear, squares, upper = sums.T * rho
        norms = np.sqrt(squares * rho)
        if not self.plain:
            product = product.astype(np.float64) * rho
            dual = self.penalty.bound(-(linear + upper), norms, product, self._judge, self.radii)
            return self.penalty.value(weights, self._judge), dual
        objective, excess = self.backend.weight_sums(weights, product, self._judge)
        scale = 1 / np.maximum(excess * rho, 1)
        return objective, ball_bound(-(linear + upper) * scale, norms * scale, self.radii, True)

    def violations(self, W: Any) -> tuple[np.ndarray, float, float]:
        """Squared ball distance per row, squared and largest excess over V, of device weights W."""
        sums = self.samples.violations(W)
        return sums[:, 0], float(sums[:, 1].sum()), float(sums[:, 2].max())

    def relative_violation(self, rows: np.ndarray, excess: float) -> float:
        """The certificate's relative violation from `violations`, V's negative part left out of the scale."""
        squares = self.sizes**2
        if self.radii.size == 1:
            rows, squares = rows.sum(keepdims=True), squares.sum(keepdims=True)
        reach = np.maximum(self.radii, 1e-2 * np.sqrt(squares))
        over = np.maximum(np.sqrt(rows) - self.radii, 0)
        ball = np.divide(over, reach, out=np.where(over > 0, np.inf, 0.0), where=reach > 0).max()
        size = np.sqrt(squares.sum())
        return max(float(ball), float(np.sqrt(excess) / size) if size > 0 else float(np.sqrt(excess)))

    def _adapt(self, state: State, step: Any, squares: Any, deadband: float) -> Any:
        """Balance primal and dual residuals of each split by itself; costs two products, three if a penalty changes.

        Returns the squares of the state that results.
        """
        be = self.backend
        moved1, sums = self.samples.measure(state.T, state.W, step, self._scale(squares))
        moved2 = be.norm(step)
        primal1, size1, multiplier1 = np.sqrt(sums.sum(0))
        weights = self._shrunk(state)
        primal2, size2, multiplier2 = be.norm(weights - state.W), be.norm(weights), be.norm(state.W - state.T2)
        q1 = _ratio(primal1, size1, moved1, multiplier1)
        q2 = _ratio(primal2, size2, moved2, multiplier2)
        if max(q1, q2, 1 / q1, 1 / q2) <= deadband:
            return squares
        r = self.factor.balance(state.r * q2 / q1)
        q2 = r / state.r * q1
        # the scaled multipliers U = W^T X - T1 and W - T2 shrink as the penalties grow
        squares = self.samples.rescale(state.T, state.W, 1 / q1)
        state.T2 = state.W + (state.T2 - state.W) * self.dtype.type(1 / q2)
        state.r, state.tau = r, state.tau / q2
        return squares


def _ratio(primal: float, size: float, moved: float, multiplier: float) -> float:
    """Factor on a penalty that balances its relative primal and dual residuals, clipped."""
    if min(primal, size, moved, multiplier) <= 0 or not np.isfinite(primal + size + moved + multiplier):
        return 1.0
    return float(np.clip(np.sqrt((primal / size) / (moved / multiplier)), 1 / ADAPT_CLIP, ADAPT_CLIP))


def _schedule() -> Iterator[int]:
    yield from ADAPT_AT
    k = ADAPT_AT[-1]
    while True:
        k *= ADAPT_GROWTH
        yield k
