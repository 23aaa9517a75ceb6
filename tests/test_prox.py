"""Optimality of every prox, and the Numba passes against the NumPy formulas."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import loop_of
from hypothesis import example, given
from hypothesis import strategies as st

import nettrim as nt
from nettrim import backends
from nettrim.backends.numba_ import NumbaBackend
from nettrim.backends.numpy_ import soft_threshold

M, P = 5, 37
BOUNDS = ["zero", "scalar", "infinite scalar", "array", "array with infinities"]


def arrays(rng, dtype, bound="zero", shape=(M, P)):
    """T, target, mask, upper as the loop holds them."""
    T, Y = rng.standard_normal((2, *shape)).astype(dtype)
    mask = rng.random(shape) < 0.5
    V = rng.uniform(-1, 1, shape)
    if bound in ("zero", "scalar", "infinite scalar"):
        V = np.full((1, 1), {"zero": 0.0, "scalar": 0.4, "infinite scalar": np.inf}[bound])
    elif bound == "array with infinities":
        V[rng.random(shape) < 0.3] = np.inf
    return T, Y, mask, V.astype(dtype)


def projection(be, loop, T):
    """Proj(T) through the backend's pass: T - (T - Proj(T))."""
    moved = T.copy()
    be.project_relax(
        moved, loop.samples.target, loop.samples.mask, loop.samples.upper, loop._scale(loop.samples.squares(T)), 1.0
    )
    return T - moved


