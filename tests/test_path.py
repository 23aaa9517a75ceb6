"""Curves over epsilon and searches for a count: certified at every point, as many weights as asked for, warm."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nettrim as nt
from nettrim.path import to_count


def layer(seed: int = 0, N: int = 60, M: int = 60, P: int = 800, dtype: type = np.float64):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, P))
    W = rng.standard_normal((N, M)) ** 3
    return X.astype(dtype), np.maximum(W.T @ X, 0).astype(dtype)


def test_every_point_of_a_path_is_what_a_cold_solve_finds():
    X, Y = layer()
    curve = nt.path(X, Y, [0.05, 0.2, 0.1, 0.1], gap_tol=1e-6, feas_tol=1e-6)
    assert curve.epsilons == (0.2, 0.1, 0.05) and len(curve) == 3
    for epsilon, sol in zip(curve.epsilons, curve, strict=True):
        problem = nt.Problem(X, Y, epsilon)
        assert sol.status == nt.Status.SOLVED and nt.certify(problem, sol.W, sol.dual).holds(1e-6, 1e-6)
        cold = nt.Solver(problem, gap_tol=1e-6, feas_tol=1e-6).solve()
        assert sol.certificate.objective == pytest.approx(cold.certificate.objective, rel=1e-5)
    objectives = [s.certificate.objective for s in curve]
    assert objectives == sorted(objectives)
    assert curve[0] is curve.solutions[0]


def test_held_out_errors_tables_and_json():
    X, Y = layer()
    curve = nt.path(X[:, :500], Y[:, :500], [0.1, 0.2], rounds=3, heldout=(X[:, 500:], Y[:, 500:]))
    assert curve.heldout is not None and all(0.05 < h < 0.6 for h in curve.heldout)
    assert curve.heldout[0] == nt.certify(nt.Problem(X[:, 500:], Y[:, 500:], 0.1), curve[0].W).error
    assert "held out" in curve.table() and len(curve.table().splitlines()) == 3
    assert "2 solutions" in repr(curve)
    assert json.loads(json.dumps(curve.to_dict()))["solutions"][0]["epsilon"] == 0.2
    plain = nt.path(X[:, :500], Y[:, :500], [0.1, 0.2])
    assert all(a < b for a, b in zip(curve.densities, plain.densities, strict=True))


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9])
def test_a_density_is_met(density):
    X, Y = layer()
    sol = nt.solve(X, Y, density=density)
    assert sol.status == nt.Status.SOLVED
    # weights leave in groups where whole neurons do
    assert 0.9 * density <= sol.density <= density
    radius = sol.certificate.discrepancy / sol.certificate.ball_ratio * np.linalg.norm(Y)
    assert nt.certify(nt.Problem(X, Y, epsilon_abs=radius), sol.W, sol.dual).holds(1e-3, 1e-4)
    assert f"of {round(density * 3600)} weights" in sol.message


def test_counts_rounds_linear_layers_and_moments(method):
    X, Y = layer()
    plain, fewer = nt.solve(X, Y, nnz=900, method=method), nt.sparsest(X, Y, nnz=900)
    assert 800 <= plain.certificate.nnz <= 900 and 800 <= fewer.certificate.nnz <= 900
    assert fewer.certificate.discrepancy < 0.9 * plain.certificate.discrepancy
    Z = np.random.default_rng(1).standard_normal((40, 60)) ** 3 @ X
    for sol in (nt.solve(X, Z, nnz=800, omega="linear"), nt.solve(nt.Gram(60, 40).add(X, Z), nnz=800)):
        assert 770 <= sol.certificate.nnz <= 800


def test_the_solver_has_its_problem_back():
    X, Y = layer()
    solver = nt.Solver(nt.Problem(X, Y, epsilon=0.1))
    problem, settings = solver.problem, solver.settings
    to_count(solver, 200)
    assert solver.problem is problem and solver.settings is settings


def test_time_limits_end_a_search():
    X, Y = layer()
    sol = nt.solve(X, Y, density=0.1, time_limit=1e-6)
    assert sol.status == nt.Status.TIME_LIMIT


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"density": 0.1, "epsilon": 0.1}, "not both"),
        ({"nnz": 10, "epsilon_abs": 0.1}, "not both"),
        ({"density": 1.1}, "density must be in"),
        ({"nnz": 0}, "nnz must be between 1"),
        ({"nnz": 10, "density": 0.1}, "give one of"),
    ],
)
def test_wrong_targets_name_the_argument(options, error):
    X, Y = layer()
    with pytest.raises((TypeError, ValueError), match=error):
        nt.solve(X, Y, **options)


def test_wrong_paths_name_the_argument():
    X, Y = layer()
    for options, error in (
        ({"epsilons": []}, "epsilons is empty"),
        ({"epsilons": [-0.1]}, "epsilons must be finite"),
        ({"epsilons": ["a"]}, "epsilons must be numbers"),
        ({"epsilon": 0.1}, "takes epsilons"),
        ({"rounds": 0}, "rounds"),
        ({"heldout": (X, Y), "omega": Y > 1}, "held-out samples"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            nt.path(X, Y, **options)


def solves_of(sol: nt.Solution) -> int:
    return int(sol.message.split("after ")[1].split()[0])


def test_more_weights_than_any_error_keeps_are_not_searched_for():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 600))
    W = np.where(rng.random((40, 20)) < 0.3, rng.standard_normal((40, 20)), 0)
    sol = nt.solve(X, np.maximum(W.T @ X, 0), density=0.9)
    # the smallest error of the search keeps about what the layer has
    assert sol.status == nt.Status.SOLVED and np.count_nonzero(W) <= sol.certificate.nnz < 400
    assert sol.certificate.discrepancy < 2e-4 and solves_of(sol) <= 7


def test_fewer_weights_than_bounds_allow_are_not_searched_for():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.standard_normal((30, 400)), np.ones((1, 400))])
    own = rng.standard_normal((31, 8))
    Z = own.T @ X
    Y = np.maximum((own + 0.05 * rng.standard_normal(own.shape)).T @ X, 0)
    # as in a cascade: where nothing shall come out, at most what the layer's own weights give, which is below zero
    problem = nt.Problem(X, Y, epsilon=1.0, V=np.where(Y > 0, 0, Z))
    fewest = nt.Solver(problem).solve()
    assert fewest.status == nt.Status.SOLVED and fewest.certificate.nnz > 60
    found = to_count(nt.Solver(problem.replace(epsilon=0.1)), 8)
    assert found.status == nt.Status.SOLVED_INACCURATE and "no solve kept as few as 8" in found.message
    assert found.certificate.nnz <= fewest.certificate.nnz + 2 and solves_of(found) <= 7


def test_a_first_order_solve_that_is_far_from_sparse_is_not_believed():
    """Untrained layers are flat: within the tolerances a cold solve keeps many more than a warm one."""
    rng = np.random.default_rng(1)
    W, X = rng.standard_normal((80, 20)) / np.sqrt(80), rng.standard_normal((80, 1600))
    sol = nt.solve(X, np.maximum(W.T @ X, 0), nnz=480, gap_tol=1e-2, feas_tol=1e-3, method="admm")
    assert 0.95 * 480 <= sol.certificate.nnz <= 480 and sol.certificate.discrepancy < 0.98
