"""X as a linear map, its factor, second moments, and the reduction of linear layers."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import loop_of, solve_tightly
from hypothesis import example, given
from hypothesis import strategies as st
from instances import random_problem

import nettrim as nt
from nettrim import backends, operators
from nettrim.admm import Factor
from nettrim.operators import Dense, Gram, ReducedLinear, moments


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**32 - 1), st.booleans())
@example(4, 3, 11, 0, False)
@example(5, 1, 1, 1, True)
def test_adjoint(N, M, P, seed, fortran):
    """<A(W), Z> = <W, A*(Z)>."""
    rng = np.random.default_rng(seed)
    X = np.asarray(rng.standard_normal((N, P)), order="F" if fortran else "C")
    W, Z = rng.standard_normal((N, M)), rng.standard_normal((M, P))
    for name in ("numpy", "numba"):
        operator = Dense(X, backends.get(name), np.float64)
        forward, adjoint = operator.forward(W, np.empty((M, P))), operator.adjoint(Z)
        np.testing.assert_allclose(forward, W.T @ X, atol=1e-12)
        assert adjoint.shape == (N, M)
        assert np.vdot(forward, Z) == pytest.approx(np.vdot(W, adjoint), rel=1e-12, abs=1e-12)


def test_forward_accumulates(backend, rng, dtype):
    X, W, out = (rng.standard_normal(s).astype(dtype) for s in ((4, 9), (4, 3), (3, 9)))
    expected = 0.5 * W.T @ X - 2 * out
    operator = Dense(X, backends.get(backend), dtype)
    assert operator.forward(W, out, 0.5, -2.0) is out
    np.testing.assert_allclose(out, expected, atol=1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("order", ["C", "F"])
def test_moments_are_accumulated_in_float64(rng, order, dtype, monkeypatch):
    """The lower triangle of X X^T to float64 rounding, from float32 samples too, across chunk boundaries."""
    X = np.asarray(rng.standard_normal((7, 101)) * 1e3, dtype, order=order)
    exact = X.astype(np.float64) @ X.T.astype(np.float64)
    for columns in (1, 10, 100, 101, 1000):
        monkeypatch.setattr(operators, "_CHUNK_BYTES", 8 * 7 * columns)
        np.testing.assert_allclose(np.tril(moments(X)), np.tril(exact), rtol=1e-12)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (300, 320)])
def test_gram_of_the_smaller_side(backend, rng, shape):
    X = rng.standard_normal(shape)
    gram = Dense(X, backends.get(backend), np.float64).gram()
    np.testing.assert_allclose(gram, X @ X.T if shape[0] <= shape[1] else X.T @ X, atol=1e-10)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
@example([1], 0)
@example([30, 1, 7], 1)
def test_streamed_gram_equals_one_shot(sizes, seed):
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((5, sum(sizes))), rng.standard_normal((3, sum(sizes)))
    streamed, start = Gram(5, 3), 0
    for size in sizes:
        chunk = slice(start, start + size)
        assert streamed.add(X[:, chunk], Y[:, chunk]) is streamed
        start += size
        # reading in between must not disturb what follows
        np.testing.assert_allclose(streamed.XX, X[:, :start] @ X[:, :start].T, atol=1e-11)
    assert streamed.P == sum(sizes)
    np.testing.assert_allclose(streamed.XX, X @ X.T, atol=1e-11)
    np.testing.assert_allclose(streamed.XY, X @ Y.T, atol=1e-11)
    np.testing.assert_allclose(streamed.YY, (Y**2).sum(1), atol=1e-11)
    W = rng.standard_normal((5, 3))
    np.testing.assert_allclose(streamed.squared_errors(W), ((W.T @ X - Y) ** 2).sum(1), rtol=1e-9, atol=1e-9)


def test_gram_in_chunks_of_bytes(rng, monkeypatch):
    X, Y = rng.standard_normal((5, 43)).astype(np.float32), rng.standard_normal((3, 43)).astype(np.float32)
    monkeypatch.setattr(operators, "_CHUNK_BYTES", 8 * 8 * 4)
    gram = Gram(5, 3).add(X, Y)
    x, y = X.astype(np.float64), Y.astype(np.float64)
    np.testing.assert_allclose(gram.XX, x @ x.T, rtol=1e-12)
    np.testing.assert_allclose(gram.XY, x @ y.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gram.YY, (y**2).sum(1), rtol=1e-12)


def test_gram_refuses_what_does_not_fit(rng):
    X, Y = rng.standard_normal((4, 10)), rng.standard_normal((2, 10))
    gram = Gram(4, 2).add(X, Y)
    before = gram.XX.copy(), gram.XY.copy(), gram.YY.copy(), gram.P
    for x, y, error, match in (
        (X.T, Y, ValueError, "X must be 4 x P"),
        (X, Y[:, :9], ValueError, "Y must be 2 x 10"),
        (X, Y[:1], ValueError, "Y must be 2 x 10"),
        (X.astype(int), Y, TypeError, "X must be of a floating dtype"),
        (X, Y.astype(complex), TypeError, "Y must be of a floating dtype"),
        (np.where(X > 1, np.nan, X), Y, ValueError, "X contains NaN or inf"),
        (X, np.where(Y > 1, np.inf, Y), ValueError, "Y contains NaN or inf"),
    ):
        with pytest.raises(error, match=match):
            gram.add(x, y)
    for a, b in zip(before, (gram.XX, gram.XY, gram.YY, gram.P), strict=True):
        np.testing.assert_array_equal(a, b)
    for wrong in (0, -1, 2.0, True, "3"):
        with pytest.raises((TypeError, ValueError), match="N"):
            Gram(wrong, 2)


@pytest.mark.parametrize("case", ["full rank", "zero rows", "repeated rows", "small rows", "P < N", "zero"])
def test_reduced_linear_identity(rng, case):
    """||W^T X_full - Y_full||^2 = ||W^T X - Y||^2 + floor, row by row, with r = rank X columns."""
    X = rng.standard_normal((8, 4 if case == "P < N" else 50))
    rank = {"full rank": 8, "zero rows": 6, "repeated rows": 5, "small rows": 8, "P < N": 4, "zero": 1}[case]
    if case == "zero rows":
        X[2:4] = 0
    if case == "repeated rows":
        X[5:] = X[:3]
    if case == "small rows":
        X[2:4] *= 1e-4
    if case == "zero":
        X[:] = 0
    Y = rng.standard_normal((3, X.shape[1]))
    reduced = ReducedLinear.from_gram(Gram(8, 3).add(X, Y))
    assert reduced.X.shape == (8, rank)
    assert reduced.Y.shape == (3, rank)
    W = rng.standard_normal((8, 3))
    full, small = ((W.T @ X - Y) ** 2).sum(1), ((W.T @ reduced.X - reduced.Y) ** 2).sum(1)
    np.testing.assert_allclose(small + reduced.floor, full, rtol=1e-9)
    best = np.linalg.lstsq(X.T, Y.T, rcond=None)[0]
    np.testing.assert_allclose(reduced.floor, ((best.T @ X - Y) ** 2).sum(1), atol=1e-9)
    W = reduced.least_squares()
    np.testing.assert_allclose(W, best, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (9, 9)])
@pytest.mark.parametrize("r", [1e-2, 1.0, 50.0])
def test_factor_solves_the_system(backend, rng, shape, r, dtype):
    """(X X^T + r I) D = R, by Woodbury's form when N > P."""
    X, R = rng.standard_normal(shape).astype(dtype), rng.standard_normal((shape[0], 3)).astype(dtype)
    be = backends.get(backend)
    factor = Factor(Dense(X, be, dtype), be, dtype)
    assert factor.gram.shape == (min(shape),) * 2
    assert factor.size == pytest.approx(
        (X.astype(np.float64) ** 2).sum(1).max() if shape[0] > shape[1] else factor.size
    )
    r = factor.balance(r)
    x = X.astype(np.float64)
    expected = np.linalg.solve(x @ x.T + r * np.eye(shape[0]), R.astype(np.float64))
    D = factor.solve(R.copy(), r)
    assert D.dtype == dtype
    np.testing.assert_allclose(D, expected, atol=(1e-4 if dtype == np.float32 else 1e-11) * np.abs(expected).max())


