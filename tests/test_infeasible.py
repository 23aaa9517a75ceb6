"""Infeasible problems: a verified ray and the smallest radius that works."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import dual_value, mask_of, residuals
from instances import infeasible_with_ray, layer

import nettrim as nt
from nettrim import backends, reference
from nettrim.infeasible import prove

WITH_RADIUS = ["outputs", "bound", "linear", "neuronwise"]


def as_samples(problem: nt.Problem, ray: np.ndarray) -> np.ndarray:
    """The ray as M x P multipliers, also when it is given in the span of the data."""
    return ray[:-1].T @ problem.X - ray[-1][:, None] * problem.Y if problem.compact else ray


def check_ray(problem: nt.Problem, ray: np.ndarray) -> None:
    """Right signs, a positive dual value, and X L^T negligible beside it: by hand, then by the library."""
    L = as_samples(problem, ray.astype(np.float64))
    X = problem.X.astype(np.float64)
    tolerance = 1e-6 if problem.dtype == np.float64 else 1e-3
    assert (L[~mask_of(problem)] >= -1e-12 * np.abs(L).max()).all()
    assert np.linalg.norm(X @ L.T) <= tolerance * np.linalg.norm(X) * np.linalg.norm(L)
    assert dual_value(problem, L) > 0
    assert nt.verify_ray(problem, ray) >= (1e4 if problem.dtype == np.float64 else 1e2)


def radius_works(problem: nt.Problem, radius: float) -> nt.Status:
    return nt.Solver(problem.replace(epsilon_abs=radius)).solve().status


@pytest.mark.parametrize("kind", [*WITH_RADIUS, "bounds"])
def test_the_known_rays_are_proofs(rng, kind, dtype):
    known = infeasible_with_ray(rng, kind, dtype=dtype)
    check_ray(known.problem, known.ray)
    assert nt.verify_ray(known.problem, known.ray) == np.inf


@pytest.mark.parametrize("kind", WITH_RADIUS)
def test_smallest_radius(rng, kind, dtype):
    known = infeasible_with_ray(rng, kind, dtype=dtype)
    solution = nt.Solver(known.problem).solve()
    assert solution.status == nt.Status.INFEASIBLE, solution.message
    assert solution.dual is None
    check_ray(known.problem, solution.ray)
    rounding = 1e-6 if dtype == np.float64 else 1e-3
    assert solution.smallest_epsilon == pytest.approx(known.smallest_epsilon, rel=rounding)
    # the returned weights attain it
    inside, excess = residuals(known.problem, solution.W)
    norms = np.linalg.norm(inside, axis=1)
    reached = norms.max() * np.sqrt(known.problem.M) if known.problem.neuronwise else np.linalg.norm(norms)
    assert reached == pytest.approx(known.smallest_epsilon, rel=1e-3)
    assert np.linalg.norm(excess) <= 1e-3 * known.problem.scale


@pytest.mark.parametrize("kind", WITH_RADIUS)
def test_just_above_the_smallest_radius_works_and_just_below_does_not(rng, kind):
    problem = infeasible_with_ray(rng, kind).problem
    smallest = nt.Solver(problem).solve().smallest_epsilon
    assert radius_works(problem, 1.001 * smallest) == nt.Status.SOLVED
    assert radius_works(problem, 0.99 * smallest) == nt.Status.INFEASIBLE


def test_contradictory_bounds_have_no_radius(rng, dtype):
    known = infeasible_with_ray(rng, "bounds", dtype=dtype)
    solution = nt.Solver(known.problem).solve()
    assert solution.status == nt.Status.INFEASIBLE, solution.message
    assert solution.smallest_epsilon is None
    check_ray(known.problem, solution.ray)
    assert "no epsilon" in solution.message


@pytest.mark.parametrize("neuronwise", [False, True], ids=["common", "neuronwise"])
@pytest.mark.parametrize("linear", [False, True], ids=["relu", "linear"])
def test_outputs_out_of_reach(rng, linear, neuronwise):
    """More samples than inputs, and outputs that have nothing to do with them: the least error is cvxpy's."""
    X = layer(rng, 8, 3, 60)[0]
    Y = rng.standard_normal((3, 60))
    Y = Y if linear else np.maximum(Y, 0)
    problem = nt.Problem(X, Y, 0.2, omega="linear" if linear else "active", neuronwise=neuronwise)
    solution = nt.Solver(problem).solve()
    assert solution.status == nt.Status.INFEASIBLE, solution.message
    check_ray(problem, solution.ray)
    expected = least_radius(problem)
    assert solution.smallest_epsilon == pytest.approx(expected, rel=1e-4)
    assert radius_works(problem, 1.001 * solution.smallest_epsilon) == nt.Status.SOLVED
    assert radius_works(problem, 0.99 * solution.smallest_epsilon) == nt.Status.INFEASIBLE


def least_radius(problem: nt.Problem) -> float:
    import cvxpy as cp

    W, mask = cp.Variable((problem.N, problem.M)), mask_of(problem)
    Z = W.T @ problem.X
    R = cp.multiply(mask, Z - problem.Y)
    constraints = [] if problem.linear else [cp.multiply(~mask, Z) <= 0]
    if problem.neuronwise:
        value = cp.Problem(cp.Minimize(cp.max(cp.norm(R, axis=1))), constraints).solve("CLARABEL")
        return float(value * np.sqrt(problem.M))
    return float(cp.Problem(cp.Minimize(cp.norm(R, "fro")), constraints).solve("CLARABEL"))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_inputs_does_not_matter(rng, scale):
    known = infeasible_with_ray(rng, "bound")
    problem = known.problem.replace(X=scale * known.problem.X)
    solution = nt.Solver(problem).solve()
    assert solution.status == nt.Status.INFEASIBLE
    assert solution.smallest_epsilon == pytest.approx(known.smallest_epsilon, rel=1e-6)


@pytest.mark.parametrize("omega", ["active", "linear"])
def test_inputs_of_zero_reach_nothing(rng, omega, dtype):
    Y = np.abs(rng.standard_normal((3, 20))).astype(dtype)
    problem = nt.Problem(np.zeros((5, 20), dtype), Y, 0.1, omega=omega)
    solution = nt.Solver(problem).solve()
    assert solution.status == nt.Status.INFEASIBLE
    assert solution.smallest_epsilon == pytest.approx(problem.y_norm, rel=1e-6)
    assert not solution.W.any()
    check_ray(problem, solution.ray)


def test_a_feasible_problem_has_no_ray():
    """Multipliers with a positive value but X L^T != 0 prove nothing."""
    rng = np.random.default_rng(1)
    X, Z = layer(rng, 8, 3, 60)
    problem = nt.Problem(X, np.maximum(Z, 0), 0.1)
    ray = np.where(mask_of(problem), -problem.Y, 0)
    assert dual_value(problem, ray) > 0
    assert nt.verify_ray(problem, ray) < 1
    assert nt.verify_ray(problem, -ray) == 0


def test_cvxpy_agrees_that_it_is_infeasible(rng):
    for kind in [*WITH_RADIUS, "bounds"]:
        assert reference.solve(infeasible_with_ray(rng, kind).problem).status == nt.Status.INFEASIBLE


def test_a_proof_keeps_to_the_time_limit():
    """The least-error program is asked at every iteration whether it has to stop."""
    problem = infeasible_with_ray(np.random.default_rng(0), "outputs").problem
    asked = []
    assert (
        prove(problem, backends.get("numpy"), lambda: asked.append(1) or ("time_limit" if len(asked) > 5 else None))
        is None
    )
    assert len(asked) == 6
    assert prove(problem, backends.get("numpy")) is not None
