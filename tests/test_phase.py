"""The place of the phase transition: against integrals, known values, and random programs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import integrate, optimize

import nettrim as nt
from nettrim.bounds.phase import GAUSSIAN_EIGENVALUE, l1_dimension, samples_needed


def by_integration(sparsity: float) -> float:
    """The definition: the least value over t of r (1 + t^2) + (1 - r) E max(|g| - t, 0)^2."""

    def value(t: float) -> float:
        tail = integrate.quad(lambda u: (u - t) ** 2 * math.exp(-u * u / 2), t, np.inf)[0]
        return sparsity * (1 + t * t) + (1 - sparsity) * math.sqrt(2 / math.pi) * tail

    return optimize.minimize_scalar(value, bounds=(0, 10), method="bounded", options={"xatol": 1e-9}).fun


@example(sparsity=0.1)
@given(sparsity=st.floats(0.001, 0.999))
def test_the_dimension_is_what_integration_gives(sparsity):
    assert l1_dimension(sparsity) == pytest.approx(by_integration(sparsity), rel=1e-6)


def test_known_values():
    # Donoho and Tanner's weak transition: of half as many equations as unknowns, s = .1928 N
    assert l1_dimension(0.1928) == pytest.approx(0.5, abs=2e-3)
    assert l1_dimension(0) == 0 and l1_dimension(1) == 1
    assert samples_needed(0.1, 0.25) == pytest.approx(4 * l1_dimension(0.1))


@example(a=0.1, b=0.2)
@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_the_dimension_grows_and_is_concave(a, b):
    low, high = sorted((a, b))
    assert l1_dimension(low) <= l1_dimension(high) + 1e-12
    assert l1_dimension(0.5 * (a + b)) >= 0.5 * (l1_dimension(a) + l1_dimension(b)) - 1e-9
    assert low <= l1_dimension(low) <= 1


def test_refusals():
    with pytest.raises(ValueError, match="sparsity must be between 0 and 1"):
        l1_dimension(1.5)
    with pytest.raises(ValueError, match="active must be above 0"):
        samples_needed(0.1, 0.0)


@pytest.mark.parametrize("signs", [False, True])
def test_neurons_are_found_above_the_transition_and_not_below(signs):
    N, s, rng = 60, 6, np.random.default_rng(3)
    place = samples_needed(s / N) * N
    for factor, lowest, highest in ((0.5, 0.0, 0.2), (1.7, 0.8, 1.0)):
        P = round(factor * place)
        X = rng.choice((-1.0, 1.0), (N, P)) if signs else rng.standard_normal((N, P))
        W = np.zeros((N, 10))
        for column in W.T:
            column[rng.choice(N, s, replace=False)] = rng.standard_normal(s)
        found = nt.solve(X, np.maximum(W.T @ X, 0), epsilon_abs=0.0, gap_tol=1e-7, feas_tol=1e-7).W
        share = (np.linalg.norm(found - W, axis=0) < 1e-3 * np.linalg.norm(W, axis=0)).mean()
        assert lowest <= share <= highest, (factor, share)


def test_silent_samples_say_nothing():
    """The solution is that of the active samples alone, as equations: the step of the derivation."""
    N, s, rng = 40, 4, np.random.default_rng(0)
    w = np.zeros(N)
    w[:s] = rng.standard_normal(s)
    X = rng.standard_normal((N, 60))
    y = np.maximum(w @ X, 0)
    exact = {"epsilon_abs": 0.0, "gap_tol": 1e-8, "feas_tol": 1e-8}
    both = nt.solve(X, y[None], **exact).W[:, 0]
    active = X[:, y > 0]
    alone = nt.solve(active, (w @ active)[None], omega=np.ones((1, active.shape[1]), bool), **exact).W[:, 0]
    np.testing.assert_allclose(both, w, atol=1e-6)
    np.testing.assert_allclose(alone, w, atol=1e-6)


def test_the_virtual_covariance_of_gaussian_inputs():
    N, rng = 5, np.random.default_rng(1)
    w = rng.standard_normal(N)
    X = rng.standard_normal((N, 400_000))
    V = X * (w @ X > 0)
    values, vectors = np.linalg.eigh(np.cov(V))
    assert values[0] == pytest.approx(GAUSSIAN_EIGENVALUE, abs=5e-3)
    assert values[1:] == pytest.approx(0.5, abs=1e-2)
    assert abs(vectors[:, 0] @ w) / np.linalg.norm(w) == pytest.approx(1, abs=1e-3)
