"""Sparse variational dropout: every weight a Gaussian of its own (Molchanov, Ashukha, Vetrov 2017, arXiv:1701.05369).

A weight is drawn from N(theta, sigma^2), in the additive form, and the loss is the mean cross-entropy plus the
divergence from a log-uniform prior over the number of samples. The divergence depends on ``alpha = sigma^2 / theta^2``
alone; it has no closed form, and (14) approximates it,

    -KL = k1 sigmoid(k2 + k3 log alpha) - 0.5 log(1 + 1/alpha) - k1 + constant.

Outputs are drawn, not weights: for inputs x they are Gaussian with the mean ``theta'x`` and variance ``(sigma^2)'x^2``
(the local reparametrisation). At the end, weights with ``log alpha`` above 3 are noise, and are pruned; the others are
theta. This is the sparsifying member of the family that "Bayesian compression" belongs to, which draws one variable for
each neuron in its place.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn

from nettrim.studies.training import Batches, Progress, descend

__all__ = ["Noisy", "divergence", "train_with_noise"]

#: k1, k2, k3 of equation (14)
K1, K2, K3 = 0.63576, 1.87320, 1.48695
#: log alpha from which a weight is pruned: noise of 20 times its square (section 5 of the paper's experiments)
THRESHOLD = 3.0
#: log sigma^2 to begin with, and the interval that log alpha is kept in where it is computed
START, LEAST, MOST = -8.0, -8.0, 8.0
#: the rate of log sigma^2 over that of the weights: it has far to go
FASTER = 10.0
#: fraction of the training over which the divergence is faded in
WARMUP = 0.5


def divergence(log_alpha: torch.Tensor) -> torch.Tensor:
    """KL of N(theta, alpha theta^2) from the log-uniform prior for each weight, up to a constant; 0 as alpha grows.

    Equation (14).
    """
    return K1 * (1 - torch.sigmoid(K2 + K3 * log_alpha)) + 0.5 * nn.functional.softplus(-log_alpha)


class Noisy(nn.Module):
    """A linear or convolution layer whose weights have variances.

    Parameters
    ----------
    layer : nn.Linear or nn.Conv2d
        Its weights are the means. It is shared, not copied.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        super().__init__()
        self.layer = layer
        self.log_variance = nn.Parameter(torch.full_like(layer.weight, START))

    @property
    def log_alpha(self) -> torch.Tensor:
        """Log of variance over squared mean, of the weights' shape."""
        # a mean of exactly 0 is all noise
        squares = self.layer.weight.square().clamp_min(1e-16)
        return (self.log_variance - squares.log()).clamp(LEAST, MOST)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs: drawn in training mode, of the pruned means in evaluation mode."""
        layer = self.layer
        if not self.training:
            return self._apply_to(x, layer.weight * (self.log_alpha <= THRESHOLD), layer.bias)
        variance = self._apply_to(x.square(), self.log_variance.exp(), None)
        return layer(x) + torch.sqrt(variance + 1e-8) * torch.randn_like(variance)

    def _apply_to(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(x, weight, bias)
        return nn.functional.conv2d(
            x, weight, bias, layer.stride, cast(tuple[int, int], layer.padding), layer.dilation, layer.groups
        )


def train_with_noise(
    model: nn.Sequential,
    batches: Batches,
    strength: float,
    epochs: int,
    rate: float = 1e-3,
    progress: Progress | None = None,
) -> tuple[nn.Sequential, dict[str, int]]:
    """Train a copy of a network with a variance for each weight, by Adam, and prune what is noise.

    Parameters
    ----------
    model : nn.Sequential
        Usually trained, which the means begin with. It stays as it is.
    batches : Batches
    strength : float
        Times the divergence; 1 is the variational bound.
    epochs : int
    rate : float
        Of the means, at the beginning; all rates decay to zero by a cosine. The divergence fades in meanwhile.
    progress : callable, optional
        Called with the epoch, from 1, and its mean loss.

    Returns
    -------
    nn.Sequential
        Plain: the means, zero where they are pruned.
    dict
        "extra", the number of variances.

    Raises
    ------
    ValueError, FloatingPointError
        As `descend`.
    """
    modules = list(copy.deepcopy(model))
    made = nn.Sequential(*(Noisy(m) if isinstance(m, (nn.Linear, nn.Conv2d)) else m for m in modules))
    noisy = [module for module in made if isinstance(module, Noisy)]
    variances = [module.log_variance for module in noisy]
    others = [p for name, p in made.named_parameters() if not name.endswith("log_variance")]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": variances, "lr": FASTER * rate}]
    optimizer = torch.optim.Adam(groups, rate)
    steps, count = max(1, len(batches) * epochs), 0

    def penalty() -> torch.Tensor:
        nonlocal count
        count += 1
        total = torch.stack([divergence(module.log_alpha).sum() for module in noisy]).sum()
        return strength * min(1.0, count / (WARMUP * steps)) * total / len(batches.inputs)

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    descend(made, batches, epochs, optimizer, penalty=penalty, schedule=schedule, progress=progress)
    with torch.no_grad():
        for module in noisy:
            module.layer.weight.masked_fill_(module.log_alpha > THRESHOLD, 0.0)
    plain = nn.Sequential(*(m.layer if isinstance(m, Noisy) else m for m in made))
    return plain.eval(), {"extra": sum(v.numel() for v in variances)}
