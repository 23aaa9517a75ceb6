"""Gradient flow on a signal and on noise: balanced starts leave nothing on the noise, others do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nettrim.bounds.clipping import clipping_ratio
from nettrim.bounds.signal_noise import SignalNoise, balanced_start, flow, unbalanced_start

MODEL = SignalNoise()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_balanced_start_leaves_nothing_on_the_noise(seed):
    W1, W2 = balanced_start(MODEL, seed=seed)
    np.testing.assert_allclose(W1 @ W1.T, W2.T @ W2, atol=1e-15)
    assert np.linalg.matrix_rank(W1) == 1 and np.linalg.norm(W1[:, 4:]) > 0.2
    found = flow(MODEL, W1, W2)
    assert found.noise < 1e-14 and found.gap < 1e-12 and found.drift < 1e-10
    # equations 37 and 38: both of this norm, of rank one, with v as the right singular vector
    length = np.linalg.norm(MODEL.v)
    size = math.sqrt(length / (length**2 + MODEL.sigma**2))
    assert np.linalg.norm(found.W1) == pytest.approx(size, rel=1e-8)
    assert np.linalg.norm(found.W2) == pytest.approx(size, rel=1e-8)
    alpha = found.W2[0] / size
    np.testing.assert_allclose(found.W1, size * np.outer(alpha, MODEL.signal / length), atol=1e-8)


def test_an_unbalanced_start_leaves_weights_on_the_noise_without_effect():
    found = flow(MODEL, *unbalanced_start(MODEL, scale=1.0))
    assert found.gap < 1e-12 and found.drift < 1e-10
    assert 0.8 < found.noise < 0.9
    assert np.linalg.norm(found.W2 @ found.W1[:, 4:]) < 1e-9
    np.testing.assert_allclose((found.W2 @ found.W1)[0], MODEL.best, atol=1e-9)


def test_starts_are_of_the_norms_that_are_asked_for():
    for start in (balanced_start, unbalanced_start):
        W1, W2 = start(MODEL, 5, 0.7, 3)
        assert W1.shape == (5, 20) and W2.shape == (1, 5)
        assert np.linalg.norm(W1) == pytest.approx(0.7) == pytest.approx(np.linalg.norm(W2))


def test_loss_and_gradients_are_those_of_samples():
    model = SignalNoise((1.0, -0.5), 3, 0.8)
    rng = np.random.default_rng(0)
    W1, W2 = rng.standard_normal((4, 5)) / 2, rng.standard_normal((1, 4)) / 2
    x, y = model.draw(400_000)
    assert model.loss(W1, W2) == pytest.approx(((x @ (W2 @ W1)[0] - y) ** 2).mean() / 2, rel=0.02)
    np.testing.assert_allclose((y[:, None] * x).mean(0), model.signal, atol=0.01)
    # the population's gradient by differences, and the mean of the samples' gradients
    step, found = 1e-6, model.gradients(W1, W2, x, y).mean(0).reshape(4, 5)
    for i, j in ((0, 0), (3, 1), (2, 4)):
        moved = W1.copy()
        moved[i, j] += step
        slope = (model.loss(moved, W2) - model.loss(W1, W2)) / step
        assert found[i, j] == pytest.approx(slope, abs=0.02)
    assert model.loss(np.outer([1.0], model.best), np.ones((1, 1))) <= model.loss(W1, W2)


def test_pruning_the_noise_lowers_R():
    """Figure 11: the ratio of what is left of the gradients."""
    x, y = MODEL.draw(4000)
    W1, W2 = balanced_start(MODEL)
    dense = clipping_ratio(MODEL.gradients(W1, W2, x, y))
    ratios = []
    for kept in (20, 12, 4):
        ratios.append(clipping_ratio(MODEL.gradients(W1[:, :kept], W2, x[:, :kept], y)))
    assert ratios[0] == dense and ratios[2] < ratios[1] < ratios[0]
    # at a start near zero the gradients are -y W2^T x, of variance d sigma^2 over ||v||^2
    assert ratios[2] == pytest.approx(4 / 4, rel=0.3) and dense == pytest.approx(20 / 4, rel=0.3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((0.0, 0.0),), "v must have"),
        (((1.0,), 0), "noise_inputs must be at least 1"),
        (((1.0,), 1, 0.0), "sigma must be positive"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SignalNoise(*arguments)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"W1 and W2 must be of shapes \(m, 20\) and \(1, m\)"):
        flow(MODEL, np.ones((3, 19)), np.ones((1, 3)))
