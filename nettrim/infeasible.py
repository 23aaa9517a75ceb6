"""Proof that nothing is feasible, and the smallest epsilon that would be.

Derivation
----------
The least-error program min 1/2 ||(W^T X - Y)_Omega||^2 subject to (W^T X)_notOmega <= V needs no epsilon. At its
solution, with residual R on Omega and multipliers nu >= 0 off Omega, stationarity is X L^T = 0 for L = (R, nu), and
complementary slackness gives

    -<R, Y> - <nu, V> - epsilon ||R|| = ||R|| (||R|| - epsilon):

L is a ray (a proof) exactly when ||R|| > epsilon, and ||R|| is the smallest epsilon that works. If the half-spaces
alone contradict each other the iteration has no limit, but its steps converge to a ray with nothing on Omega.

Implementation
--------------
The same ADMM loop: a ball replaced by its squared norm shrinks towards Y by a constant factor, and C = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nettrim.admm import Check, Factor, Loop, State
from nettrim.operators import ReducedLinear
from nettrim.problem import Problem
from nettrim.settings import Settings
from nettrim.solution import verify_ray

__all__ = ["Proof", "compact_proof", "prove"]

#: an objective this many times a dense solution's, forced on every feasible W, counts as infeasible
FORCED = 1e4
#: iterations of the least-error program, and over how many of them steps are summed
MAX_ITERATIONS, STEP = 4000, 100


class Proof(NamedTuple):
    """A verified ray, the least-error weights, and the smallest epsilon they reach (None if no epsilon works)."""

    ray: np.ndarray
    W: np.ndarray
    smallest_epsilon: float | None


class _LeastError(Loop):
    """The least-error program: on Omega the prox of 1/2 ||. - Y||^2 (with rho1 = 1) halves the distance to Y."""

    def _scale(self, T: np.ndarray) -> np.ndarray:
        return np.full(T.shape[0], 0.5, self.dtype)


def compact_proof(problem: Problem, reduced: ReducedLinear) -> Proof | None:
    """For a linear layer: what of Y no weights reach is known exactly; None if the balls are large enough."""
    rows = np.sqrt(reduced.floor)
    if problem.neuronwise:
        offending, smallest = rows > problem.radii, float(rows.max() * np.sqrt(problem.M))
    else:
        smallest = float(np.sqrt(reduced.floor.sum()))
        offending = np.full(problem.M, smallest > problem.epsilon)
    if not offending.any():
        return None
    W = reduced.least_squares()
    ray = np.vstack([W, np.ones((1, problem.M))]) * offending
    return Proof(ray, W.astype(problem.dtype), smallest)


def prove(problem: Problem, loop: Loop, factor: Factor) -> Proof | None:
    """Solve the least-error program in the loop's precision; a proof if the problem is infeasible, else None."""
    least = _LeastError(
        loop.operator, loop.target, loop.mask, loop.upper, 0 * loop.weights, loop.radii, factor, loop.backend
    )
    start = loop.start()
    r = factor.balance(1e-3 * factor.size or 1.0)
    state = State(0 * start.T, 0 * start.T2, 0 * start.W, r, 1.0)
    found: dict[str, np.ndarray] = {"W": state.W}

    def settled(check: Check) -> bool:
        # with C = 0 the dual constraint is X L^T = 0, which holds when the weights stop moving
        moved = np.abs(check.weights - found["W"]).max()
        found["W"], found["L"] = check.weights, check.multiplier().copy()
        return bool(moved <= 1e-9 * np.abs(check.weights).max())

    quiet = Settings(max_iterations=MAX_ITERATIONS, check_every=STEP, adapt=False, relaxation=1.5)
    least.run(state, quiet, settled, lambda: None, lambda check: None)
    rows, excess, _ = least.violations(found["W"])
    if np.sqrt(excess) <= 1e-4 * problem.scale:
        reached = np.sqrt(rows) if problem.neuronwise else np.sqrt(rows.sum(keepdims=True))
        if (reached <= problem.radii).all():
            return None
        offending = np.broadcast_to(reached > problem.radii, rows.shape)
        ray = found["L"] * offending[:, None]
        root = np.sqrt(problem.M) if problem.neuronwise else 1.0
        if verify_ray(problem, ray) >= FORCED:
            return Proof(ray, loop.backend.to_host(found["W"]), float(reached.max() * root))
        return None
    # the half-spaces contradict each other: one more block of steps, whose sum points along the ray
    before = state.T.copy()
    block = Settings(max_iterations=STEP, check_every=STEP, adapt=False)
    least.run(state, block, lambda check: False, lambda: None, lambda check: None)
    ray = np.where(loop.mask, 0, state.T - before)
    if verify_ray(problem, ray) >= FORCED:
        return Proof(ray, loop.backend.to_host(found["W"]), None)
    return None

