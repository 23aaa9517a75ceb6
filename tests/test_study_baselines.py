"""What prunes during training: dynamic network surgery, and sparse variational dropout."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate

pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn.utils import parametrize

from nettrim.studies import data, models, training
from nettrim.studies.surgery import HIGH, LOW, Masked, train_with_surgery
from nettrim.studies.variational import THRESHOLD, Noisy, divergence, train_with_noise


@pytest.fixture(scope="module")
def batches():
    return training.Batches(*data.load("synthetic_images").train, size=50)


@pytest.fixture(scope="module")
def model(batches):
    torch.manual_seed(0)
    made = models.fully_connected((784, 20, 10), 0.0)
    training.train(made, batches, 2)
    return made


def of_layer(c: float) -> tuple[nn.Linear, Masked]:
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[0.1, 1.0, 2.0, 3.0]])
    masked = Masked(layer.weight, c)
    parametrize.register_parametrization(layer, "weight", masked)
    return layer, masked


# surgery


def test_a_mask_has_two_thresholds():
    weight = torch.tensor([1.0, -2.0, 3.0])
    masked = Masked(weight, 0.0)
    assert (masked.low, masked.high) == pytest.approx((2 * LOW, 2 * HIGH))
    masked.update(weight)
    # 2 lies between the thresholds and keeps its mask
    assert masked.mask.tolist() == [0, 1, 1]
    masked.mask[:] = 0
    masked.update(weight)
    assert masked.mask.tolist() == [0, 0, 1]


def test_pruned_weights_have_gradients_and_come_back():
    layer, masked = of_layer(0.0)
    hidden = layer.parametrizations.weight.original
    masked.update(hidden)
    assert masked.mask.tolist() == [[0, 0, 1, 1]]
    assert layer(torch.ones(1, 4)).item() == pytest.approx(5)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    # the loss wants a larger first weight, which the layer does not compute with
    (-5 * layer(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))).sum().backward()
    assert hidden.grad.tolist() == [[-5, 0, 0, 0]]
    optimizer.step()
    masked.update(hidden)
    assert masked.mask.tolist() == [[1, 0, 1, 1]]
    assert layer(torch.ones(1, 4)).item() == pytest.approx(10.1)


def test_surgery_leaves_a_plain_network_of_which_more_is_zero_the_larger_c(model, batches):
    zeros = []
    for c in (0.0, 2.0):
        made, about = train_with_surgery(model, batches, c, 2)
        assert not any(parametrize.is_parametrized(module) for module in made.modules())
        assert [type(a) for a in made] == [type(a) for a in model]
        weights = [module.weight for module in made if isinstance(module, nn.Linear)]
        assert about["extra"] == sum(W.numel() for W in weights)
        zeros.append(sum(int((W == 0).sum()) for W in weights) / about["extra"])
        assert about["spliced"] > 0
    assert 0.3 < zeros[0] < zeros[1] < 1
    # the network that it began with is as it was
    assert all((module.weight != 0).all() for module in model if isinstance(module, nn.Linear))


def test_surgery_repeats(model, batches):
    found = []
    for _ in range(2):
        again = training.Batches(*data.load("synthetic_images").train, size=50, seed=3)
        made, _about = train_with_surgery(model, again, 1.0, 1)
        found.append(made[1].weight)
    assert torch.equal(*found)


# variational dropout


def by_integration(log_alpha: float) -> float:
    """KL(N(1, alpha), log-uniform) up to the constant: E log|x| - 0.5 log alpha for x ~ N(1, alpha)."""
    deviation = math.exp(0.5 * log_alpha)

    def integrand(x: float) -> float:
        return math.log(abs(x)) * math.exp(-0.5 * ((x - 1) / deviation) ** 2) / deviation / math.sqrt(2 * math.pi)

    reach = 12 * deviation
    parts = [(1 - reach, 0.0), (0.0, 1 + reach)] if reach > 1 else [(1 - reach, 1 + reach)]
    return sum(integrate.quad(integrand, *part, limit=400)[0] for part in parts) - 0.5 * log_alpha


def test_the_divergence_is_what_integration_gives():
    # both are known up to a constant: differences from the limit of large alpha, E log|g| of a standard normal g
    limit = -0.5 * (np.euler_gamma + math.log(2))
    for log_alpha in (-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0):
        exact = by_integration(log_alpha) - limit
        approximate = float(divergence(torch.tensor(log_alpha, dtype=torch.float64)))
        assert approximate == pytest.approx(exact, abs=0.02), log_alpha


def test_the_divergence_falls_to_zero():
    values = divergence(torch.linspace(-8, 8, 200, dtype=torch.float64))
    assert (values[1:] < values[:-1]).all() and 0 < values[-1] < 1e-3


def test_weights_that_are_noise_are_pruned():
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[1.0, 1.0, 0.0]])
    noisy = Noisy(layer).eval()
    with torch.no_grad():
        noisy.log_variance[:] = torch.tensor([[THRESHOLD - 0.01, THRESHOLD + 0.01, -8.0]])
    assert noisy.log_alpha[0, :2].tolist() == pytest.approx([THRESHOLD - 0.01, THRESHOLD + 0.01], abs=1e-5)
    # a mean of zero is all noise, whatever its variance
    assert noisy.log_alpha[0, 2] > THRESHOLD
    assert noisy(torch.ones(1, 3)).item() == 1


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_drawn_outputs_have_the_moments_of_drawn_weights(kind):
    torch.manual_seed(0)
    layer = nn.Linear(6, 2) if kind == "linear" else nn.Conv2d(2, 2, 3, padding=1)
    x = torch.randn(1, 6) if kind == "linear" else torch.randn(1, 2, 4, 4)
    noisy = Noisy(layer).train()
    nn.init.constant_(noisy.log_variance, math.log(0.3))
    with torch.no_grad():
        drawn = torch.stack([noisy(x) for _ in range(4000)])
        direct, mean = [], layer.weight.clone()
        for _ in range(4000):
            layer.weight[:] = mean + 0.3**0.5 * torch.randn_like(mean)
            direct.append(layer(x))
    direct = torch.stack(direct)
    assert torch.allclose(drawn.mean(0), direct.mean(0), atol=0.15)
    assert torch.allclose(drawn.std(0), direct.std(0), rtol=0.1)


def test_noise_leaves_a_plain_network_of_which_more_is_zero_the_stronger_the_prior(model, batches):
    zeros = []
    for strength in (1.0, 30.0):
        torch.manual_seed(1)
        made, about = train_with_noise(model, batches, strength, 4, rate=3e-3)
        assert [type(a) for a in made] == [type(a) for a in model]
        weights = [module.weight for module in made if isinstance(module, nn.Linear)]
        assert about["extra"] == sum(W.numel() for W in weights)
        zeros.append(sum(int((W == 0).sum()) for W in weights) / about["extra"])
    assert 0 < zeros[0] < zeros[1] < 1
    assert all((module.weight != 0).all() for module in model if isinstance(module, nn.Linear))
