"""The Newton polish: from a rough iterate to the optimum, judged by the certificate."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import mask_of, residuals
from instances import known_optimum, random_problem

import nettrim as nt
from nettrim.polish import polish

KINDS = {
    "relu": {},
    "neuronwise": {"neuronwise": True},
    "bias free": {"weights": "rows"},
    "weighted entries": {"weights": "entries"},
}


def rough_and_polished(problem, rough_gap=1e-3):
    """A solution without polish, and what polishing it gives."""
    solver = nt.Solver(problem, gap_tol=rough_gap, feas_tol=rough_gap, polish=False, method="admm")
    rough = solver.solve()
    assert rough.status == nt.Status.SOLVED
    assert abs(rough.certificate.gap) > 1e-3 * rough_gap
    W = rough.W.copy()
    result = polish(solver._loop(), rough.W, rough.dual.copy(), 1e-10, 1e-10)
    np.testing.assert_array_equal(rough.W, W)
    return result


def test_a_polish_ends_within_its_first_round_when_time_is_up():
    known = known_optimum(np.random.default_rng(1), 40, 6, 200)
    solver = nt.Solver(known.problem, gap_tol=1e-3, feas_tol=1e-3, polish=False, method="admm")
    rough, asked = solver.solve(), []

    def stopped():
        asked.append(len(asked) >= 3)
        return asked[-1]

    arguments = solver._loop(), rough.W, rough.dual, 1e-10, 1e-10
    assert polish(*arguments[:2], rough.dual.copy(), *arguments[3:]) is not None
    assert polish(*arguments[:2], rough.dual.copy(), *arguments[3:], stopped=stopped) is None
    # of the six neurons three were solved, and nothing was judged
    assert len(asked) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_polish_reaches_the_known_optimum(kind):
    known = known_optimum(np.random.default_rng(1), 40, 6, 200, **KINDS[kind])
    result = rough_and_polished(known.problem)
    c = nt.certify(known.problem, result.W, result.multiplier)
    assert abs(c.gap) < 1e-9
    assert c.violation < 1e-9
    assert c.objective == pytest.approx(known.objective, rel=1e-9)
    np.testing.assert_array_equal(result.W != 0, known.W != 0)
    # what polish says of itself is what the certificate says
    assert abs(result.gap) < 1e-9
    assert result.violation < 1e-9


@pytest.mark.parametrize("bound", ["scalar", "array"])
def test_polish_of_a_random_layer(bound):
    problem = random_problem(np.random.default_rng(4), 25, 4, 200, bound=bound)
    result = rough_and_polished(problem, 1e-8)
    c = nt.certify(problem, result.W, result.multiplier)
    assert abs(c.gap) < 1e-10
    assert c.violation < 1e-10


@pytest.mark.parametrize("neuronwise", [False, True], ids=["common", "neuronwise"])
def test_multipliers_meet_the_optimality_conditions(neuronwise):
    """Lambda = lambda (W^T X - Y) on Omega with the ball active; off Omega Lambda >= 0 only at active bounds."""
    problem = known_optimum(np.random.default_rng(3), 40, 6, 200, neuronwise=neuronwise).problem
    result = rough_and_polished(problem)
    L, mask = result.multiplier, mask_of(problem)
    R, _ = residuals(problem, result.W)
    inside = np.where(mask, L, 0)
    for rows in [[m] for m in range(6)] if neuronwise else [list(range(6))]:
        distance, size = np.linalg.norm(R[rows]), np.linalg.norm(inside[rows])
        assert distance == pytest.approx(problem.radii[0], rel=1e-9)
        np.testing.assert_allclose(inside[rows], size / distance * R[rows], atol=1e-7 * size)
    outside = np.where(mask, 0, L)
    assert (outside >= 0).all()
    slack = np.where(mask, 0, np.broadcast_to(problem.V, mask.shape) - result.W.T @ problem.X)
    assert np.abs(outside * slack).max() <= 1e-8 * np.abs(L).max()
    # stationarity: -X L^T is a subgradient of sum C |W|
    H = -problem.X @ L.T
    C = np.broadcast_to(problem.C, H.shape)
    on = result.W != 0
    np.testing.assert_allclose(H[on], (C * np.sign(result.W))[on], atol=1e-7)
    assert (np.abs(H) <= C * (1 + 1e-7)).all()


def test_a_radius_of_zero(rng):
    """The limit lambda -> infinity: multipliers come from the second right-hand side alone."""
    problem = random_problem(rng, 20, 3, 60, epsilon=0.0)
    solution = nt.Solver(problem, gap_tol=1e-6, feas_tol=1e-6, method="admm").solve()
    assert solution.status == nt.Status.SOLVED
    R, _ = residuals(problem, solution.W)
    assert np.linalg.norm(R) <= 1e-6 * problem.y_norm


@pytest.mark.parametrize("kind", KINDS)
def test_without_polish_the_first_order_method_still_arrives(kind):
    known = known_optimum(np.random.default_rng(4), 30, 5, 120, **KINDS[kind])
    solution = nt.Solver(known.problem, gap_tol=1e-5, polish=False, method="admm").solve()
    assert solution.status == nt.Status.SOLVED
    assert solution.seconds["polish"] == 0
    assert solution.certificate.objective == pytest.approx(known.objective, rel=1e-3)


def test_polish_saves_iterations():
    problem = known_optimum(np.random.default_rng(5), 30, 5, 120).problem
    with_polish = nt.Solver(problem, gap_tol=1e-8, method="admm").solve()
    without = nt.Solver(problem, gap_tol=1e-8, polish=False, method="admm").solve()
    assert with_polish.status == without.status == nt.Status.SOLVED
    assert with_polish.iterations < without.iterations
