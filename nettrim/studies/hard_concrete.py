"""L0 regularisation of neurons by hard-concrete gates (Louizos, Welling & Kingma 2018, arXiv:1712.01312).

A gate z in [0, 1] multiplies a neuron's output. With u uniform on (0, 1) and a learned location ``a``,

    s = sigmoid((log u - log(1 - u) + a) / temperature),    z = min(1, max(0, low + (high - low) s)),

which is 0 and 1 with probabilities above zero and has gradients by ``a``. The loss gets the expected number of gates
that are not 0, times a strength. At test time z is the same function of ``s = sigmoid(a)``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import nn

from nettrim.studies.training import Progress, descend

__all__ = ["Gates", "fold", "neuron_masks", "train_with_gates", "with_gates"]

#: the interval that s is stretched to, and the temperature (section 4 of the paper)
LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
#: keeps the logarithms of the uniform numbers finite
TINY = 1e-6


class Gates(nn.Module):
    """Gates that multiply the last axis: drawn for each sample in training mode, deterministic in evaluation mode.

    Parameters
    ----------
    size : int
        Number of gates.
    start : float
        Every ``sigmoid(a)`` at the beginning, between 0 and 1, but for a little noise that tells the gates apart.
    temperature : float
        Positive; below 1, gates tend to 0 and 1.
    """

    def __init__(self, size: int, start: float = 0.5, temperature: float = TEMPERATURE):
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1; got {size!r}")
        if not 0 < start < 1:
            raise ValueError(f"start must be between 0 and 1; got {start!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be a positive number; got {temperature!r}")
        self.temperature = temperature
        self.location = nn.Parameter(math.log(start / (1 - start)) + 0.01 * torch.randn(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Activations (..., size) times their gates."""
        return x * (self.drawn(x.shape[:-1]) if self.training else self.deterministic())

    def drawn(self, shape: tuple[int, ...] = ()) -> torch.Tensor:
        """Gates (*shape, size) by torch's global generator, with gradients by the locations."""
        u = torch.rand((*shape, len(self.location)), device=self.location.device).clamp(TINY, 1 - TINY)
        return _stretched(torch.sigmoid((torch.logit(u) + self.location) / self.temperature))

    def deterministic(self) -> torch.Tensor:
        """Gates (size,) of the test time (equation 13)."""
        return _stretched(torch.sigmoid(self.location))

    def probability_on(self) -> torch.Tensor:
        """Probabilities (size,) that a drawn gate is not 0 (equation 12)."""
        return torch.sigmoid(self.location - self.temperature * math.log(-LOW / HIGH))

    def probability_open(self) -> torch.Tensor:
        """Probabilities (size,) that a drawn gate is 1: of ``s`` being at least ``(1 - low) / (high - low)``."""
        return torch.sigmoid(self.location - self.temperature * math.log((1 - LOW) / (HIGH - 1)))

    def expected_count(self) -> torch.Tensor:
        """Expected number of drawn gates that are not 0; a scalar with a gradient."""
        return self.probability_on().sum()

    def keep(self, count: int) -> torch.Tensor:
        """Indices, int64 and ascending, of the `count` gates most likely on; of equal ones, the first.

        Raises
        ------
        ValueError
            There are not as many gates, or `count` is negative.
        """
        size = len(self.location)
        if not 0 <= count <= size:
            raise ValueError(f"count must be from 0 to {size}, the number of gates; got {count!r}")
        # by the location, of which the probability is an increasing function that rounds to 1
        order = torch.argsort(self.location.detach(), descending=True, stable=True)
        return order[:count].sort().values


def _stretched(s: torch.Tensor) -> torch.Tensor:
    return (LOW + (HIGH - LOW) * s).clamp(0, 1)


def with_gates(model: nn.Sequential, start: float = 0.5) -> nn.Sequential:
    """A network whose last hidden layer has gates: they stand before the last layer, and the modules are shared.

    Parameters
    ----------
    model : nn.Sequential
        Its last module is the ``nn.Linear`` that the gated neurons feed.
    start : float
        Of the `Gates`.

    Raises
    ------
    TypeError
        The last module is another one, or `model` is.
    """
    last = _last(model)
    gates = Gates(last.in_features, start).to(last.weight.device)
    return nn.Sequential(*list(model)[:-1], gates, last)