@pytest.mark.parametrize("neuronwise", [False, True], ids=["common", "neuronwise"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_projection_is_onto_the_ball_and_the_half_spaces(backend, bound, neuronwise, rng):
    T, Y, mask, V = arrays(rng, np.float64, bound)
    T *= 3
    V = V[0, 0] if V.size == 1 else V
    problem = nt.Problem(rng.standard_normal((4, P)), Y, epsilon_abs=2.0, omega=mask, V=V, neuronwise=neuronwise)
    loop = loop_of(problem, backend=backend)
    Q = projection(loop.backend, loop, T)
    groups = [[m] for m in range(M)] if neuronwise else [list(range(M))]
    radius = 2 / np.sqrt(M) if neuronwise else 2.0
    bounds = np.broadcast_to(problem.V, mask.shape)
    # the definition, by brute force
    for rows in groups:
        D = np.where(mask[rows], T[rows] - Y[rows], 0)
        ball = Y[rows] + D * min(1, radius / np.linalg.norm(D))
        expected = np.where(mask[rows], ball, np.minimum(T[rows], bounds[rows]))
        np.testing.assert_allclose(Q[rows], expected, rtol=1e-12, atol=1e-12)
    # the variational inequality: no feasible point lies ahead of the projection
    for _ in range(50):
        z = np.where(mask, Y, np.minimum(T, bounds) - rng.exponential(size=T.shape))
        for rows in groups:
            D = np.where(mask[rows], rng.standard_normal((len(rows), P)), 0)
            z[rows] += D * radius * rng.random() / np.linalg.norm(D)
        assert ((T - Q) * (z - Q)).sum() <= 1e-10


def test_points_inside_stay_exactly(backend, rng, dtype):
    T, Y, mask, _V = arrays(rng, dtype)
    T = np.where(mask, Y + 1e-3 * T, -np.abs(T)).astype(dtype)
    problem = nt.Problem(rng.standard_normal((4, P)).astype(dtype), Y, epsilon_abs=10.0, omega=mask)
    loop = loop_of(problem, backend=backend)
    np.testing.assert_allclose(projection(loop.backend, loop, T), T, atol=1e-6 if dtype == np.float32 else 1e-14)


def test_a_radius_of_zero_projects_onto_the_target(backend, rng):
    T, Y, mask, _ = arrays(rng, np.float64)
    loop = loop_of(nt.Problem(rng.standard_normal((4, P)), Y, epsilon_abs=0.0, omega=mask), backend=backend)
    Q = projection(loop.backend, loop, T)
    np.testing.assert_allclose(Q[mask], Y[mask], atol=1e-14)
    T = np.where(mask, Y, T)
    np.testing.assert_allclose(projection(loop.backend, loop, T)[mask], Y[mask], atol=1e-14)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    st.floats(0, 1e6),
)
@example([0.0, 1.0, -1.0, 2.0, -2.0], 1.0)
def test_soft_threshold_meets_its_subgradient_condition(values, threshold):
    b = np.array(values)
    p = soft_threshold(b, threshold)
    slope = b - p
    tolerance = 1e-9 * max(1, np.abs(b).max())
    np.testing.assert_allclose(slope[p != 0], threshold * np.sign(p[p != 0]), atol=tolerance)
    assert (np.abs(slope[p == 0]) <= threshold).all()
    assert (p[np.abs(b) <= threshold] == 0).all()


@pytest.mark.parametrize("alpha", [1.0, 1.9])
@pytest.mark.parametrize("shape", [(1, 1), (6, 1), (6, 4)])
def test_soft_relax_is_the_soft_threshold(backend, shape, alpha, rng, dtype):
    be = backends.get(backend)
    T2, threshold = rng.standard_normal((6, 4)).astype(dtype), rng.random(shape).astype(dtype)
    expected = T2 - alpha * np.sign(T2) * np.maximum(np.abs(T2) - threshold, 0)
    be.soft_relax(T2, threshold, alpha)
    np.testing.assert_allclose(T2, expected, atol=1e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("alpha", [1.0, 1.9])
def test_project_relax_works_in_place(backend, bound, alpha, rng, dtype):
    be = backends.get(backend)
    T, Y, mask, V = arrays(rng, dtype, bound)
    scale = rng.random(M).astype(dtype)
    expected = T - alpha * np.where(mask, Y + scale[:, None] * (T - Y), np.minimum(T, V))
    inputs = [a.copy() for a in (Y, mask, V, scale)]
    assert be.project_relax(T, Y, mask, V, scale, alpha) is None
    np.testing.assert_allclose(T, expected, atol=2e-6 if dtype == np.float32 else 1e-14)
    for before, after in zip(inputs, (Y, mask, V, scale), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("bound", BOUNDS)
def test_sums_are_their_formulas(backend, bound, rng, dtype):
    """Rows sums against float64 loops; off Omega a multiplier is zero where V is infinite, as the loop's always is."""
    be = backends.get(backend)
    T, Y, mask, V = arrays(rng, dtype, bound)
    Z = rng.standard_normal((M, P)).astype(dtype)
    bounds = np.broadcast_to(V, mask.shape)
    Q = np.where(~mask & np.isinf(bounds), 0, rng.standard_normal((M, P))).astype(dtype)
    scale = rng.random(M).astype(dtype)
    t, z, y, v, q = (a.astype(np.float64) for a in (T, Z, Y, bounds, Q))
    tolerance = {"rtol": 1e-5 if dtype == np.float32 else 1e-12, "atol": 1e-5 if dtype == np.float32 else 1e-12}

    inside = np.where(mask, t - y, 0)
    np.testing.assert_allclose(be.ball_norms(T, Y, mask), (inside**2).sum(1), **tolerance)

    off = np.where(mask | (q == 0), 0, q * np.where(np.isinf(v), 0, v)).sum(1)
    on = np.where(mask, q, 0)
    expected = np.stack([(on * y).sum(1), (on**2).sum(1), off], 1)
    np.testing.assert_allclose(be.multiplier_sums(Q, Y, mask, V), expected, **tolerance)

    excess = np.where(mask, 0, np.maximum(z - v, 0))
    expected = np.stack([(np.where(mask, z - y, 0) ** 2).sum(1), (excess**2).sum(1), excess.max(1)], 1)
    np.testing.assert_allclose(be.violation_sums(Z, Y, mask, V), expected, **tolerance)

    projected = np.where(mask, y + scale[:, None] * (t - y), np.minimum(t, v))
    expected = np.stack([((projected - z) ** 2).sum(1), (z**2).sum(1), ((z - t) ** 2).sum(1)], 1)
    np.testing.assert_allclose(be.residual_sums(T, Z, Y, mask, V, scale), expected, **tolerance)


@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("transposed", [False, True])
def test_product_in_every_order(backend, orders, transposed, rng, dtype):
    be = backends.get(backend)
    A = np.asarray(rng.standard_normal((3, 8)), dtype, order=orders[0])
    B = np.asarray(rng.standard_normal((8, 5)), dtype, order=orders[1])
    if transposed:
        A, B = np.asarray(A.T, order=orders[0]).T, np.asarray(B.T, order=orders[1]).T
    exact = A.astype(np.float64) @ B.astype(np.float64)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(be.product(A, B), exact, atol=tolerance)
    out = np.ascontiguousarray(rng.standard_normal((3, 5)), dtype=dtype)
    expected = 2 * exact - 0.5 * out.astype(np.float64)
    kept = out
    assert be.product(A, B, out, 2.0, -0.5) is kept
    np.testing.assert_allclose(kept, expected, atol=tolerance)
    # beta = 0 forgets what was there, even NaN
    out = np.full((3, 5), np.nan, dtype)
    np.testing.assert_allclose(be.product(A, B, out), exact, atol=tolerance)
    assert out.dtype == dtype


def test_product_of_a_strided_operand(backend, rng):
    be = backends.get(backend)
    A, B = rng.standard_normal((6, 16))[::2, ::2], rng.standard_normal((16, 10))[::2, ::-2]
    np.testing.assert_allclose(be.product(A, B), np.einsum("ij,jk->ik", A, B), atol=1e-13)


def test_inverse(backend, rng):
    be = backends.get(backend)
    A = rng.standard_normal((6, 9))
    A = A @ A.T
    inverse = be.inverse(A.copy(order="F"))
    assert inverse.dtype == np.float64
    np.testing.assert_allclose(inverse @ A, np.eye(6), atol=1e-10)
    np.testing.assert_array_equal(inverse, inverse.T)
    with pytest.raises(np.linalg.LinAlgError, match="positive definite"):
        be.inverse(-A)


def test_inverse_of_many_blocks(backend, rng):
    """Larger than the block in which the triangle is mirrored."""
    X = rng.standard_normal((300, 700))
    A = X @ X.T
    inverse = backends.get(backend).inverse(A.copy(order="F"))
    np.testing.assert_allclose(inverse @ A, np.eye(300), atol=1e-9)
    np.testing.assert_array_equal(inverse, inverse.T)


def test_norm_copy_cast_zeros(backend, rng, dtype):
    be = backends.get(backend)
    a = rng.standard_normal((4, 7)).astype(dtype)
    assert be.norm(a) == pytest.approx(np.linalg.norm(a.astype(np.float64)), rel=1e-6)
    copy = be.copy(a)
    copy += 1
    assert not np.shares_memory(copy, a)
    assert be.zeros((2, 3), dtype).dtype == dtype
    assert be.cast(a, dtype) is a
    assert be.cast(a, np.float64).dtype == np.float64
    assert be.to_host(be.asarray(a, dtype)) is a


def test_results_do_not_depend_on_how_rows_are_split(rng, dtype):
    """Blocks of rows on three threads give the bits of one thread; the arrays are large enough to be split."""
    shape = (7, 40_000)
    one, three = NumbaBackend(1), NumbaBackend(3)
    T, Y, mask, V = arrays(rng, dtype, "array", shape)
    Z = rng.standard_normal(shape).astype(dtype)
    scale = rng.random(7).astype(dtype)
    for upper in (V, np.zeros((1, 1), dtype)):
        np.testing.assert_array_equal(one.ball_norms(T, Y, mask), three.ball_norms(T, Y, mask))
        for name in ("multiplier_sums", "violation_sums"):
            np.testing.assert_array_equal(
                getattr(one, name)(T, Y, mask, upper), getattr(three, name)(T, Y, mask, upper)
            )
        arguments = (T, Z, Y, mask, upper, scale)
        np.testing.assert_array_equal(one.residual_sums(*arguments), three.residual_sums(*arguments))
        split, whole = T.copy(), T.copy()
        one.project_relax(whole, Y, mask, upper, scale, 1.9)
        three.project_relax(split, Y, mask, upper, scale, 1.9)
        np.testing.assert_array_equal(split, whole)
    for threshold in (np.full((1, 1), 0.3, dtype), rng.random((7, 1)).astype(dtype), rng.random(shape).astype(dtype)):
        split, whole = T.copy(), T.copy()
        one.soft_relax(whole, threshold, 1.9)
        three.soft_relax(split, threshold, 1.9)
        np.testing.assert_array_equal(split, whole)


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend"):
        backends.get("cuda")
