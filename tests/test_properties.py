"""What must not change, or must change in a known way, when the data are permuted or scaled."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import mask_of, solve_tightly
from hypothesis import example, given
from hypothesis import strategies as st
from instances import random_problem

import nettrim as nt

KINDS = {
    "relu": {},
    "linear": {"linear": True},
    "neuronwise": {"neuronwise": True},
    "bounds": {"bound": "array"},
    "bias free": {"weights": "rows"},
    "weighted entries": {"weights": "entries"},
}
kinds, seeds = st.sampled_from(sorted(KINDS)), st.integers(0, 2**32 - 1)


def problem_of(kind: str, seed: int, **options) -> nt.Problem:
    return random_problem(np.random.default_rng(seed), 8, 3, 30, **(KINDS[kind] | options))


def parts(problem: nt.Problem) -> dict[str, np.ndarray]:
    """Everything per neuron, sample and input, in full."""
    shape = problem.Y.shape
    return {
        "X": problem.X,
        "Y": problem.Y,
        "omega": mask_of(problem),
        "V": np.broadcast_to(problem.V, shape).copy(),
        "C": np.broadcast_to(problem.C, (problem.N, problem.M)).copy(),
    }


def rebuilt(problem: nt.Problem, **changes) -> nt.Problem:
    given = parts(problem) | {"epsilon_abs": problem.epsilon, "neuronwise": problem.neuronwise}
    return nt.Problem(**(given | changes))


@given(kinds, seeds)
@example("relu", 0)
@example("linear", 1)
@example("bounds", 2)
def test_order_of_neurons_samples_and_inputs(kind, seed):
    problem = problem_of(kind, seed)
    rng = np.random.default_rng(seed)
    n, m, p = (rng.permutation(k) for k in (problem.N, problem.M, problem.P))
    a = parts(problem)
    shuffled = rebuilt(
        problem,
        X=a["X"][n][:, p],
        Y=a["Y"][m][:, p],
        omega=a["omega"][m][:, p],
        V=a["V"][m][:, p],
        C=a["C"][n][:, m],
    )
    one, other = solve_tightly(problem), solve_tightly(shuffled)
    assert one.certificate.objective == pytest.approx(other.certificate.objective, rel=1e-5)
    # the shuffled weights, put back, are a solution of the first problem
    back = np.empty_like(other.W)
    back[np.ix_(n, m)] = other.W
    assert nt.certify(problem, back, one.dual).holds(1e-5, 1e-5)


@given(kinds, seeds, st.floats(-3, 3), st.floats(-3, 3))
@example("relu", 0, -3.0, 3.0)
@example("linear", 1, 2.0, -1.0)
@example("bounds", 2, 1.0, 3.0)
def test_scales_of_inputs_and_outputs(kind, seed, log_a, log_b):
    """X, Y, V, epsilon -> a X, b Y, b V, b epsilon turns W into (b / a) W."""
    problem, a, b = problem_of(kind, seed), 10**log_a, 10**log_b
    scaled = rebuilt(
        problem, X=a * problem.X, Y=b * problem.Y, V=b * parts(problem)["V"], epsilon_abs=b * problem.epsilon
    )
    one, other = solve_tightly(problem), solve_tightly(scaled)
    assert other.certificate.objective * a / b == pytest.approx(one.certificate.objective, rel=1e-5)
    assert nt.certify(problem, other.W * a / b, one.dual).holds(1e-5, 1e-5)


@given(kinds, seeds, st.floats(0.01, 0.5), st.floats(1.05, 3))
@example("relu", 0, 0.05, 1.1)
@example("neuronwise", 1, 0.3, 3.0)
def test_a_larger_radius_never_costs_more(kind, seed, epsilon, factor):
    small = solve_tightly(problem_of(kind, seed, epsilon=epsilon)).certificate
    large = solve_tightly(problem_of(kind, seed, epsilon=min(factor * epsilon, 1.0))).certificate
    assert large.objective <= small.objective * (1 + 2e-6)
    assert large.dual_bound <= small.objective * (1 + 2e-6)


@given(kinds, seeds)
@example("relu", 0)
@example("weighted entries", 3)
def test_a_rough_bound_stays_below_the_optimum(kind, seed):
    """The bound at every check, however early, is below the objective that a tight solve certifies."""
    problem = problem_of(kind, seed)
    tight = solve_tightly(problem)
    rough = nt.Solver(problem, max_iterations=15, polish=False).solve()
    ceiling = tight.certificate.objective * (1 + 2e-6)
    assert rough.certificate.dual_bound <= ceiling
    if not (problem.C == 0).any():
        assert all(row["dual_bound"] <= ceiling for row in tight.history)


@given(kinds, seeds, st.floats(-4, 4))
@example("relu", 0, 3.0)
@example("weighted entries", 1, -4.0)
def test_uniform_weights_scale_the_objective(kind, seed, log_c):
    problem, c = problem_of(kind, seed), 10**log_c
    one, other = solve_tightly(problem), solve_tightly(problem.replace(C=c * problem.C))
    assert other.certificate.objective == pytest.approx(c * one.certificate.objective, rel=1e-5)
    assert other.certificate.dual_bound <= c * one.certificate.objective * (1 + 2e-6)


@given(kinds, seeds)
@example("relu", 0)
@example("linear", 1)
def test_more_of_the_same_samples_change_nothing_but_the_radius(kind, seed):
    """Every sample twice: the ball's radius grows by sqrt(2), the relative one stays, and so does the optimum."""
    problem = problem_of(kind, seed)
    twice = {name: np.hstack([parts(problem)[name]] * 2) for name in ("X", "Y", "omega", "V")}
    doubled = rebuilt(problem, **twice, epsilon_abs=np.sqrt(2) * problem.epsilon)
    one, other = solve_tightly(problem), solve_tightly(doubled)
    assert one.certificate.objective == pytest.approx(other.certificate.objective, rel=1e-5)


@given(kinds, seeds)
@example("relu", 0)
@example("bounds", 5)
def test_neuronwise_is_one_problem_per_neuron(kind, seed):
    """Program (4.7) splits, and its optimum is never below the common ball's of the same radius."""
    together = problem_of(kind, seed, neuronwise=True)
    a, total = parts(together), 0.0
    for m in range(together.M):
        row = slice(m, m + 1)
        alone = nt.Problem(
            a["X"],
            a["Y"][row],
            epsilon_abs=float(together.radii[m]),
            omega=a["omega"][row],
            V=a["V"][row],
            C=a["C"][:, row],
        )
        total += solve_tightly(alone).certificate.objective
    joint = solve_tightly(together).certificate.objective
    assert joint == pytest.approx(total, rel=1e-5, abs=1e-12)
    common = solve_tightly(together.replace(neuronwise=False)).certificate.objective
    assert common <= joint * (1 + 1e-5)
