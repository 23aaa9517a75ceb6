"""The refit: exact on its support, within the bounds where asked, never worse, on samples held out."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import residuals
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

import nettrim as nt
from nettrim import relu_newton
from nettrim.refit import refit_weights


def layer(seed: int = 0, N: int = 30, M: int = 5, P: int = 400, dtype: type = np.float64):
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.standard_normal((N, N)) @ rng.standard_normal((N, P)), 0)
    X[-1] = 1
    W = rng.standard_normal((N, M)) ** 3
    return X.astype(dtype), np.maximum(W.T @ X, 0).astype(dtype), W.astype(dtype)


def pruned(W: np.ndarray, density: float = 0.4) -> np.ndarray:
    return np.where(np.abs(W) >= np.quantile(np.abs(W), 1 - density), W, 0)


def loss(problem: nt.Problem, W: np.ndarray) -> float:
    inside, outside = residuals(problem, W)
    return float((inside**2).sum() + (outside**2).sum())


@given(st.integers(0, 30), st.floats(0.1, 1), st.sampled_from(["zero", "array", "inf"]))
@example(0, 0.4, "zero")
@example(1, 1.0, "array")
@example(2, 0.3, "inf")
def test_it_is_the_minimum_on_the_support(seed, density, bound):
    X, Y, W0 = layer(seed)
    V = {"zero": 0.0, "inf": np.inf, "array": np.random.default_rng(seed).standard_normal(Y.shape) + 1}[bound]
    problem = nt.Problem(X, Y, epsilon=0.1, V=V)
    W = pruned(W0, density)
    found = refit_weights(problem, W)
    assert not found[W == 0].any()
    for m in range(W.shape[1]):
        s, mask = np.flatnonzero(W[:, m]), problem.mask[m]
        if not s.size:
            continue
        v = np.broadcast_to(problem.V, Y.shape)[m]

        def value(w, s=s, mask=mask, m=m, v=v):
            Z = w @ X[s]
            R = np.where(mask, Z - Y[m], np.maximum(Z - v, 0))
            return R @ R, 2 * X[s] @ R

        assert np.abs(value(found[s, m])[1]).max() <= 1e-3 * np.abs(value(W[s, m] * 0)[1]).max() + 1e-9
        best = minimize(value, W[s, m], jac=True, method="L-BFGS-B", options={"maxiter": 500}).fun
        assert value(found[s, m])[0] <= best * (1 + 1e-6) + 1e-9


def test_dtype_blocks_and_threads_do_not_matter(monkeypatch, dtype):
    X, Y, W0 = layer(dtype=dtype)
    problem, W = nt.Problem(X, Y, epsilon=0.1), pruned(W0)
    found = refit_weights(problem, W)
    assert found.dtype == dtype
    monkeypatch.setattr(relu_newton, "BLOCK_BYTES", 20000)
    np.testing.assert_allclose(refit_weights(problem, W), found, rtol=1e-3 if dtype == np.float32 else 1e-9, atol=1e-5)
    with threadpool_limits(1):
        one = refit_weights(problem, W)
    np.testing.assert_array_equal(refit_weights(problem, W), one)


def test_a_solution_gets_better_outside_and_stays_inside():
    X, Y, _ = layer()
    problem = nt.Problem(X, Y, epsilon=0.2)
    sol = nt.Solver(problem).solve()
    free, within = nt.refit(problem, sol.W), nt.refit(problem, sol.W, within=True)
    assert free.status == within.status == nt.Status.MEASURED and free.settings["refit"]
    assert free.certificate.error < 0.9 * sol.certificate.error
    assert free.certificate.error <= within.certificate.error <= sol.certificate.error
    # the weights of the solve were in the ball and within the bounds, and so are these
    assert within.certificate.ball_ratio < 1
    assert within.certificate.max_violation <= max(sol.certificate.max_violation, 1e-4 * np.sqrt((Y**2).mean()))
    assert free.certificate.dual_bound == -np.inf
    assert "error" in repr(free) and free.to_dict()["certificate"]["nnz"] <= sol.certificate.nnz


def test_within_agrees_with_cvxpy():
    cvxpy = pytest.importorskip("cvxpy")
    X, Y, W0 = layer(N=12, P=150, M=2)
    problem, W = nt.Problem(X, Y, epsilon=0.5), pruned(W0)
    # the weights that it begins at may violate the bounds: the refit is asked for no more than they hold
    start = refit_weights(problem, nt.Solver(problem).solve().W, within=True)
    found = refit_weights(problem, start, within=True)
    for m in range(2):
        s, mask = np.flatnonzero(start[:, m]), problem.mask[m]
        w = cvxpy.Variable(s.size)
        goal = cvxpy.Minimize(cvxpy.sum_squares(X[s][:, mask].T @ w - Y[m, mask]))
        best = cvxpy.Problem(goal, [X[s][:, ~mask].T @ w <= 0]).solve(solver="CLARABEL")
        reached = ((found[s, m] @ X[s][:, mask] - Y[m, mask]) ** 2).sum()
        assert reached == pytest.approx(best, rel=2e-3)
    assert W.shape == found.shape


def test_linear_layers_convolutions_and_moments():
    X, _, W0 = layer()
    Y = W0.T @ X
    W = pruned(W0)
    problem = nt.Problem(X, Y, epsilon=0.1, omega="linear")
    found = nt.refit(problem, W)
    gradient = X @ (found.W.T @ X - Y).T
    assert np.abs(gradient[W != 0]).max() <= 1e-6 * np.abs(X @ Y.T).max()
    gram = nt.Gram(30, 5).add(X, Y)
    np.testing.assert_allclose(nt.refit(nt.Problem.from_gram(gram, 0.1), W).W, found.W, rtol=1e-6, atol=1e-9)

    images = np.random.default_rng(0).standard_normal((20, 2, 6, 6)).astype(np.float32)
    conv = nt.Convolution(images, (3, 3), bias=True)
    weights = pruned(np.random.default_rng(1).standard_normal((conv.shape[0], 4)).astype(np.float32))
    dense = conv[:, :]
    outputs = np.maximum(weights.T @ dense, 0) + np.float32(0.1) * (weights.T @ dense > 0)
    a, b = (nt.refit(nt.Problem(x, outputs, epsilon=0.1), weights) for x in (conv, dense))
    np.testing.assert_allclose(a.W, b.W, rtol=1e-3, atol=1e-4)


def test_what_overfits_is_not_returned():
    X, Y, W0 = layer(P=2000)
    W = pruned(W0, 0.9)
    few, many = (nt.Problem(X[:, s], Y[:, s], epsilon=0.1) for s in (slice(0, 12), slice(12, None)))
    found = nt.refit(few, W, heldout=many)
    assert not found.settings["refit"] and "held out" in found.message
    np.testing.assert_array_equal(found.W, W)
    assert found.heldout == pytest.approx(nt.certify(many, W).error)
    good = nt.refit(many, W, heldout=few)
    assert good.settings["refit"] and good.heldout < nt.certify(few, W).error


def test_the_best_weights_are_left_alone():
    X, Y, W0 = layer()
    problem = nt.Problem(X, Y, epsilon=0.1)
    found = nt.refit(problem, W0)
    assert found.certificate.error <= 1e-9
    empty = nt.refit(problem, np.zeros_like(W0))
    assert not empty.W.any() and empty.certificate.error == pytest.approx(1)


def test_dependent_inputs():
    X, Y, W0 = layer()
    X[3] = X[4] = X[5]
    X[6] = 0
    W = np.where(pruned(W0) != 0, W0, 0)
    W[3:7] = 1
    found = nt.refit(nt.Problem(X, Y, epsilon=0.1), W)
    assert np.isfinite(found.W).all() and found.certificate.error < nt.certify(nt.Problem(X, Y, 0.1), W).error


def test_wrong_input_names_the_argument():
    X, Y, W0 = layer()
    problem = nt.Problem(X, Y, epsilon=0.1)
    with pytest.raises(TypeError, match="problem must be"):
        nt.refit(X, W0)
    with pytest.raises(ValueError, match="W must be 30 x 5"):
        nt.refit(problem, W0.T)
    with pytest.raises(ValueError, match="NaN"):
        nt.refit(problem, W0 * np.nan)
    with pytest.raises(TypeError, match="heldout must be"):
        nt.refit(problem, W0, heldout=(X, Y))
