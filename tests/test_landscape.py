"""The loss between and around networks, on quadratic models whose losses are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from nettrim.privacy.landscape import distance, instability, interpolate, mean_loss, norm, random_directions
from nettrim.studies import models

D = 6
#: with rows of a scaled identity as inputs, the loss below is ||w||^2 / 2
INPUTS = (math.sqrt(D) * np.eye(D)).astype(np.float32)
TARGETS = np.zeros(D, np.float32)


def linear(*w: float) -> nn.Linear:
    model = nn.Linear(D, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([w]))
    return model


def half_square(outputs, targets):
    return (outputs[:, 0] - targets).square().mean() / 2


def test_the_loss_is_half_the_squared_norm():
    model = linear(1, 2, 0, 0, 0, 2)
    assert mean_loss(model, INPUTS, TARGETS, half_square) == pytest.approx(4.5)
    assert norm(model) == pytest.approx(3)
    assert distance(model, linear(1, 2, 0, 0, 0, 6)) == pytest.approx(4)


def test_a_line_between_quadratic_models():
    first, second = linear(3, 0, 0, 0, 0, 0), linear(-1, 0, 0, 0, 0, 0)
    first.train()
    losses = interpolate(first, second, INPUTS, TARGETS, loss=half_square)
    np.testing.assert_allclose(losses, (3 - 4 * np.linspace(0, 1, 30)) ** 2 / 2, rtol=1e-5, atol=1e-6)
    # convex: the largest is at an end, and the mean of 4.5 and 0.5 is taken off, not the smaller nor the larger
    assert instability(losses) == pytest.approx(2.0, rel=1e-5)
    assert first.training


def test_a_barrier_has_its_height():
    """A loss of minus the square has its peak where the line passes nearest to the origin."""
    first, second = linear(1, 2, 0, 0, 0, 0), linear(1, -2, 0, 0, 0, 0)
    losses = interpolate(first, second, INPUTS, TARGETS, 31, lambda z, y: -half_square(z, y))
    assert losses.argmax() == 15 and instability(losses) == pytest.approx(-0.5 + 2.5, rel=1e-5)
    assert instability(interpolate(first, first, INPUTS, TARGETS, loss=half_square)) == pytest.approx(0, abs=1e-6)


def test_random_directions_have_their_length():
    model = linear(0, 0, 0, 0, 0, 0)
    found = random_directions(model, INPUTS, TARGETS, (1.0, 15.0), 100, loss=half_square)
    np.testing.assert_allclose(found.losses, np.tile([[0.5, 112.5]], (100, 1)), rtol=1e-5)
    again = random_directions(model, INPUTS, TARGETS, (1.0, 15.0), 100, loss=half_square)
    np.testing.assert_array_equal(found.losses, again.losses)
    # away from the minimum it depends on the direction: (||w||^2 + 2 r w.u + r^2) / 2
    losses = random_directions(linear(1, 0, 0, 0, 0, 0), INPUTS, TARGETS, (2.0,), 200, loss=half_square).losses
    assert losses.min() >= 0.5 - 1e-6 and losses.max() <= 4.5 + 1e-5
    assert abs(losses.mean() - 2.5) < 5 * 2 / math.sqrt(D * 200)


def test_directions_of_many_dimensions_are_nearly_orthogonal():
    torch.manual_seed(0)
    x, y = np.zeros((2, 1, 28, 28), np.float32), np.zeros(2, np.int64)
    model = models.lenet5()
    found = random_directions(model, x, y, (1.0,), 20)
    # normal of deviation 1 / sqrt(61706): the largest of 190 is near 2.9 of them
    assert 1.5 / math.sqrt(61_706) < found.cosine < 5 / math.sqrt(61_706)
    assert math.isnan(random_directions(model, x, y, (1.0,), 1).cosine)


def test_weights_are_put_where_they_belong():
    torch.manual_seed(0)
    first, second = models.lenet5(), models.lenet5()
    x = np.random.default_rng(0).standard_normal((20, 1, 28, 28)).astype(np.float32)
    y = np.arange(20) % 10
    losses = interpolate(first, second, x, y, 3)
    assert losses[0] == pytest.approx(mean_loss(first, x, y), rel=1e-6)
    assert losses[2] == pytest.approx(mean_loss(second, x, y), rel=1e-6)
    middle = models.lenet5()
    with torch.no_grad():
        for p, a, b in zip(middle.parameters(), first.parameters(), second.parameters(), strict=True):
            p.copy_((a + b) / 2)
    assert losses[1] == pytest.approx(mean_loss(middle, x, y), rel=1e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match="same names and shapes"):
        interpolate(linear(*range(6)), nn.Linear(3, 1, bias=False), INPUTS, TARGETS)
    with pytest.raises(ValueError, match="points must be at least 2"):
        interpolate(linear(*range(6)), linear(*range(6)), INPUTS, TARGETS, 1)
    with pytest.raises(ValueError, match="batch norms"):
        norm(nn.Sequential(nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match="count must be at least 1"):
        random_directions(linear(*range(6)), INPUTS, TARGETS, count=0)
