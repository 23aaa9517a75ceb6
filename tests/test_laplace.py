"""The noise of Theorem 4.2 and its claims, corrected: closed forms against simulation, and no privacy parameter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import integrate, stats

from nettrim.bounds import laplace

positive = st.floats(1e-3, 6)


@given(positive)
@example(0.0199)
@example(0.0201)
@example(1e-3)
def test_truncated_second_moment_is_the_integral(t):
    integral = 2 * integrate.quad(lambda z: z * z * stats.norm.pdf(z), 0, t, epsabs=0, epsrel=1e-12)[0]
    assert laplace.truncated_second_moment(t) == pytest.approx(integral, rel=1e-8)


@pytest.mark.parametrize(("sigma", "sigma_A", "a"), [(0.1, 0.1, 0.18), (0.5, 0.02, 0.01), (0.2, 1.0, 3.0)])
def test_claim_44_against_simulation(sigma, sigma_A, a):
    # m = 10,000 outputs: a root mean square of as many is known to about one percent
    m, d, rng = 10_000, 50, np.random.default_rng(0)
    A = sigma_A * rng.standard_normal((m, d))
    A_pruned = np.where(np.abs(A) > a, A, 0)
    x = rng.standard_normal(d)
    x /= np.linalg.norm(x)
    e = laplace.noise(A, A_pruned, x, sigma, 1)
    simulated = np.linalg.norm(e - (A_pruned - A) @ x) / math.sqrt(m)
    expected = laplace.expected_deviation(sigma, sigma_A, a)
    assert simulated == pytest.approx(expected, rel=0.05)
    # of these weights, without the noise's chance
    assert laplace.deviation(A, A_pruned, x, sigma) == pytest.approx(expected, rel=0.02)
    assert simulated == pytest.approx(laplace.deviation(A, A_pruned, x, sigma), rel=0.05)


def test_noise_is_laplace_around_what_pruning_changes():
    A, A_pruned = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 2.0], [3.0, 4.0]])
    x = np.ones((2, 20_000))
    e = laplace.noise(A, A_pruned, x, 0.3, 0)
    # where pruning changes nothing there is no noise at all: what the input gives is seen as it is
    assert not e[1].any()
    assert stats.kstest(e[0], stats.laplace(-1, 0.3).cdf).pvalue > 0.01
    np.testing.assert_array_equal(e, laplace.noise(A, A_pruned, x, 0.3, 0))


@given(st.integers(0, 1000), st.sampled_from([1, 2]))
@example(0, 1)
@example(0, 2)
def test_sensitivity_is_attained_and_not_exceeded(seed, p):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((5, 4))
    A_pruned = np.where(rng.random(A.shape) < 0.5, A, 0)
    bound, change = laplace.sensitivity(A, A_pruned, p), A_pruned - A
    differences = rng.laplace(size=(4, 200))
    differences /= np.abs(differences).sum(0)
    assert (np.linalg.norm(change @ differences, ord=p, axis=0) <= bound * (1 + 1e-12)).all()
    assert max(np.linalg.norm(change @ unit, ord=p) for unit in np.eye(4)) == pytest.approx(bound)


def test_lemma_46_fails_below_the_atom_and_holds_above():
    alpha, a, draws = np.ones(5), 0.5, 40_000
    zero = laplace.atom(5, a)
    assert zero == pytest.approx((2 * stats.norm.sf(a)) ** 5)
    # however small delta is, the sum is zero as often as that: no C delta bounds it
    for delta in (1e-3, 1e-6, 1e-9):
        share = laplace.small_sums(alpha, a, delta, draws)
        assert share == pytest.approx(zero, abs=4 * math.sqrt(zero / draws) + 0.05 * delta * 100)
        assert share > 10 * delta
    # with an atom that is negligible the share is proportional to delta
    alpha = np.ones(40)
    assert laplace.atom(40, 2.0) < 1e-50
    small, large = (laplace.small_sums(alpha, 2.0, delta, draws) for delta in (0.5, 2.0))
    assert 3 < large / small < 5 and large < 2.0


def test_nothing_gives_a_privacy_parameter():
    assert not any("epsilon" in name or "private" in name for name in laplace.__all__)
    for name in laplace.__all__:
        assert "epsilon" not in (getattr(laplace, name).__doc__ or "")
    assert "not differentially private" in laplace.__doc__


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: laplace.truncated_second_moment(0.0), "t must be positive"),
        (lambda: laplace.expected_deviation(0.1, -1.0, 1.0), "sigma_A must be positive"),
        (lambda: laplace.noise(np.ones((2, 3)), np.ones((3, 2)), np.ones(3), 0.1), "A_pruned must be of the shape"),
        (lambda: laplace.noise(np.ones((2, 3)), np.ones((2, 3)), np.ones(2), 0.1), "x must be finite"),
        (lambda: laplace.noise(np.ones((2, 3)), np.ones((2, 3)), np.ones(3), 0.0), "sigma must be positive"),
        (lambda: laplace.noise(np.ones((2, 3), int), np.ones((2, 3)), np.ones(3), 0.1), "A must be a matrix"),
        (lambda: laplace.sensitivity(np.ones((2, 3)), np.zeros((2, 3)), 3), "p must be 1 or 2"),
        (lambda: laplace.atom(0, 1.0), "n must be a whole number"),
        (lambda: laplace.small_sums(np.zeros(3), 1.0, 0.1), "alpha must be finite and not all zero"),
        (lambda: laplace.small_sums(np.ones(3), 1.0, 0.1, draws=0), "draws must be"),
    ],
)
def test_errors(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
