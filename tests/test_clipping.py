"""What clipping does to a direction: the corrected bound, and the counterexample of the printed one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nettrim.bounds.clipping import clipping_ratio, corrected_bound, measure, printed_bound

COUNTEREXAMPLE = np.array([[1.0], [-0.01]])


def test_the_counterexample_of_the_printed_theorem():
    C = 0.01
    found = measure(COUNTEREXAMPLE, C)
    assert found.projection == 0 and found.printed == pytest.approx(0.48 * C, abs=0.001 * C)
    assert found.printed > found.projection, "the printed theorem is false"
    assert found.corrected <= 0 and found.bound <= 0 and not found.holds
    # every gradient is at least C: the theorem's only assumption
    assert (np.linalg.norm(COUNTEREXAMPLE, axis=1) >= C).all()


def test_the_ratio_is_variance_over_squared_mean(rng):
    G = rng.standard_normal((40, 7)) + 1
    R = np.trace(np.cov(G.T, bias=True)) / np.sum(G.mean(0) ** 2)
    assert clipping_ratio(G) == pytest.approx(R) and measure(G, 1.0).R == pytest.approx(R)
    assert clipping_ratio(np.array([[1.0], [-1.0]])) == math.inf
    assert clipping_ratio(np.ones((5, 3))) == 0 == measure(np.ones((5, 3)), 1.0).R


gradients = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 3)), elements=st.floats(-10, 10))


@given(gradients, st.floats(1e-3, 30))
@example(COUNTEREXAMPLE, 0.01)
@example(np.array([[1.0], [1.0], [-1e-6]]), 1e-6)
@example(np.array([[1e-3, 0.0]]), 10.0)
def test_the_bounds_hold(G, C):
    mean = np.linalg.norm(G.mean(0))
    if mean < 1e-3:
        return
    found = measure(G, C)
    slack = 1e-9 * C
    assert found.projection >= found.bound - slack
    if np.linalg.norm(G, axis=1).min() >= C:
        assert found.projection >= found.corrected - slack
        assert found.bound == pytest.approx(found.corrected, rel=1e-6, abs=slack)
    if found.holds:
        assert found.projection >= found.printed - slack
    assert -1 - 1e-12 <= found.cosine <= 1 + 1e-12 and 0 <= found.clipped <= 1


def test_the_bounds_hold_in_200000_random_cases(rng):
    """All at once; lengths over six decades, so that the printed form is broken often."""
    violated = held = 0
    for n, d in ((2, 1), (3, 1), (5, 2), (10, 4)):
        G = rng.standard_normal((50_000, n, d)) + rng.uniform(0, 3, (50_000, 1, 1))
        G *= 10 ** rng.uniform(-3, 3, (50_000, n, 1)) ** rng.integers(0, 2, (50_000, 1, 1))
        norms = np.linalg.norm(G, axis=2)
        mean = G.mean(1)
        length = np.linalg.norm(mean, axis=1)
        R = (norms**2).mean(1) / length**2 - 1
        # in units of C, every gradient clipped
        c = (G / norms[..., None]).mean(1)
        projection = (c * mean).sum(1) / length
        assert (projection >= corrected_bound(R) - 1e-9).all()
        printed = projection >= printed_bound(R) - 1e-9
        violated += int((~printed).sum())
        large = norms.min(1) >= length
        held += int(large.sum())
        assert printed[large].all()
        # any C
        C = 10 ** rng.uniform(-3, 3, 50_000)
        longest = np.maximum(norms, C[:, None])
        c = (G * (C[:, None] / longest)[..., None]).mean(1)
        bound = C * (2 * length**2 / (longest**2).mean(1) - 1)
        assert ((c * mean).sum(1) / length >= bound - 1e-9 * C).all()
    assert violated > 1000 and held > 1000


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9])
def test_the_corrected_bound_is_tight(p):
    count = 1000
    G = np.where(np.arange(count) < p * count, 1.0, -1e-9)[:, None]
    found = measure(G, 1e-9)
    assert found.projection == pytest.approx((2 * p - 1) * 1e-9, abs=1e-15)
    assert found.corrected == pytest.approx(found.projection, abs=1e-15)


def test_blocks_are_as_good_as_one_array(rng):
    G = rng.standard_normal((50, 9)).astype(np.float32) + 0.3
    whole, parts = measure(G, 2.0), measure((G[k : k + 7] for k in range(0, 50, 7)), 2.0)
    assert whole.count == parts.count == 50 and 0 < whole.clipped < 1
    for name in ("R", "cosine", "projection", "bound", "clipped"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    clipped = G * np.minimum(1, 2 / np.linalg.norm(G, axis=1))[:, None]
    c, m = clipped.mean(0), G.mean(0)
    assert whole.cosine == pytest.approx(c @ m / np.linalg.norm(c) / np.linalg.norm(m), rel=1e-5)


def test_no_clipping_turns_nothing(rng):
    found = measure(rng.standard_normal((20, 4)), 100.0)
    assert found.cosine == pytest.approx(1) and found.clipped == 0


@pytest.mark.parametrize(
    "given_, C, error, message",
    [
        ([[1.0]], 1.0, TypeError, "gradients must be an array"),
        (np.ones((2, 2), int), 1.0, TypeError, "floating dtype"),
        (np.ones(3), 1.0, ValueError, "must be a matrix"),
        (np.array([[math.nan]]), 1.0, ValueError, "NaN or inf"),
        (np.ones((2, 2)), 0.0, ValueError, "C must be positive"),
        (np.array([[1.0], [-1.0]]), 1.0, ValueError, "mean other than zero"),
        ([], 1.0, ValueError, "at least one block"),
        ([np.ones((2, 2)), np.ones((2, 3))], 1.0, ValueError, "must all have 2 entries; got 3"),
    ],
)
def test_what_is_refused(given_, C, error, message):
    with pytest.raises(error, match=message):
        measure(given_, C)
