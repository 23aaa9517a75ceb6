"""The compiled passes of the search and of refits, against NumPy and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nettrim.kernels import passes, relu, relu_newton, swaps

import nettrim as nt
from nettrim import relu_newton as newton
from nettrim.relu_loss import ReluLoss


def neuron(seed: int, P: int, own_bounds: bool, shifted: bool, dtype: type):
    """Outputs, targets, Omega, bounds, shift and who was over the bound, of one neuron."""
    rng = np.random.default_rng(seed)
    inside = rng.random(P) < 0.4
    v = rng.random(P if own_bounds else 1)
    u = rng.random(P if shifted else 1) if shifted else np.zeros(1)
    over = (rng.random(P) < 0.3) & ~inside
    return (
        *(a.astype(dtype) for a in (rng.standard_normal(P), rng.standard_normal(P))),
        inside,
        *(a.astype(dtype) for a in (v, u)),
        over,
    )


@given(st.integers(0, 99), st.integers(1, 400), st.booleans(), st.booleans())
@example(0, 1, False, False)
@example(1, 300, True, True)
def test_crossings(seed, P, own_bounds, shifted):
    z, _, inside, v, u, before = neuron(seed, P, own_bounds, shifted, np.float64)
    now, over = ~inside & (z - v + u > 0), before.copy()
    up, down = relu.crossings(z, inside, v, u, over)
    np.testing.assert_array_equal(up, np.flatnonzero(now & ~before))
    np.testing.assert_array_equal(down, np.flatnonzero(before & ~now))
    np.testing.assert_array_equal(over, now)
    assert all(found.size == 0 for found in relu.crossings(z, inside, v, u, over))


@given(st.integers(0, 99), st.integers(1, 400), st.booleans(), st.booleans(), st.sampled_from([0.5, 3.0]))
@example(0, 1, False, False, 3.0)
@example(1, 300, True, True, 0.5)
def test_descend_takes_the_first_step_that_falls(seed, P, own_bounds, shifted, weight):
    z, y, inside, v, u, _ = neuron(seed, P, own_bounds, shifted, np.float64)
    step = np.random.default_rng(seed).standard_normal(P)

    def loss(z):
        return ((z - y)[inside] ** 2).sum() + weight * (np.maximum(z - v + u, 0)[~inside] ** 2).sum()

    moved = z.copy()
    t, after = relu.descend(moved, step, y, inside, v, u, weight, loss(z), 5)
    falls = [s for s in (1.0, 0.5, 0.25, 0.125, 0.0625) if loss(z + s * step) < loss(z)]
    assert t == (falls[0] if falls else 0.0)
    np.testing.assert_allclose(moved, z + t * step)
    assert after == pytest.approx(loss(moved))


@pytest.mark.parametrize("samples", [0, 1, 511, 512, 513, 1500])
@pytest.mark.parametrize("count", [0, 3, 70])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_of_gathered_rows(samples, count, dtype):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((90, 2000)).astype(dtype)
    index, rows = np.sort(rng.permutation(2000)[:samples]), rng.permutation(90)[:80]
    G, block = np.full((80, 80), np.nan), passes.gather_block(X, index, rows)
    passes.block_products(block, count, G)
    expected = X[np.ix_(rows, index)].astype(np.float64) @ X[np.ix_(rows, index)].T
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == np.float64 else {"rtol": 1e-4, "atol": 2e-3}
    known = np.arange(80) < count
    known = known[:, None] | known | np.eye(80, dtype=bool)
    np.testing.assert_allclose(G[known], expected[known], **tolerance)
    assert np.isnan(G[~known]).all()
    assert passes.block_product(block, 70, 75) == pytest.approx(expected[70, 75], rel=1e-3, abs=2e-3)


@given(st.integers(0, 200), st.integers(1, 6), st.integers(1, 20))
@example(0, 1, 1)
@example(3, 6, 20)
def test_rows_that_are_made_when_needed_change_nothing(seed, size, others):
    rng = np.random.default_rng(seed)
    n = size + others
    X, b = rng.standard_normal((n, 700)), rng.standard_normal(n) * 10
    block = passes.gather_block(X, np.arange(700), np.arange(n))
    results = []
    for whole in (True, False):
        G = np.full((n, n), np.nan)
        passes.block_products(block, n if whole else size, G)
        basis, rest, known = np.arange(size), np.arange(size, n), np.arange(n) < (n if whole else size)
        found = swaps.exchange(
            G,
            b,
            basis,
            rest,
            np.zeros(n, np.int64),
            np.zeros(n, bool),
            1e-9,
            50,
            known,
            block if not whole else block[:0],
        )
        assert known[basis].all()
        results.append((basis, rest, *found))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


@given(st.integers(0, 99), st.integers(1, 9), st.sampled_from([np.float32, np.float64]), st.booleans())
@example(0, 1, np.float32, False)
@example(1, 9, np.float64, True)
@example(2, 7, np.float32, True)
def test_outputs_and_adjoint_of_some_rows(seed, size, dtype, long):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((12, 5000 if long else 40)).astype(dtype)
    rows, w = rng.permutation(12)[:size], rng.standard_normal(size)
    z, g = np.empty(X.shape[1], dtype), np.empty(size)
    relu_newton.outputs(X, rows, w, z)
    relu_newton.adjoint(X, rows, z, g)
    tolerance = 1e-10 if dtype == np.float64 else 2e-3
    np.testing.assert_allclose(z, w @ X[rows], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(g, X[rows].astype(np.float64) @ z, rtol=tolerance, atol=tolerance * X.shape[1])


def test_cholesky():
    rng = np.random.default_rng(0)
    A, g, x = rng.standard_normal((20, 30)), rng.standard_normal(20), np.full(20, 7.0)
    L = A @ A.T
    assert relu_newton.factor(L)
    np.testing.assert_allclose(np.tril(L), np.linalg.cholesky(A @ A.T), atol=1e-10)
    relu_newton.substitute(L, g, x)
    np.testing.assert_allclose(A @ A.T @ x, g, atol=1e-10)
    assert not relu_newton.factor(np.diag([1.0, -1.0] * 10))


@given(st.integers(0, 99), st.integers(1, 3), st.booleans(), st.booleans())
@example(0, 1, False, False)
@example(1, 3, True, True)
def test_one_by_one_is_all_together(seed, threads, own_bounds, shifted):
    """Neurons of few inputs and of many: the same minimum, which does not depend on the way."""
    rng = np.random.default_rng(seed)
    X, W = rng.standard_normal((12, 300)), rng.standard_normal((12, 4))
    V = rng.random((4, 300)) if own_bounds else 0.1
    Y = W.T @ X
    problem = nt.Problem(X, np.maximum(Y, 0), epsilon_abs=0.0, V=V)
    shift = 0.1 * rng.random(Y.shape) if shifted else None
    start = W * (rng.random(W.shape) < 0.4)
    start[:, 3] = 0
    found = []
    for part in (0.0, 1.0):
        now, loss = start.copy(), ReluLoss(problem, threads)
        with loss.workers() as pool, pytest.MonkeyPatch.context() as patch:
            patch.setattr(newton, "_NARROW", part)
            block = newton.Neurons(loss, pool, np.arange(4), now)
            block.minimise(block.everyone(), shift, 2.0)
            np.testing.assert_allclose(block.Z, now.T @ X, atol=1e-9)
            block.refresh(np.arange(4))
            np.testing.assert_allclose(block.Z, now.T @ X, atol=1e-9)
        assert ((now != 0) == (start != 0)).all()
        found.append(now)
    np.testing.assert_allclose(*found, atol=1e-6)