def fold(gated: nn.Sequential) -> nn.Sequential:
    """A copy of what `with_gates` made, without the gates: the last layer's weights are times the deterministic ones.

    In evaluation mode its outputs are the same.
    """
    *first, gates, last = copy.deepcopy(list(gated))
    with torch.no_grad():
        cast(nn.Linear, last).weight *= cast(Gates, gates).deterministic()
    return nn.Sequential(*first, last).eval()


def train_with_gates(
    model: nn.Sequential,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    count: int,
    strength: float,
    epochs: int = 10,
    rate: float = 0.1,
    momentum: float = 0.5,
    start: float = 0.5,
    progress: Progress | None = None,
) -> tuple[nn.Sequential, torch.Tensor]:
    """Train a network with gates on its last hidden layer, and choose the neurons that stay.

    No neuron is cut yet. What follows in "When are neural pruning approximation bounds useful?" (2020), appendix B.1,
    is ``sgd(network, batches, masks=neuron_masks(network, kept))``, which cuts the others and trains those that stay.

    Parameters
    ----------
    model : nn.Sequential
        Its last module is the ``nn.Linear`` that the gated neurons feed. It is trained in place, and without its gates
        it is not the network that is returned.
    batches : iterable of (inputs, labels)
    count : int
        Neurons that stay.
    strength : float
        Times the expected number of open gates, added to the cross-entropy.
    epochs : int
    rate, momentum : float
        Of the stochastic gradients.
    start : float
        Of the `Gates`.
    progress : callable, optional
        Called with the epoch, from 1, and its mean loss.

    Returns
    -------
    network : nn.Sequential
        A copy without gates, folded, in evaluation mode.
    kept : bool tensor (neurons,)
        True for the `count` neurons whose gates are most likely on.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        Wrong input, as in `with_gates` and `descend`; more neurons than there are, or a negative strength.
    """
    neurons = _last(model).in_features
    if not 0 <= count <= neurons:
        raise ValueError(f"count must be from 0 to {neurons}, the number of neurons; got {count!r}")
    if not strength >= 0:
        raise ValueError(f"strength must be a number of at least 0; got {strength!r}")
    gated = with_gates(model, start)
    gates = cast(Gates, gated[-2])
    optimizer = torch.optim.SGD(gated.parameters(), rate, momentum)
    descend(gated, batches, epochs, optimizer, penalty=lambda: strength * gates.expected_count(), progress=progress)
    kept = torch.zeros(neurons, dtype=torch.bool)
    kept[gates.keep(count).cpu()] = True
    return fold(gated), kept


def neuron_masks(model: nn.Sequential, kept: torch.Tensor) -> dict[str, torch.Tensor]:
    """Masks for `sgd` that cut neurons of the last hidden layer: what comes in, their biases, and what goes out.

    Parameters
    ----------
    model : nn.Sequential
        Ends with two ``nn.Linear`` and, between them, modules without parameters.
    kept : bool tensor (neurons,)
        True for the neurons that stay.

    Returns
    -------
    dict of str to bool tensor
        By names of parameters.

    Raises
    ------
    TypeError
        The last module with parameters, or the one before it, is not an ``nn.Linear``.
    ValueError
        `kept` is not bool, or not as long as there are neurons.
    """
    last, kept = _last(model), torch.as_tensor(kept)
    neurons = last.in_features
    if kept.dtype != torch.bool or kept.shape != (neurons,):
        found = f"{str(kept.dtype).removeprefix('torch.')} of shape {tuple(kept.shape)}"
        raise ValueError(f"kept must be bool of shape ({neurons},); got {found}")
    names = [name for name, module in model.named_children() if list(module.parameters())]
    hidden = model.get_submodule(names[-2]) if len(names) > 1 else None
    if not isinstance(hidden, nn.Linear):
        raise TypeError("model must have an nn.Linear before its last one, and no other parameters between them")
    masks = {
        f"{names[-2]}.weight": kept[:, None].expand(hidden.weight.shape),
        f"{names[-1]}.weight": kept.expand(last.weight.shape),
    }
    if hidden.bias is not None:
        masks[f"{names[-2]}.bias"] = kept
    return masks


def _last(model: nn.Sequential) -> nn.Linear:
    """The layer that the gated neurons feed."""
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model must be an nn.Sequential that ends with an nn.Linear; got {type(model).__name__}")
    if not isinstance(model[-1], nn.Linear):
        found = type(model[-1]).__name__
        raise TypeError(f"model must be an nn.Sequential that ends with an nn.Linear; got one that ends with {found}")
    return model[-1]
