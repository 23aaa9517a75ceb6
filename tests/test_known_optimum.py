"""Instances built around their optimum: sizes that no general-purpose solver could check."""

from __future__ import annotations

import numpy as np
import pytest
from instances import known_optimum

import nettrim as nt

KINDS = {
    "relu": {},
    "linear": {"linear": True},
    "neuronwise": {"neuronwise": True},
    "linear neuronwise": {"linear": True, "neuronwise": True},
    "bias free": {"weights": "rows"},
    "linear, bias free": {"linear": True, "weights": "rows"},
    "weighted entries": {"weights": "entries"},
    "dense": {"kept": 0.5},
    "small epsilon": {"epsilon": 0.01},
    "degenerate": {"degenerate": True},
    "degenerate neuronwise": {"degenerate": True, "neuronwise": True},
}


def check(known, solution, gap_tol):
    assert solution.status == nt.Status.SOLVED, solution.message
    c = solution.certificate
    assert c.holds(gap_tol, 1e-4)
    assert abs(c.objective - known.objective) <= 2 * gap_tol * known.objective
    # the data were rounded to the working dtype, which moves the optimum by as much
    rounding = 1e-5 if known.problem.dtype == np.float32 else 1e-10
    assert c.dual_bound <= known.objective * (1 + rounding)


@pytest.mark.parametrize("kind", KINDS)
def test_the_instances_are_optimal(kind):
    known = known_optimum(np.random.default_rng(1), 40, 6, 150, **KINDS[kind])
    c = nt.certify(known.problem, known.W, known.dual)
    assert abs(c.gap) <= 1e-9
    assert c.violation <= 1e-9
    assert c.objective == pytest.approx(known.objective, rel=1e-12)
    assert c.ball_ratio == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gap_1e_3(kind, dtype, method):
    known = known_optimum(np.random.default_rng(2), 60, 8, 200, dtype, **KINDS[kind])
    check(known, nt.Solver(known.problem, method=method).solve(), 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gap_1e_6_in_float64(kind, method):
    known = known_optimum(np.random.default_rng(3), 60, 8, 200, **KINDS[kind])
    check(known, nt.Solver(known.problem, gap_tol=1e-6, feas_tol=1e-6, method=method).solve(), 1e-6)


@pytest.mark.parametrize("linear", [False, True], ids=["relu", "linear"])
def test_moderate_size_in_float64(linear, method):
    known = known_optimum(np.random.default_rng(4), 200, 20, 600, linear=linear)
    check(known, nt.Solver(known.problem, gap_tol=1e-6, feas_tol=1e-6, method=method).solve(), 1e-6)


@pytest.mark.parametrize("linear", [False, True], ids=["relu", "linear"])
def test_largest_size(linear, method):
    known = known_optimum(np.random.default_rng(5), 1000, 50, 3000, np.float32, linear=linear, kept=0.03)
    check(known, nt.Solver(known.problem, method=method).solve(), 1e-3)


def test_the_optimal_support_is_found(method):
    known = known_optimum(np.random.default_rng(6), 60, 8, 300)
    W = nt.Solver(known.problem, gap_tol=1e-9, feas_tol=1e-9, method=method).solve().W
    np.testing.assert_array_equal(W != 0, known.W != 0)
    np.testing.assert_allclose(W, known.W, atol=1e-6)
