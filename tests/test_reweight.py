"""Reweighted l1: within the same constraints, certified for its norm, fewer weights, ends and failures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nettrim as nt
from nettrim.how import How
from nettrim.layer import Layer, prune_layer
from nettrim.reweight import DELTA, reweight, slopes


def layer(seed: int = 0, N: int = 40, M: int = 6, P: int = 400, dtype: type = np.float64):
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.standard_normal((N, P)), 0)
    X[-1] = 1
    W = rng.standard_normal((N, M)) ** 3
    return X.astype(dtype), np.maximum(W.T @ X, 0).astype(dtype)


def holds(problem: nt.Problem, sol: nt.Reweighted) -> nt.Certificate:
    """The certificate recomputed for the round's norm."""
    c = nt.certify(problem.replace(C=sol.C), sol.W, sol.dual)
    assert c.holds(sol.settings["gap_tol"], sol.settings["feas_tol"])
    assert c.gap == pytest.approx(sol.certificate.gap, abs=1e-12)
    return c


def test_it_keeps_fewer_within_the_same_error(method, dtype):
    problem = nt.Problem(*layer(dtype=dtype), epsilon=0.1)
    plain = nt.Solver(problem, method=method).solve()
    sol = reweight(nt.Solver(problem, method=method), 4)
    c = holds(problem, sol)
    assert sol.status == nt.Status.SOLVED and sol.round > 1 and sol.settings["method"] == method
    assert c.nnz < 0.85 * plain.certificate.nnz
    assert c.ball_ratio <= 1 + 1e-4
    assert [row["round"] for row in sol.rounds] == list(range(1, len(sol.rounds) + 1))
    assert sol.rounds[0]["nnz"] == plain.certificate.nnz
    # what is returned is the sparsest round
    assert c.nnz == min(row["nnz"] for row in sol.rounds) == sol.rounds[sol.round - 1]["nnz"]
    # no round has a smaller l1 norm than plain l1
    assert all(row["l1"] >= sol.rounds[0]["l1"] * (1 - 2e-3) for row in sol.rounds)


def test_one_round_is_plain_l1():
    problem = nt.Problem(*layer(), epsilon=0.1)
    plain, sol = nt.Solver(problem).solve(), reweight(nt.Solver(problem), 1)
    np.testing.assert_array_equal(sol.W, plain.W)
    assert sol.round == 1 and len(sol.rounds) == 1 and sol.certificate == plain.certificate
    holds(problem, sol)


def test_linear_layers_and_moments():
    X, _ = layer()
    Y = np.random.default_rng(1).standard_normal((5, 40)) ** 3 @ X
    sol = nt.sparsest(X, Y, 0.1, omega="linear")
    holds(nt.Problem(X, Y, 0.1, omega="linear"), sol)
    gram = nt.Gram(40, 5)
    gram.add(X, Y)
    other = nt.sparsest(gram, epsilon=0.1)
    assert other.status == nt.Status.SOLVED and abs(other.certificate.nnz - sol.certificate.nnz) <= 3
    assert sol.density < nt.solve(X, Y, 0.1, omega="linear").density


def test_neuronwise():
    X, Y = layer()
    sol = nt.sparsest(X, Y, 0.1, neuronwise=True)
    holds(nt.Problem(X, Y, 0.1, neuronwise=True), sol)
    assert sol.density < nt.solve(X, Y, 0.1, neuronwise=True).density


def test_what_costs_nothing_stays_free():
    X, Y = layer()
    C = np.ones((40, 1))
    C[-1] = 0
    sol = nt.sparsest(X, Y, 0.1, C=C)
    assert sol.round > 1 and (sol.C[-1] == 0).all() and (sol.C[:-1] > 0).all()
    holds(nt.Problem(X, Y, 0.1, C=C), sol)


def test_the_solver_has_its_problem_back():
    problem = nt.Problem(*layer(), epsilon=0.1)
    solver = nt.Solver(problem, time_limit=100.0)
    reweight(solver, 3)
    assert solver.problem is problem and solver.settings.time_limit == 100.0
    again = solver.solve()
    assert again.certificate.nnz == pytest.approx(nt.Solver(problem).solve().certificate.nnz, abs=3)


