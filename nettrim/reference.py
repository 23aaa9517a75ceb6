"""The same `Problem` through cvxpy: slow, general, and independent of all else here but the certificate."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import numpy as np

from nettrim.extras import install
from nettrim.operators import ReducedLinear
from nettrim.problem import Problem
from nettrim.solution import Solution, Status, certify

__all__ = ["solve"]

SOLVERS = ("CLARABEL", "SCS")
#: by default an interior-point method is asked for about this; a first-order one for what it can reach
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLARABEL": {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9},
    "SCS": {"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iters": 200_000},
}


def _cvxpy() -> ModuleType:
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError(f"nettrim.reference needs cvxpy: {install('reference')}") from error
    return cvxpy


def solve(
    problem: Problem,
    solver: str = "CLARABEL",
    *,
    gap_tol: float = 1e-6,
    feas_tol: float = 1e-6,
    verbose: bool = False,
    **options: Any,
) -> Solution:
    """Solve a problem with cvxpy and certify the result like any other.

    Parameters
    ----------
    problem : Problem
        Solved in float64 whatever its dtype. Meant for small problems: the model has one row per output entry.
    solver : {"CLARABEL", "SCS"}
        Interior-point or first-order.
    gap_tol, feas_tol : float
        Tolerances of the certificate for the status "solved".
    verbose : bool
        The solver's own output.
    **options
        Passed on to the solver, e.g. ``time_limit=600.0`` for CLARABEL or ``time_limit_secs=600`` for SCS.

    Returns
    -------
    Solution
        W in float64 as the solver gives it, hence without exact zeros; the multipliers are the solver's.

    Raises
    ------
    ImportError
        cvxpy is not installed.
    TypeError
        `problem` is not a Problem.
    ValueError
        An unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {solver!r}")
    cp = _cvxpy()
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a nettrim.Problem; got {type(problem).__name__}")
    began = time.perf_counter()
    X, Y, mask, radii, reduced = _samples(problem)
    V = problem.V if problem.V.size == 1 else problem.V[:, :]
    W = cp.Variable((problem.N, problem.M))
    on = [np.flatnonzero(mask[m]) for m in range(problem.M)]
    off = [np.flatnonzero(~mask[m] & np.isfinite(_row(V, m, mask.shape[1]))) for m in range(problem.M)]
    residuals = [X[:, s].T @ W[:, m] - Y[m, s] for m, s in enumerate(on)]
    balls, constraints = _balls(cp, residuals, on, radii)
    bounds: dict[int, Any] = {}
    for m, s in enumerate(off):
        if s.size:
            bounds[m] = X[:, s].T @ W[:, m] <= _row(V, m, mask.shape[1])[s]
    objective, more = problem.penalty.expression(cp, W, problem.C.astype(np.float64))
    model = cp.Problem(cp.Minimize(objective), constraints + list(bounds.values()) + more)
    try:
        model.solve(solver=solver, verbose=verbose, **(_DEFAULTS[solver] | options))
        outcome = model.status
    except cp.error.SolverError as error:
        outcome = f"failed: {error}"
    seconds = time.perf_counter() - began
    weights = np.zeros((problem.N, problem.M)) if W.value is None else np.asarray(W.value)
    dual = np.zeros(mask.shape)
    if W.value is not None:
        _ball_multipliers(dual, balls, on, radii)
        for m, constraint in bounds.items():
            dual[m, off[m]] = np.maximum(constraint.dual_value, 0)
    lifted = dual if reduced is None else reduced.lift(dual, radii)
    certificate = certify(problem, weights, lifted)
    return Solution(
        W=weights,
        status=_status(outcome, certificate.holds(gap_tol, feas_tol)),
        certificate=certificate,
        dual=lifted,
        iterations=int(getattr(model.solver_stats, "num_iters", 0) or 0),
        seconds={"total": seconds, "solver": float(getattr(model.solver_stats, "solve_time", 0) or 0)},
        message=f"{solver}: {outcome}",
        settings={"method": "reference", "solver": solver, "gap_tol": gap_tol, "feas_tol": feas_tol} | options,
    )


def _samples(p: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, ReducedLinear | None]:
    """X, Y, mask and radii in float64; a compact problem is stated by the square root of its moments."""
    if not p.compact:
        X, Y, mask, _ = p.part(slice(0, p.P))
        mask = np.ones(Y.shape, bool) if mask is None else mask
        return X.astype(np.float64), Y.astype(np.float64), mask, p.radii, None
    reduced = ReducedLinear.from_gram(p.moments())
    spent = reduced.floor if p.neuronwise else np.array([reduced.floor.sum()])
    radii = np.sqrt(np.maximum(p.radii**2 - spent, 0))
    return reduced.X, reduced.Y, np.ones(reduced.Y.shape, bool), radii, reduced


def _row(V: np.ndarray, m: int, P: int) -> np.ndarray:
    return np.broadcast_to(V if V.size == 1 else V[m : m + 1], (1, P))[0].astype(np.float64)


def _balls(cp: ModuleType, residuals: list[Any], on: list[Any], radii: np.ndarray) -> tuple[list[Any], list[Any]]:
    """Ball constraints as (neurons, constraint) pairs; equalities for a radius of zero."""
    filled = [m for m, s in enumerate(on) if s.size]
    groups = [[m] for m in filled] if radii.size > 1 else [filled] if filled else []
    balls = []
    for group in groups:
        stacked = cp.hstack([residuals[m] for m in group])
        radius = radii[group[0] if radii.size > 1 else 0]
        balls.append((group, stacked == 0 if radius == 0 else cp.SOC(cp.Constant(radius), stacked)))
    return balls, [constraint for _, constraint in balls]


def _ball_multipliers(dual: np.ndarray, balls: list[Any], on: list[Any], radii: np.ndarray) -> None:
    """Lambda on Omega: the vector part of the cone's multiplier (sign turned), or an equality's multipliers."""
    for group, constraint in balls:
        if radii[group[0] if radii.size > 1 else 0] > 0:
            value = -np.asarray(constraint.dual_value[1], np.float64).ravel()
        else:
            value = np.asarray(constraint.dual_value, np.float64).ravel()
        ends = np.cumsum([on[m].size for m in group])[:-1]
        for m, part in zip(group, np.split(value, ends), strict=True):
            dual[m, on[m]] = part


def _status(outcome: str, holds: bool) -> Status:
    if holds:
        return Status.SOLVED
    if outcome.startswith("infeasible"):
        return Status.INFEASIBLE
    if outcome.startswith("optimal"):
        return Status.SOLVED_INACCURATE
    return Status.TIME_LIMIT if "limit" in outcome else Status.MAX_ITERATIONS