def test_factor_keeps_inverses_by_balance(rng):
    be = backends.get("numpy")
    factor = Factor(Dense(rng.standard_normal((5, 20)), be, np.float64), be, np.float64)
    R = rng.standard_normal((5, 2))
    one, other = factor.balance(1.0), factor.balance(10.0)
    for r in (one, one, other, one, other):
        factor.solve(R.copy(), r)
    assert factor.computed == 2
    assert factor.balance(one * 1.01) == one


@pytest.mark.parametrize("neuronwise", [False, True], ids=["common", "neuronwise"])
def test_compact_path_equals_the_path_through_samples(rng, neuronwise):
    """A sample of zeros outside Omega says nothing, but makes the mask incomplete: the same program on samples."""
    compact = random_problem(rng, 9, 4, 60, linear=True, neuronwise=neuronwise)
    X, Y = (np.hstack([a, np.zeros((a.shape[0], 1))]) for a in (compact.X, compact.Y))
    mask = np.ones(Y.shape, bool)
    mask[:, -1] = False
    samples = nt.Problem(X, Y, epsilon_abs=compact.epsilon, omega=mask, neuronwise=neuronwise)
    assert compact.compact
    assert not samples.compact
    one, other = solve_tightly(compact), solve_tightly(samples)
    assert one.certificate.objective == pytest.approx(other.certificate.objective, rel=1e-5)
    assert nt.certify(samples, one.W, other.dual).holds(1e-5, 1e-5)
    assert nt.certify(compact, other.W, one.dual).holds(1e-5, 1e-5)


