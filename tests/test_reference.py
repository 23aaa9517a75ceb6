"""Agreement with cvxpy: objectives to 1e-5, and both certificates hold."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import solve_tightly
from instances import random_problem

import nettrim as nt
from nettrim import reference

# the certificate judges, not the solver's own opinion of its accuracy
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")

KINDS = {
    "relu": {},
    "linear": {"linear": True},
    "neuronwise": {"neuronwise": True},
    "linear neuronwise": {"linear": True, "neuronwise": True},
    "bias free": {"weights": "rows"},
    "linear, bias free": {"weights": "rows", "linear": True},
    "weighted inputs": {"weights": "columns"},
    "weighted entries": {"weights": "entries"},
    "bounds": {"bound": "array"},
    "bounds, bias free": {"bound": "array", "weights": "rows"},
    "small epsilon": {"epsilon": 1e-3},
    "large epsilon": {"epsilon": 0.6},
}


def agree(problem: nt.Problem, solver: str = "CLARABEL", tolerance: float = 1e-6) -> None:
    ours = solve_tightly(problem)
    theirs = reference.solve(problem, solver, gap_tol=tolerance, feas_tol=tolerance)
    assert theirs.status == nt.Status.SOLVED, theirs.message
    assert ours.certificate.holds(1e-6, 1e-6)
    assert theirs.certificate.holds(tolerance, tolerance)
    assert ours.certificate.objective == pytest.approx(theirs.certificate.objective, rel=1e-5)
    # each proves the other's optimality
    assert ours.certificate.dual_bound <= theirs.certificate.objective * (1 + 1e-5)
    assert theirs.certificate.dual_bound <= ours.certificate.objective * (1 + 1e-5)


@pytest.mark.parametrize("shape", [(8, 3, 40), (14, 4, 9)], ids=["P > N", "P < N"])
@pytest.mark.parametrize("kind", KINDS)
def test_random_layers(kind, shape):
    agree(random_problem(np.random.default_rng(1), *shape, **KINDS[kind]))


@pytest.mark.parametrize("kind", ["relu", "linear", "bounds"])
def test_more_inputs_and_samples(kind):
    agree(random_problem(np.random.default_rng(2), 30, 6, 150, **KINDS[kind]))


@pytest.mark.parametrize("shape", [(8, 3, 40), (14, 4, 9)], ids=["P > N", "P < N"])
def test_a_radius_of_zero(shape):
    agree(random_problem(np.random.default_rng(3), *shape, epsilon=0.0))


@pytest.mark.parametrize("kind", ["relu", "linear", "bias free"])
def test_scs(kind):
    agree(random_problem(np.random.default_rng(4), 8, 3, 40, **KINDS[kind]), "SCS", 1e-5)


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_layers_of_a_trained_network(digits_layers, index, epsilon):
    X, Y, omega = digits_layers[index]
    agree(nt.Problem(X[:, :120], Y[:, :120], epsilon, omega=omega))


def test_a_trained_layer_with_its_bias_free(digits_layers):
    X, Y, omega = digits_layers[1]
    C = np.ones(X.shape[0])
    C[-1] = 0
    agree(nt.Problem(X[:, :150], Y[:, :150], 0.1, omega=omega, C=C))


def test_a_slacked_trained_layer(digits_layers):
    """Program (3.10): the bounds are the layer's own outputs on perturbed inputs, where those are positive."""
    X, Y, _ = digits_layers[1]
    X, Y = X[:, :100], Y[:, :100]
    V = np.where(np.random.default_rng(0).random(Y.shape) < 0.3, 0.05 * Y.max(), 0.0)
    agree(nt.Problem(X, Y, 0.1, V=V))


def test_gram_alone():
    rng = np.random.default_rng(5)
    problem = random_problem(rng, 10, 3, 60, linear=True)
    agree(nt.Problem.from_gram(nt.Gram(10, 3).add(problem.X, problem.Y), epsilon_abs=problem.epsilon))


def test_an_infeasible_problem_is_recognised(rng):
    X = rng.standard_normal((3, 20))
    solution = reference.solve(nt.Problem(X, np.abs(rng.standard_normal((2, 20))), 0.01))
    assert solution.status == nt.Status.INFEASIBLE


def test_unknown_solver_and_wrong_problem(rng):
    problem = random_problem(rng, 4, 2, 10)
    with pytest.raises(ValueError, match="solver"):
        reference.solve(problem, "MOSEK")
    with pytest.raises(TypeError, match="problem"):
        reference.solve("layer")
