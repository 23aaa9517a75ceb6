"""Proof that nothing is feasible, and the smallest epsilon that would be.

Derivation
----------
The least-error program min 1/2 ||(W^T X - Y)_Omega||^2 subject to (W^T X)_notOmega <= V needs no epsilon. At its
solution, with residual R on Omega and multipliers nu >= 0 off Omega, stationarity is X L^T = 0 for L = (R, nu), and
complementary slackness gives

    -<R, Y> - <nu, V> - epsilon ||R|| = ||R|| (||R|| - epsilon):

L is a ray (a proof) exactly when ||R|| > epsilon, and ||R|| is the smallest epsilon that works. If the half-spaces
alone contradict each other, the smallest excess over V is a ray by the same argument, with nothing on Omega.

Implementation
--------------
The same ADMM loop: a ball replaced by its squared norm shrinks towards Y by a constant factor, and C = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from nettrim.admm import Check, Factor, Loop, State
from nettrim.operators import ReducedLinear
from nettrim.problem import Problem
from nettrim.samples import Resident, operator_of
from nettrim.settings import Settings
from nettrim.solution import verify_ray

__all__ = ["Proof", "compact_proof", "prove"]

#: an objective this many times a dense solution's, forced on every feasible W, counts as infeasible
FORCED = 1e4
#: iterations of the least-error program, how often its movement is looked at, and Newton steps of a contradiction
MAX_ITERATIONS, STEP, NEWTON = 4000, 100, 60


class Proof(NamedTuple):
    """A verified ray, the least-error weights, and the smallest epsilon they reach (None if no epsilon works)."""

    ray: np.ndarray
    W: np.ndarray
    smallest_epsilon: float | None


class _LeastError(Loop):
    """The least-error program: on Omega the prox of 1/2 ||. - Y||^2 (with rho1 = 1) halves the distance to Y."""

    def _scale(self, squares: np.ndarray) -> np.ndarray:
        return np.full(squares.shape[0], 0.5, self.dtype)


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


def prove(problem: Problem, backend: Any, stopped: Callable[[], str | None] = lambda: None) -> Proof | None:
    """Solve the least-error program in float64; a proof if the problem is infeasible.

    None means that the least-error weights are feasible, that no verified ray was found, or that `stopped` gave a
    reason to stop.
    """
    double = problem.replace(dtype=np.float64)
    mask = np.ones(double.Y.shape, bool) if double.mask is None else double.mask
    operator = operator_of(double.X, backend, np.float64)
    factor = Factor(operator, backend, np.float64)
    target, V = backend.asarray(double.Y, np.float64), backend.asarray(double.V, np.float64)
    no_weights = backend.asarray(np.zeros_like(double.C), np.float64)
    samples = Resident(operator, target, backend.asarray(mask, bool), V, backend)
    least = _LeastError(samples, no_weights, double.radii, factor)
    start = least.start()
    state = State(0 * start.T, 0 * start.T2, 0 * start.W, factor.balance(1e-3 * factor.size or 1.0), 1.0)
    found: dict[str, np.ndarray] = {"W": state.W}

    def settled(check: Check) -> bool:
        # with C = 0 the dual constraint is X L^T = 0, which holds when the weights stop moving
        moved = np.abs(check.weights - found["W"]).max()
        found["W"], found["L"] = check.weights, check.multiplier()
        return bool(moved <= 1e-10 * np.abs(check.weights).max())

    quiet = Settings(max_iterations=MAX_ITERATIONS, check_every=STEP, adapt=False, relaxation=1.5)
    if least.run(state, quiet, settled, stopped, lambda check: None) not in ("accepted", "max_iterations"):
        return None
    rows, excess, _ = least.violations(found["W"])
    W = backend.to_host(found["W"])
    if np.sqrt(excess) <= 1e-4 * double.scale:
        reached = np.sqrt(rows) if double.neuronwise else np.sqrt(rows.sum(keepdims=True))
        offending = np.broadcast_to(reached > double.radii * (1 + 1e-9), rows.shape)
        ray, smallest = found["L"] * offending[:, None], float(reached.max())
        smallest *= np.sqrt(double.M) if double.neuronwise else 1.0
    else:
        ray, smallest = _contradiction(double, mask, W), None
    ray = np.where(mask, ray, np.maximum(ray, 0))
    if verify_ray(problem, ray) < FORCED:
        return None
    return Proof(ray.astype(problem.dtype), W.astype(problem.dtype), smallest)


def _contradiction(problem: Problem, mask: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Rays of neurons whose bounds contradict each other: nu = (W^T X - V)_+ at the minimum of its squared norm.

    There X nu^T = 0 is the optimality condition. Semismooth Newton with halving, a neuron at a time, in float64.
    """
    ray = np.zeros(mask.shape)
    V = np.broadcast_to(problem.V, mask.shape)
    for m in range(problem.M):
        off = np.flatnonzero(~mask[m] & np.isfinite(V[m]))
        X, v, w = problem.X[:, off], V[m, off], W[:, m].copy()
        nu = np.maximum(w @ X - v, 0)
        for _ in range(NEWTON):
            active = X[:, nu > 0]
            gradient = active @ nu[nu > 0]
            if np.linalg.norm(gradient) <= 1e-13 * np.linalg.norm(active) * np.linalg.norm(nu):
                break
            step = np.linalg.lstsq(active @ active.T, gradient, rcond=1e-13)[0]
            length, value = 1.0, nu @ nu
            while length > 1e-6:
                trial = np.maximum((w - length * step) @ X - v, 0)
                if trial @ trial < value:
                    break
                length /= 2
            else:
                break
            w, nu = w - length * step, trial
        ray[m, off] = nu
    # a neuron whose bounds can be met leaves only rounding
    sizes = np.linalg.norm(ray, axis=1)
    ray[sizes <= 1e-6 * sizes.max()] = 0
    return ray