def test_compact_with_outputs_that_no_weights_reach(rng):
    """Noise on Y is the floor: the path through samples gives the same optimum."""
    base = random_problem(rng, 9, 4, 60, linear=True)
    noise = rng.standard_normal(base.Y.shape)
    Y = base.Y + 0.05 * np.linalg.norm(base.Y) / np.linalg.norm(noise) * noise
    compact = nt.Problem(base.X, Y, 0.15, omega="linear")
    X = np.hstack([base.X, np.zeros((9, 1))])
    mask = np.ones((4, 61), bool)
    mask[:, -1] = False
    samples = nt.Problem(X, np.hstack([Y, np.zeros((4, 1))]), epsilon_abs=compact.epsilon, omega=mask)
    one, other = solve_tightly(compact), solve_tightly(samples)
    assert one.certificate.objective == pytest.approx(other.certificate.objective, rel=1e-5)
    assert nt.certify(samples, one.W, other.dual).holds(1e-5, 1e-5)


def test_gram_alone_equals_samples(rng):
    problem = random_problem(rng, 9, 4, 60, linear=True)
    gram = Gram(9, 4).add(problem.X, problem.Y)
    one = nt.solve(gram, epsilon=0.1, gap_tol=1e-6, feas_tol=1e-6)
    assert one.status == nt.Status.SOLVED
    np.testing.assert_array_equal(one.W, solve_tightly(problem).W)


@pytest.mark.parametrize("P", [200, 20_000])
def test_state_of_a_linear_layer_is_free_of_samples(rng, P):
    """ADMM's one large buffer is M x rank, and the multipliers (N + 1) x M."""
    problem = random_problem(rng, 9, 4, P, linear=True)
    loop = loop_of(problem)
    assert loop.start().T.shape == (4, 9)
    assert loop.samples.operator.shape == (9, 9)
    assert nt.Solver(problem).solve().dual.shape == (10, 4)


def test_state_of_a_relu_layer_is_one_buffer(rng):
    state = loop_of(random_problem(rng, 9, 4, 200)).start()
    assert state.T.shape == (4, 200)
    assert state.T2.shape == state.W.shape == (9, 4)