# the rule


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
@example(0, 1.0)
def test_slopes(seed, scale):
    """Positive, larger for smaller weights, on average as large as before, and the same for a scaled layer."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((12, 4)) * (rng.random((12, 4)) < 0.6)
    C = slopes(W, np.ones((12, 4)))
    assert (C > 0).all() and C.mean() == pytest.approx(1)
    order = np.argsort(np.abs(W[:, 0]))
    assert (np.diff(C[order, 0]) <= 1e-12).all()
    np.testing.assert_allclose(slopes(scale * W, np.ones((12, 4))), C, rtol=1e-9)


def test_slopes_of_a_neuron_without_weights():
    W = np.array([[1.0, 0.0], [0.0, 0.0]])
    C = slopes(W, np.array(1.0))
    assert np.isfinite(C).all() and C[0, 1] == C[1, 1] > C[1, 0] > C[0, 0]
    assert C[1, 0] / C[0, 0] == pytest.approx((1 + DELTA) / DELTA)
    assert (slopes(np.zeros((3, 2), np.float32), np.array(1.0)) == 1).all()


def test_each_round_lowers_the_sum_of_logarithms():
    """Majorise and minimise: with one delta for all rounds the surrogate cannot rise (Candes et al. 2008, 2.3)."""
    X, Y = layer()
    W = nt.solve(X, Y, 0.1, gap_tol=1e-6).W
    delta = DELTA * np.abs(W).max(0)
    values = []
    for _ in range(3):
        values.append(np.log(np.abs(W) + delta).sum())
        W = nt.solve(X, Y, 0.1, C=1 / (np.abs(W) + delta), gap_tol=1e-6).W
    assert values[0] > values[1] > values[2]


# ends and failures


def test_what_is_not_solved_ends_the_rounds():
    X, Y = layer()
    sol = nt.sparsest(X, Y, 0.1, max_iterations=1, method="admm")
    assert sol.status == nt.Status.MAX_ITERATIONS and len(sol.rounds) == 1
    X = np.vstack([X[:2]])
    sol = nt.sparsest(X, Y, 1e-3)
    assert sol.status == nt.Status.INFEASIBLE and sol.ray is not None and len(sol.rounds) == 1


def test_a_time_limit_is_for_all_rounds(monkeypatch):
    solver = nt.Solver(nt.Problem(*layer(), epsilon=0.1), time_limit=50.0)
    asked, solve = [], solver.solve

    def watched():
        asked.append(solver.settings.time_limit)
        return solve()

    monkeypatch.setattr(solver, "solve", watched)
    reweight(solver, 3)
    assert asked[0] == 50.0 and asked[0] > asked[1] > asked[2] > 0


def test_interrupted_in_a_later_round():
    seen = []

    def stop(check):
        seen.append(check["iteration"])
        # a round begins where the count does not grow
        return sum(1 for a, b in zip([9**9, *seen], seen, strict=False) if b <= a) > 2

    X, Y = layer(N=60, M=12)
    sol = nt.sparsest(X, Y, 0.1, callback=stop)
    assert sol.status == nt.Status.INTERRUPTED and "interrupted in round" in sol.message
    assert sol.certificate.holds(1e-3, 1e-4)


@pytest.mark.parametrize(("rounds", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)])
def test_wrong_rounds(rounds, error):
    X, Y = layer()
    with pytest.raises(error, match="rounds must be"):
        nt.sparsest(X, Y, 0.1, rounds=rounds)
    with pytest.raises(TypeError, match="unknown setting"):
        nt.sparsest(X, Y, 0.1, gap_tols=1)


# layers and networks


def network(seed: int = 0):
    rng = np.random.default_rng(seed)
    sizes = [20, 30, 20, 5]
    layers = [
        Layer(rng.standard_normal((m, n)) ** 3 / n, 0.1 * rng.standard_normal(m), relu=k < 2, name=f"fc{k}")
        for k, (n, m) in enumerate(itertools.pairwise(sizes))
    ]
    return layers, rng.standard_normal((500, 20))


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_networks(scheme):
    """Fewer weights, the errors asked for, and bounds that hold though another norm was shrunk."""
    layers, x = network()
    plain, pruned = (nt.prune(layers, x, 0.1, scheme, rounds=rounds) for rounds in (1, 4))
    assert pruned.kept < 0.9 * plain.kept
    assert "round" in pruned.table() and "round" not in plain.table()
    for report in pruned.reports:
        assert report.status == "solved" and report.round > 1
        assert report.discrepancy <= report.epsilon * (1 + 1e-4) and report.error <= report.bound


def test_a_rounded_layer_is_certified_for_its_round():
    layers, x = network()
    from nettrim.layer import group_problems, solve_groups

    old = layers[0]
    problems = list(group_problems(old, x, old(x), 0.1))
    made = solve_groups(
        old, problems, lambda a, what: a.astype(np.float32).astype(a.dtype), how=How(rounds=3), feas_tol=1e-3
    )
    solution, problem = made.solutions[0], problems[0][1]
    W = made.layer.weights(slice(0, 30))
    assert made.round > 1 and not np.array_equal(W, solution.W)
    expected = nt.certify(problem.replace(C=solution.C), W, solution.dual)
    assert made.certificates[0] == expected and abs(expected.gap) < 2e-3
    assert prune_layer(old, x, old(x), 0.1, how=How(rounds=3)).layer.nnz < prune_layer(old, x, old(x), 0.1).layer.nnz


def test_it_prints_as_a_line():
    sol = nt.sparsest(*layer(), 0.1)
    assert repr(sol).startswith("Solution(solved")
    assert f"round {sol.round} of {len(sol.rounds)})" in repr(sol) and len(repr(sol)) < 150
    plain = sol.to_dict()
    assert plain["round"] == sol.round and len(plain["rounds"]) == len(sol.rounds)
    assert sol.seconds["total"] == pytest.approx(sum(row["seconds"] for row in sol.rounds))
