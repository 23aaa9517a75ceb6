"""The compiled model of a neuron and its last descent, against NumPy and against Newton's method."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nettrim.kernels import quadratic, relu_newton

import nettrim as nt
from nettrim.exchange import improve, settle
from nettrim.refit import refit_weights
from nettrim.relu_loss import ReluLoss


def layer(seed: int = 0, N: int = 24, M: int = 5, P: int = 3000, dtype: type = np.float64, own_bounds: bool = False):
    """A problem and weights of few inputs each."""
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.standard_normal((N, N)) @ rng.standard_normal((N, P)), 0)
    X[-1] = 1
    W = rng.standard_normal((N, M))
    Y = np.maximum(W.T @ X, 0)
    V = 0.1 * rng.random((M, P)) if own_bounds else 0.0
    W[:-1] *= rng.random((N - 1, M)) < 0.3
    X, Y, W = X.astype(dtype), Y.astype(dtype), W.astype(dtype)
    return nt.Problem(X, Y, epsilon=0.1, V=V), W


@given(st.integers(0, 99), st.integers(1, 90), st.booleans())
@example(0, 1, False)
@example(1, 80, True)
def test_samples_with_curvature(seed, P, own_bounds):
    rng = np.random.default_rng(seed)
    z, inside, over = rng.standard_normal(P), rng.random(P) < 0.4, rng.random(P) < 0.5
    v = rng.standard_normal(P if own_bounds else 1)
    index = quadratic.curved(z, inside, v, over)
    np.testing.assert_array_equal(over, ~inside & (z > v))
    np.testing.assert_array_equal(index, np.flatnonzero(inside | (z > v)))


@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 30))
@example(0, 1, 1)
@example(1, 9, 9)
@example(2, 20, 3)
def test_the_most_promising_inputs(seed, N, most):
    rng = np.random.default_rng(seed)
    # whole numbers, so that some promise the same, or nothing
    slope, norms, used = rng.integers(-3, 4, N).astype(float), rng.integers(0, 3, N).astype(float), rng.random(N) < 0.3
    promise = np.where(used | (norms == 0), 0, slope**2 / np.where(norms == 0, 1, norms))
    found = quadratic.promising(slope, norms, used, min(most, N))
    assert len(set(found)) == len(found) == min(most, N, np.count_nonzero(promise)) and not used[found].any()
    np.testing.assert_allclose(np.sort(promise[found]), np.sort(promise)[N - len(found) :])


@pytest.mark.parametrize("own_bounds", [False, True])
def test_one_pass_is_the_loss_and_its_slope(own_bounds, dtype):
    problem, W = layer(dtype=dtype, own_bounds=own_bounds)
    loss, tol = ReluLoss(problem, 1), 1e-10 if dtype == np.float64 else 1e-4
    Z = W.T @ problem.X
    over = np.maximum(Z - problem.V, 0) * ~problem.mask
    R = np.where(problem.mask, Z - problem.Y, over).astype(np.float64)
    for m in range(problem.M):
        support = np.flatnonzero(W[:, m])
        g = np.empty(support.size)
        value = relu_newton.evaluate(loss.operator.rows, support, W[support, m].astype(np.float64), *loss.row(m), g)
        assert value == pytest.approx((R[m] ** 2).sum(), rel=tol)
        np.testing.assert_allclose(g, problem.X[support] @ R[m], atol=tol * np.abs(problem.X[support] @ R[m]).max())


def test_a_model_is_of_the_loss(dtype):
    """Its matrix, its right-hand side and its minimum on the support, before any exchange."""
    problem, W = layer(dtype=dtype)
    tol = 1e-7 if dtype == np.float64 else 2e-3
    loss = ReluLoss(problem, 1)
    free, groups = np.arange(24) == 23, np.zeros(24, np.int64)
    norms = (problem.X**2).sum(1)
    m, tried = 1, 6
    support = np.flatnonzero(W[:, m])
    y, inside, v = loss.row(m)
    z = W[:, m] @ problem.X
    r = np.where(inside, z - y, np.maximum(z, 0))
    over = np.zeros(z.size, bool)
    inputs, G, known, b, basis, others, w, costs, gains, made = quadratic.search(
        *(problem.X, z, inside, v, over, (problem.X @ r).astype(np.float64), norms.astype(np.float64), free, groups),
        *(support, W[support, m].astype(np.float64), tried, np.inf, 0.0),
    )
    A = problem.X[inputs][:, inside | over].astype(np.float64)
    assert made == 0 and (inputs[basis] == support).all() and len(others) == tried and known[basis].all()
    np.testing.assert_allclose(G[basis], A[basis] @ A.T, rtol=tol)
    np.testing.assert_allclose(np.diag(G), (A**2).sum(1), rtol=tol)
    now = np.append(W[support, m], np.zeros(tried))
    np.testing.assert_allclose(b, A @ (A.T @ now) - (problem.X @ r)[inputs], rtol=tol, atol=tol * np.abs(b).max())
    np.testing.assert_allclose(w, np.linalg.solve(G[basis][:, basis], b[basis]), rtol=1e-6, atol=1e-6)
    assert costs.size == support.size and (gains >= 0).all()


@pytest.mark.parametrize("given_weights", [True, False])
def test_a_basis_enters_in_order(given_weights):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((6, 9))
    G, b, inputs, basis = A @ A.T, rng.standard_normal(6), np.array([7, 3, 11, 2, 9, 5]), np.array([4, 0, 1])
    weights = rng.standard_normal(3) if given_weights else np.empty(0)
    support, H, w = quadratic.enter(inputs, G, b, basis, weights)
    order = [1, 0, 4]
    assert support.tolist() == [3, 7, 9]
    np.testing.assert_array_equal(H, G[np.ix_(order, order)])
    np.testing.assert_allclose(w, weights[[2, 1, 0]] if given_weights else np.linalg.solve(H, b[order]))


@given(st.integers(0, 50), st.booleans(), st.sampled_from([1, 2]))
@example(0, False, 1)
@example(1, True, 2)
def test_settled_weights_are_near_the_minimum(seed, own_bounds, threads):
    problem, W = layer(seed, own_bounds=own_bounds)
    loss, free = ReluLoss(problem, threads), np.arange(24) == 23
    # as from a part of the samples: the minimum there
    part = nt.Problem(problem.X[:, ::10], problem.Y[:, ::10], epsilon=0.1, V=problem.V if problem.V.size == 1 else 0.0)
    start = refit_weights(part, W)
    settled = settle(loss, start, free)
    with loss.workers() as pool:
        before, after = loss.error(pool, start), loss.error(pool, settled)
        best = loss.error(pool, refit_weights(problem, start))
    assert (after <= before).all() and ((settled != 0) <= ((start != 0) | free[:, None])).all()
    assert (after <= best * (1 + 2e-2)).all() and after.sum() <= best.sum() * (1 + 1e-2)


def test_an_input_that_few_samples_have_settles():
    """Every k-th sample may miss all of them, and with them that input's curvature."""
    problem, W = layer(P=20000)
    X = problem.X.copy()
    X[0] = 0
    X[0, np.random.default_rng(0).permutation(20000)[:30]] = 20
    W[0] = np.random.default_rng(1).standard_normal(5)
    Y = np.maximum(np.random.default_rng(2).standard_normal((24, 5)).T @ X, 0)
    rare, free = nt.Problem(X, Y, epsilon=0.1), np.arange(24) == 23
    loss = ReluLoss(rare, 1)
    with loss.workers() as pool:
        best = loss.error(pool, refit_weights(rare, W))
        assert (loss.error(pool, settle(loss, 1.3 * W, free)) <= best * (1 + 2e-2)).all()


def test_a_neuron_that_nothing_reaches_stays():
    problem, W = layer()
    Y = problem.Y.copy()
    Y[2] = 0
    W[:, 2] = 0
    W[-1, 2] = -5
    loss, free = ReluLoss(nt.Problem(problem.X, Y, epsilon=0.1), 1), np.arange(24) == 23
    assert np.array_equal(settle(loss, W, free)[:, 2], W[:, 2])
    better, rows = improve(loss, W, free=free, groups=np.zeros(24, np.int64), movable=True, rounds=2, steps=1, tried=5)
    assert np.isfinite(better).all() and rows[0]["loss"] > 0 and np.count_nonzero(better) <= np.count_nonzero(W)
