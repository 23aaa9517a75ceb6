"""Dynamic network surgery: masks that are learned with the weights (Guo, Yao, Chen 2016, arXiv:1608.04493).

A layer computes with ``W * T``, T of zeros and ones. Gradients by ``W * T`` move all of W, also where T is 0 (equation
3), so that a weight that was pruned by mistake can grow and come back. With thresholds a < b of each layer (equation 4)

    T = 0 where |W| < a,    T = 1 where |W| > b,    T as it was between,

``a = 0.9 t, b = 1.1 t``, ``t = mean |W| + c std |W|`` of the weights that training begins with. Masks are looked at
after a step with a probability that falls, ``(1 + decay * step) ** -power``, so that they come to rest.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from nettrim.studies.training import Batches, Progress, descend

__all__ = ["Masked", "train_with_surgery"]

#: a and b over t, as in the authors' code
LOW, HIGH = 0.9, 1.1
#: of the probability that masks are looked at
DECAY, POWER = 1e-3, 1.0


class Masked(nn.Module):
    """A parametrisation of a weight: itself where the mask is 1, and 0 elsewhere, with the gradient of the whole.

    Parameters
    ----------
    weight : tensor
        It sets the thresholds.
    c : float
        Standard deviations above the mean; the larger, the fewer weights stay.
    """

    mask: torch.Tensor

    def __init__(self, weight: torch.Tensor, c: float):
        super().__init__()
        sizes = weight.detach().abs()
        threshold = float((sizes.mean() + c * sizes.std()).clamp_min(0))
        self.low, self.high = LOW * threshold, HIGH * threshold
        self.register_buffer("mask", torch.ones_like(sizes))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Weights that the layer computes with."""
        # the second part is a constant for the gradient
        return weight + (weight * self.mask - weight).detach()

    @torch.no_grad()
    def update(self, weight: torch.Tensor) -> None:
        """Prune what is below the lower threshold, splice what is above the upper one (equation 4)."""
        sizes = weight.abs()
        self.mask.masked_fill_(sizes < self.low, 0.0).masked_fill_(sizes > self.high, 1.0)


def train_with_surgery(
    model: nn.Module,
    batches: Batches,
    c: float,
    epochs: int,
    rate: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a copy of a network together with masks of its linear and convolution layers, by Adam.

    Parameters
    ----------
    model : nn.Module
        Usually trained. It stays as it is.
    batches : Batches
    c : float
        Of `Masked`.
    epochs : int
    rate : float
        At the beginning; it decays to zero by a cosine.
    seed : int
        Of the steps after which masks are looked at.
    progress : callable, optional
        Called with the epoch, from 1, and its mean loss.

    Returns
    -------
    nn.Module
        Plain, with the masks multiplied in.
    dict
        "extra", the entries of the masks; "spliced", how often a pruned weight came back.

    Raises
    ------
    ValueError, FloatingPointError
        As `descend`.
    """
    made = copy.deepcopy(model)
    layers = [module for module in made.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Masked(layer.weight, c))
    found = [_parametrised(layer) for layer in layers]
    about = {"extra": sum(masked.mask.numel() for masked, _ in found), "spliced": 0}
    steps, random = len(batches) * epochs, np.random.default_rng(seed)
    optimizer = torch.optim.Adam(made.parameters(), rate)
    count = 0

    def after_step(*_: Any) -> None:
        nonlocal count
        count += 1
        if random.random() < (1 + DECAY * count) ** -POWER:
            for masked, weight in found:
                before = masked.mask.clone()
                masked.update(weight)
                about["spliced"] += int((masked.mask > before).sum())

    handle = optimizer.register_step_post_hook(after_step)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    descend(made, batches, epochs, optimizer, schedule=schedule, progress=progress)
    handle.remove()
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return made.eval(), about


def _parametrised(layer: Any) -> tuple[Masked, nn.Parameter]:
    """The parametrisation of a layer's weight, and the weight behind it."""
    return layer.parametrizations.weight[0], layer.parametrizations.weight.original
