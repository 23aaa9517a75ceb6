"""Solves that begin at an earlier solution: the same answer, sooner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from instances import KINDS, random_problem

import nettrim as nt
from nettrim import backends
from nettrim.operators import Dense
from nettrim.samples import Resident
from nettrim.streamed import Streamed

TIGHT = {"gap_tol": 1e-6, "feas_tol": 1e-6, "polish": False}


def problem_of(kind="relu"):
    return random_problem(np.random.default_rng(3), 30, 8, 400, **KINDS.get(kind, {}))


@pytest.mark.parametrize("kind", KINDS)
def test_at_its_own_solution(kind, method):
    """A round, or a few checks, instead of the whole way."""
    problem = problem_of(kind)
    first = nt.Solver(problem, method=method, **TIGHT).solve()
    again = nt.Solver(problem, method=method, **TIGHT).start(first).solve()
    assert again.status == nt.Status.SOLVED and again.settings["method"] == first.settings["method"]
    assert again.certificate.objective == pytest.approx(first.certificate.objective, rel=5e-6)
    assert again.iterations <= max(first.iterations / 2, 2) or kind == "linear"


@pytest.mark.parametrize("kind", ["relu", "neuronwise", "bounds", "linear"])
def test_at_the_solution_of_another_radius(kind, method):
    problem = problem_of(kind)
    near = nt.Solver(problem.replace(epsilon_abs=1.05 * problem.epsilon), method=method, **TIGHT).solve()
    cold = nt.Solver(problem, method=method, **TIGHT).solve()
    warm = nt.Solver(problem, method=method, **TIGHT).start(near).solve()
    assert warm.status == cold.status == nt.Status.SOLVED
    assert warm.certificate.objective == pytest.approx(cold.certificate.objective, rel=5e-6)


def test_without_multipliers(method):
    """Weights of any origin: a certificate of the answer needs nothing of the start."""
    problem = problem_of()
    first = nt.Solver(problem, method=method, **TIGHT).solve()
    for W in (first.W, np.zeros_like(first.W), np.random.default_rng(0).standard_normal(first.W.shape)):
        again = nt.Solver(problem, method=method, **TIGHT).start(replace(first, W=W, dual=None)).solve()
        assert again.status == nt.Status.SOLVED
        assert again.certificate.objective == pytest.approx(first.certificate.objective, rel=5e-6)


def test_the_start_is_used_once():
    problem = problem_of()
    solver = nt.Solver(problem, **TIGHT)
    first = solver.solve()
    assert solver.start(first)._given is not None
    solver.solve()
    assert solver._given is None


def test_more_samples_than_the_solution_had():
    """Its weights serve, its multipliers do not."""
    problem = problem_of()
    part = problem.replace(X=problem.X[:, :300], Y=problem.Y[:, :300])
    warm = nt.Solver(problem, **TIGHT).start(nt.Solver(part, **TIGHT).solve()).solve()
    assert warm.status == nt.Status.SOLVED
    assert warm.certificate.objective == pytest.approx(
        nt.Solver(problem, **TIGHT).solve().certificate.objective, rel=5e-6
    )


def test_wrong_starts():
    problem = problem_of()
    solver, solution = nt.Solver(problem), nt.Solver(problem).solve()
    with pytest.raises(TypeError, match="solution must be"):
        solver.start(solution.W)
    with pytest.raises(ValueError, match="solution.W must be 30 x 8"):
        solver.start(replace(solution, W=solution.W[1:]))


@pytest.mark.parametrize("kept", [0, 64])
def test_a_state_is_loaded_in_parts_too(rng, kept):
    be = backends.get("numpy")
    X, Y = rng.standard_normal((7, 230)), rng.standard_normal((5, 230))
    zero, values = np.zeros((1, 1)), rng.standard_normal((5, 230))
    whole = Resident(Dense(X, be, np.float64), Y, Y > 0, zero, be)
    parts = Streamed(X, Y, Y > 0, zero, be, np.float64, kept, 32, 3)
    A, B = whole.state(), parts.state()
    np.testing.assert_allclose(whole.load(A, values), parts.load(B, values), atol=1e-12)
    np.testing.assert_array_equal(parts.to_host(B), values)
