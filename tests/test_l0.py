"""The search under a count: exchanges against brute force, counts and patterns, descent, known answers, bad input."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from helpers import residuals
from hypothesis import example, given
from hypothesis import strategies as st
from nettrim.kernels import swaps

import nettrim as nt
from nettrim import pruners
from nettrim.exchange import _Round, improve
from nettrim.refit import refit_weights
from nettrim.relu_loss import ReluLoss


def layer(seed: int = 0, N: int = 32, M: int = 8, P: int = 700, dtype: type = np.float64, bias: bool = False):
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.standard_normal((N, N)) @ rng.standard_normal((N, P)), 0)
    if bias:
        X[-1] = 1
    W = rng.standard_normal((N, M))
    return X.astype(dtype), np.maximum(W.T @ X, 0).astype(dtype), W.astype(dtype)


def loss_of(problem: nt.Problem, W: np.ndarray) -> float:
    inside, outside = residuals(problem, W)
    return float((inside**2).sum() + (outside**2).sum())


# exchanges on a quadratic


def value(G: np.ndarray, b: np.ndarray, basis) -> float:
    """The minimum of w^T G w - 2 b^T w over a basis."""
    basis = list(basis)
    return float(-b[basis] @ np.linalg.solve(G[np.ix_(basis, basis)], b[basis]))


def complete(G: np.ndarray) -> tuple:
    """That all rows are known, and no block to make others of."""
    return np.ones(len(G), bool), np.empty((0, len(G), 0))


@given(st.integers(0, 200), st.integers(2, 5), st.integers(1, 5), st.booleans())
@example(0, 3, 4, False)
@example(1, 2, 1, True)
def test_exchanges_end_where_none_gains(seed, size, others, grouped):
    rng = np.random.default_rng(seed)
    n = size + others
    A = rng.standard_normal((n, n + 3))
    G, b = A @ A.T, rng.standard_normal(n)
    groups = np.arange(n) % 2 if grouped else np.zeros(n, np.int64)
    locked = np.zeros(n, bool)
    locked[0] = True
    basis, rest = np.arange(size), np.arange(size, n)
    before = value(G, b, basis)
    made, _, _, _ = swaps.exchange(G, b, basis, rest, groups, locked, 1e-9, 50, *complete(G))
    after = value(G, b, basis)
    assert sorted([*basis, *rest]) == list(range(n)) and 0 in basis
    assert (after < before) == (made > 0)
    if grouped:
        assert (groups[basis] == groups[:size]).all()
    for i in range(size):
        for t in rest:
            if basis[i] != 0 and groups[t] == groups[basis[i]]:
                changed = basis.copy()
                changed[i] = t
                assert value(G, b, changed) >= after - 1e-8


def test_most_exchanges_and_the_least_gain():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((30, 40))
    G, b = A @ A.T, rng.standard_normal(30)
    none = np.zeros(30, bool), np.zeros(30, np.int64)

    def run(least, most):
        basis, rest = np.arange(6), np.arange(6, 30)
        made, _, _, _ = swaps.exchange(G, b, basis, rest, none[1], none[0], least, most, *complete(G))
        return made, value(G, b, basis)

    assert run(np.inf, 9)[0] == 0 and run(0.0, 1)[0] == 1
    assert run(1e-9, 99)[1] < run(0.0, 1)[1] < value(G, b, range(6))


def test_prices_are_what_a_change_costs_and_gains():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((9, 12))
    G, b = A @ A.T, rng.standard_normal(9)
    basis, others = np.array([0, 3, 4, 8]), np.array([1, 2, 5, 6, 7])
    none = np.zeros(9, np.int64), np.zeros(9, bool)
    made, _, costs, gains = swaps.exchange(G, b, basis, others, *none, np.inf, 9, *complete(G))
    assert made == 0
    whole = value(G, b, basis)
    for i, cost in zip(basis, costs, strict=True):
        assert value(G, b, [j for j in basis if j != i]) - whole == pytest.approx(cost)
    for t, gain in zip(others, gains, strict=True):
        assert whole - value(G, b, [*basis, t]) == pytest.approx(gain)
    made, _, costs, gains = swaps.exchange(G, b, basis[:0], others, *none, 0.0, 9, *complete(G))
    assert made == 0 and costs.size == 0 and gains == pytest.approx(b[others] ** 2 / G.diagonal()[others])


def test_a_basis_that_is_too_dependent_has_no_prices():
    G, basis, others = np.diag([1.0, -1.0, 1.0]), np.array([0, 1]), np.array([2])
    none = np.zeros(3, np.int64), np.zeros(3, bool)
    made, _, costs, gains = swaps.exchange(G, np.ones(3), basis, others, *none, 0.0, 9, *complete(G))
    assert made == 0 and np.isinf(costs).all() and not gains.any()


def test_dependent_inputs_are_not_taken_in():
    x = np.random.default_rng(0).standard_normal((2, 50))
    X = np.vstack([x, x[0], x.sum(0)])
    G, b = X @ X.T, X @ x.sum(0)
    basis, others = np.array([0, 1]), np.array([2, 3])
    swaps.exchange(G, b, basis, others, np.zeros(4, np.int64), np.zeros(4, bool), 1e-9, 20, *complete(G))
    assert value(G + 1e-12 * np.eye(4), b, basis) <= -(x.sum(0) ** 2).sum() * (1 - 1e-6)


# the search


@pytest.mark.parametrize("options", [{"nnz": 60}, {"density": 0.3, "per": "neuron"}, {"pattern": "2:4"}], ids=str)
def test_counts_patterns_and_better_than_the_rivals(options, dtype):
    X, Y, W = layer(dtype=dtype)
    problem = nt.Problem(X, Y, epsilon=0.1)
    sol = nt.l0(X, Y, W, effort="thorough", **options)
    kept = sol.W != 0
    pattern = sol.settings["pattern"]
    rival = pruners.prune(W, X, "alps", **options)
    assert kept.sum() == np.count_nonzero(rival) == sol.certificate.nnz and sol.W.dtype == dtype
    if "per" in options:
        assert "PerNeuron" in pattern and (kept.sum(0) == round(0.3 * 32)).all()
    if "pattern" in options:
        assert (kept.reshape(8, 4, -1).sum(1) == 2).all()
    assert loss_of(problem, sol.W) < (0.9 if "nnz" in options else 1) * loss_of(problem, refit_weights(problem, rival))
    # the weights are the best on their support
    assert loss_of(problem, refit_weights(problem, sol.W)) >= loss_of(problem, sol.W) * (1 - 1e-4)
    assert sol.certificate.error == pytest.approx(np.sqrt(loss_of(problem, sol.W)) / np.linalg.norm(Y), rel=1e-4)


def test_every_round_falls_and_efforts_differ():
    X, Y, W = layer(P=3000)
    results = [nt.l0(X, Y, W, density=0.2, effort=e) for e in ("fast", "default", "thorough")]
    assert [r.settings["effort"] for r in results] == ["fast", "default", "thorough"]
    for result in results:
        assert [row["round"] for row in result.history] == list(range(1, len(result.history) + 1))
        for size in {row["samples"] for row in result.history}:
            losses = [row["loss"] for row in result.history if row["samples"] == size]
            assert losses == sorted(losses, reverse=True)
        seconds = [row["seconds"] for row in result.history]
        assert seconds == sorted(seconds)
    assert len(results[2].history) > 6
    used = [sorted({row["samples"] for row in result.history}) for result in results]
    assert used == [[375], [375, 750], [375, 750, 3000]]
    errors = [r.certificate.error for r in results]
    assert errors[2] < errors[0] and errors[2] <= 1.02 * errors[1]


def test_sparse_weights_are_found_again():
    X, _, W = layer(N=40, P=1500)
    W[np.abs(W) < np.quantile(np.abs(W), 0.8)] = 0
    Y = np.maximum(W.T @ X, 0)
    # another network with the same outputs: what it adds cancels on the samples seen
    X = np.vstack([X, X[:8] + X[8:16]])
    dense = np.vstack([W, np.zeros((8, W.shape[1]))])
    dense[:8] -= 0.5
    dense[8:16] -= 0.5
    dense[40:] += 0.5
    sol = nt.l0(X, Y, dense, nnz=int(np.count_nonzero(W)), effort="thorough")
    assert sol.certificate.error < 1e-5


def test_counts_move_between_neurons_but_the_sum_stays():
    X, Y, W = layer()
    Y[:4] *= 20
    W[:, :4] *= 20
    start = pruners.prune(W, X, density=0.2, per="neuron")
    loss = ReluLoss(nt.Problem(X, Y, epsilon=0.1))
    free, groups = np.zeros(32, bool), np.zeros(32, np.int64)
    still, _ = improve(loss, start, free=free, groups=groups, movable=False, rounds=9)
    moved, rows = improve(loss, start, free=free, groups=groups, movable=True, rounds=9)
    assert (np.count_nonzero(still, axis=0) == np.count_nonzero(start, axis=0)).all()
    assert np.count_nonzero(moved) == np.count_nonzero(start) and rows[0]["moves"] > 0
    assert np.count_nonzero(moved[:, :4]) > np.count_nonzero(moved[:, 4:])
    problem = nt.Problem(X, Y, epsilon=0.1)
    assert loss_of(problem, moved) < 0.8 * loss_of(problem, still)
    assert rows[-1]["loss"] == pytest.approx(loss_of(problem, moved), rel=1e-6)


def test_a_bias_stays_and_starts_compete():
    X, Y, W = layer(bias=True)
    held = layer(bias=True, P=900)
    plain = nt.sparsest(X, Y, nnz=50)
    options = {"nnz": 60, "bias": True, "heldout": (held[0], held[1])}
    dense = nt.l0(X, Y, W, **options)
    assert (dense.W[-1] != 0).all() and np.count_nonzero(dense.W[:-1]) == 60
    given = nt.l0(X, Y, W, starts=[plain.W], **options)
    both = nt.l0(X, Y, W, starts=["dense", plain.W], **options)
    assert given.settings["start"] == "given" and np.count_nonzero(given.W[:-1]) <= 50
    assert both.heldout == min(dense.heldout, given.heldout)
    assert dense.heldout == nt.certify(nt.Problem(held[0], held[1], epsilon=0.1), dense.W).error


def test_linear_layers_bounds_and_convolutions():
    X, _, W = layer()
    Z = W.T @ X
    sol = nt.l0(X, Z, W, nnz=60, omega="linear", effort="thorough")
    H = pruners.second_moments(X)
    rival = pruners.prune(W, X, "alps", nnz=60, refit=True)

    def quadratic(A):
        return float(((A - W) * (H @ (A - W))).sum())

    # which may be what it began at: nothing to exchange
    assert np.count_nonzero(sol.W) == 60 and quadratic(sol.W) <= quadratic(rival) * (1 + 1e-9)
    assert sol.certificate.error == pytest.approx(np.sqrt(quadratic(sol.W)) / np.linalg.norm(Z), rel=1e-3)

    Y = np.maximum(Z, 0)
    bounded = nt.l0(X, Y, W, nnz=60, V=np.maximum(np.random.default_rng(0).standard_normal(Y.shape), 0))
    assert np.count_nonzero(bounded.W) == 60 and bounded.certificate.error < 0.5

    images = np.random.default_rng(0).standard_normal((20, 2, 6, 6))
    conv = nt.Convolution(images, (3, 3), bias=True)
    dense = np.ascontiguousarray(conv[:, :])
    weights = np.random.default_rng(1).standard_normal((conv.shape[0], 4)) ** 3
    outputs = np.maximum(weights.T @ dense, 0)
    a, b = (nt.l0(x, outputs, weights, density=0.4, bias=True, effort="fast") for x in (conv, dense))
    np.testing.assert_allclose(a.W, b.W, rtol=1e-6, atol=1e-9)


def test_dead_inputs_dead_neurons_and_nothing_left():
    X, Y, W = layer()
    X[3] = 0
    W[:, 2] = -np.abs(W[:, 2])
    Y = np.maximum(W.T @ X, 0)
    assert not Y[2].any()
    for nnz in (0, 1, 40, W.size):
        sol = nt.l0(X, Y, W, nnz=nnz)
        assert np.isfinite(sol.W).all() and np.count_nonzero(sol.W) <= nnz
    assert nt.l0(X, Y, W, nnz=W.size).certificate.error < 1e-3


def test_time_limits_and_repetition():
    X, Y, W = layer()
    a, b = (nt.l0(X, Y, W, nnz=60) for _ in range(2))
    np.testing.assert_array_equal(a.W, b.W)
    short = nt.l0(X, Y, W, nnz=60, effort="thorough", time_limit=1e-9)
    # a round on a part, and the minimum on all
    assert [row["samples"] for row in short.history] == [225]
    assert short.certificate.error < 1.3 * a.certificate.error
    assert short.message.endswith("ended early by time_limit") and "time_limit" not in a.message


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_a_given_start_gets_no_worse(effort):
    """With noise a part of the samples asks for other weights than all of them."""
    rng = np.random.default_rng(3)
    X, Y, W = layer(N=20, M=4, P=1200)
    Y = np.maximum(Y + 3 * Y.std() * rng.standard_normal(Y.shape), 0)
    best = nt.l0(X, Y, W, density=0.3, effort="thorough")
    again = nt.l0(X, Y, W, density=0.3, effort=effort, starts=[best.W])
    assert again.certificate.error <= best.certificate.error * (1 + 1e-6)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"W": np.ones((8, 32))}, "W must be 32 x 8"),
        ({"W": np.full((32, 8), np.nan)}, "W contains NaN or inf"),
        ({"W": np.ones((32, 8), int)}, "W must be of a floating dtype; got int64"),
        ({"effort": ["fast"]}, "effort must be one of"),
        ({"time_limit": -1}, "time_limit must be between"),
        ({"time_limit": "5s"}, "time_limit must be a number"),
        ({"n_threads": -3}, "n_threads must be at least 1"),
        ({"heldout": np.ones((32, 700))}, r"heldout must be a pair \(X, Y\); got ndarray"),
        (
            {"heldout": (np.ones((5, 9)), np.ones((8, 9)))},
            "heldout must have 32 and 8 rows, as X and Y have; got 5 and 8",
        ),
        ({"nnz": 999}, "nnz must be between"),
        ({"effort": "much"}, "effort must be one of"),
        ({"starts": "dense"}, "starts must be a sequence"),
        ({"starts": []}, "starts must be a sequence"),
        ({"starts": ["sparse"]}, "starts must be 'dense'"),
        ({"starts": [np.ones((32, 8))]}, "more non-zeros"),
        ({"starts": [np.ones((3, 8))]}, "array of starts must be"),
        ({"omega": np.ones((8, 700), bool), "heldout": (1, 2)}, "held-out samples"),
    ],
)
def test_wrong_input_names_the_argument(change, error):
    X, Y, W = layer()
    with pytest.raises((TypeError, ValueError), match=error):
        nt.l0(**({"X": X, "Y": Y, "W": W, "nnz": 60} | change))


def test_moves_that_do_not_help_leave_the_exchanges(monkeypatch):
    """What is returned after bad moves is as without any."""

    def worst(self, models):
        for giver, taker in pairwise(models):
            for k in np.argsort(-giver.costs)[:2]:
                giver.give(giver.basis[k])
                taker.take(taker.others[np.argmin(taker.gains[: taker.others.size])])
        return 2 * len(models)

    X, Y, W = layer()
    problem = nt.Problem(X, Y, epsilon_abs=0.0)
    start = pruners.prune(W, X, density=0.2, per="neuron")
    options = {"free": np.zeros(32, bool), "groups": np.zeros(32, np.int64), "rounds": 1}
    alone, rows = improve(ReluLoss(problem), start, movable=False, **options)
    assert rows[0]["exchanges"] > 0
    monkeypatch.setattr(_Round, "_move", worst)
    both, rows = improve(ReluLoss(problem), start, movable=True, **options)
    assert rows[0]["moves"] == 0
    np.testing.assert_allclose(both, alone, atol=1e-7)


def test_neurons_of_many_inputs_are_exchanged_again_after_moves(monkeypatch):
    X, Y, W = layer()
    Y[:4] *= 20
    W[:, :4] *= 20
    start = pruners.prune(W, X, density=0.5, per="neuron")
    options = {"free": np.zeros(32, bool), "groups": np.zeros(32, np.int64), "rounds": 1, "movable": True}
    loss, rows = ReluLoss(nt.Problem(X, Y, epsilon=0.1)), []
    for least in (0.25, 2.0):
        monkeypatch.setattr("nettrim.exchange._MANY", least)
        found, (row,) = improve(loss, start, **options)
        assert np.count_nonzero(found) == np.count_nonzero(start) and row["moves"] > 0
        rows.append(row)
    assert rows[0]["exchanges"] > rows[1]["exchanges"] and rows[0]["loss"] < rows[1]["loss"]
