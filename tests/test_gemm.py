"""Products on blocks of any layout, against NumPy's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nettrim.backends.gemm import gemm, product, syrk

LAYOUTS = ("C", "F", "rows", "columns", "both", "reversed", "read-only")


def laid_out(A: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers in another memory layout."""
    m, n = A.shape
    if layout == "F":
        return np.asfortranarray(A)
    if layout == "reversed":
        return np.ascontiguousarray(A[::-1, ::-1])[::-1, ::-1]
    if layout in ("rows", "columns", "both"):
        step = (1 if layout == "columns" else 3, 1 if layout == "rows" else 2)
        big = np.full((m * step[0], n * step[1]), np.nan, A.dtype)
        big[:: step[0], :: step[1]] = A
        return big[:: step[0], :: step[1]]
    A = A.copy()
    A.flags.writeable = layout != "read-only"
    return A


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    left=st.sampled_from(LAYOUTS),
    right=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([np.float32, np.float64]),
    beta=st.sampled_from([0.0, 1.0, -0.5]),
)
@example(shape=(1, 1, 1), left="rows", right="columns", dtype=np.float64, beta=1.0)
@example(shape=(5, 1, 9), left="F", right="F", dtype=np.float32, beta=0.0)
@example(shape=(1, 7, 1), left="both", right="both", dtype=np.float64, beta=-0.5)
def test_any_layout(shape, left, right, dtype, beta):
    m, k, n = shape
    rng = np.random.default_rng(sum(shape))
    A, B = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    whole = rng.standard_normal((m, n + 4)).astype(dtype)
    before = whole.copy()
    gemm(laid_out(A, left), laid_out(B, right), whole[:, 2 : 2 + n], 2.0, beta)
    tol = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(whole[:, 2 : 2 + n], 2 * A @ B + beta * before[:, 2 : 2 + n], atol=tol * 30)
    np.testing.assert_array_equal(whole[:, :2], before[:, :2])
    np.testing.assert_array_equal(whole[:, 2 + n :], before[:, 2 + n :])


@given(m=st.integers(1, 9), k=st.integers(0, 9), layout=st.sampled_from(LAYOUTS))
@example(m=1, k=4, layout="columns")
@example(m=5, k=1, layout="rows")
@example(m=4, k=0, layout="C")
@example(m=3, k=7, layout="both")
def test_squares_of_any_layout(m, k, layout):
    rng = np.random.default_rng(10 * m + k)
    A, C = rng.standard_normal((m, k)), np.asfortranarray(rng.standard_normal((m, m)))
    before = C.copy()
    syrk(laid_out(A, layout), C)
    np.testing.assert_allclose(np.tril(C), np.tril(before + A @ A.T), atol=1e-12)
    np.testing.assert_array_equal(np.triu(C, 1), np.triu(before, 1))


@pytest.mark.parametrize(
    "A, C",
    [
        (np.ones((3, 2)), np.zeros((2, 2), order="F")),
        (np.ones((3, 2), np.float32), np.zeros((3, 3), order="F")),
        (np.ones((3, 2)), np.zeros((3, 3), np.float32, order="F")),
        (np.ones((3, 2)), np.zeros((3, 3))),
    ],
)
def test_squares_that_do_not_fit(A, C):
    with pytest.raises(ValueError, match="does not fit"):
        syrk(A, C)


def test_no_inner_dimension():
    C = np.ones((2, 3))
    gemm(np.empty((2, 0)), np.empty((0, 3)), C, 1.0, 0.5)
    np.testing.assert_array_equal(C, 0.5)
    gemm(np.empty((0, 4)), np.empty((4, 3)), np.empty((0, 3)))


def test_columns_that_are_apart_are_refused():
    C = np.zeros((4, 6))
    for wrong in (C[:, ::2], np.asfortranarray(C)[:, :3]):
        with pytest.raises(ValueError, match="rows of C"):
            gemm(np.ones((4, 2)), np.ones((2, 3)), wrong)


def test_what_does_not_fit_is_refused():
    A, B, C = np.ones((4, 2)), np.ones((2, 3)), np.ones((4, 3))
    for wrong in ((A, B, C[:3]), (A, B[:1], C), (A.astype(np.float32), B, C)):
        with pytest.raises(ValueError, match="does not fit"):
            gemm(*wrong)


@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(200, 11, 50), (50, 11, 200), (3, 4, 5), (1, 4, 100)])
def test_blocks_make_the_product(rng, blocks, shape):
    m, k, n = shape
    A, B = rng.standard_normal((m, k)), rng.standard_normal((n, k)).T
    with ThreadPoolExecutor(2) as pool:
        C = product(pool, blocks, A, B)
    assert C.flags.c_contiguous
    np.testing.assert_allclose(C, A @ B, atol=1e-12)
