"""The loss between two trained networks, and around one: instability, random directions, norms.

Watson et al., "Inference and Interference", Definition 2.3 and section 4.1.2, after Frankle et al. (2020). The
instability of two networks is the largest loss on the straight line between their parameters minus the MEAN of the
losses at its ends; it is about zero if both are on the same floor. Random directions are as the paper has them: normal
vectors over all parameters, scaled to one length, without a norm for each filter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from nettrim.privacy.dp_sgd import refuse_batch_norm, seeded

__all__ = ["Directions", "distance", "instability", "interpolate", "mean_loss", "norm", "random_directions"]

#: points of a line, its ends among them (Frankle et al. 2020)
POINTS = 30
#: samples that go through a network at once
_CHUNK = 1000

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Directions:
    """Losses around a network.

    Attributes
    ----------
    radii : (r,) array
        Distances from the network, in the unit of its parameters.
    losses : (count, r) array
        Along each direction.
    cosine : float
        Largest absolute cosine of two of the directions; NaN for a single one.
    """

    radii: np.ndarray
    losses: np.ndarray
    cosine: float


def interpolate(
    first: nn.Module,
    second: nn.Module,
    inputs: np.ndarray,
    labels: np.ndarray,
    points: int = POINTS,
    loss: Loss = nn.functional.cross_entropy,
) -> np.ndarray:
    """The loss of ``(1 - alpha) first + alpha second`` at evenly spaced alphas from 0 to 1.

    Parameters
    ----------
    first, second : nn.Module
        Of the same kind, without batch norms, whose statistics would be neither's. Evaluation mode is used, and the
        modes are put back.
    inputs, labels : array, samples first
    points : int
        At least 2.
    loss : callable
        ``loss(outputs, labels)``, the mean over the samples.

    Returns
    -------
    (points,) float64 array

    Raises
    ------
    ValueError
        Networks of different parameters, a batch norm, or fewer than two points.
    """
    shapes = [[(name, p.shape) for name, p in model.named_parameters()] for model in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError("first and second must have parameters of the same names and shapes")
    if points < 2:
        raise ValueError(f"points must be at least 2; got {points!r}")
    start, end = _vector(first), _vector(second)
    alphas = np.linspace(0, 1, points)
    return np.array([mean_loss(first, inputs, labels, loss, (1 - a) * start + a * end) for a in alphas])


def instability(losses: np.ndarray | Sequence[float]) -> float:
    """The largest loss of a line minus the mean of those at its ends (Definition 2.3).

    >>> from nettrim.privacy.landscape import instability
    >>> instability([1.0, 5.0, 3.0])
    3.0
    """
    values = np.asarray(losses, np.float64)
    return float(values.max() - (values[0] + values[-1]) / 2)


def random_directions(
    model: nn.Module,
    inputs: np.ndarray,
    labels: np.ndarray,
    radii: Sequence[float] = (15.0,),
    count: int = 100,
    seed: int = 0,
    loss: Loss = nn.functional.cross_entropy,
) -> Directions:
    """The loss at distances from a network, along random directions.

    Parameters
    ----------
    model : nn.Module
        Without batch norms.
    inputs, labels : array, samples first
    radii : sequence of float
        Euclidean distances over all parameters; the paper's is 15.
    count : int
        Of directions, at least 1.
    seed : int
    loss : callable
        ``loss(outputs, labels)``, the mean over the samples.

    Returns
    -------
    Directions

    Raises
    ------
    ValueError
        A batch norm, or `count` below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count!r}")
    start = _vector(model)
    drawn = torch.randn(count, len(start), generator=seeded(seed, "directions")).to(start.device)
    drawn /= torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
    losses = [[mean_loss(model, inputs, labels, loss, start + r * d) for r in radii] for d in drawn]
    cosines = (drawn @ drawn.T - torch.eye(count, device=drawn.device)).abs()
    cosine = float(cosines.max()) if count > 1 else float("nan")
    return Directions(np.asarray(radii, np.float64), np.array(losses), cosine)


def mean_loss(
    model: nn.Module,
    inputs: np.ndarray,
    labels: np.ndarray,
    loss: Loss = nn.functional.cross_entropy,
    parameters: torch.Tensor | None = None,
) -> float:
    """The mean loss over samples in evaluation mode, with a model's own parameters or others.

    Parameters
    ----------
    model : nn.Module
        Its mode is put back.
    inputs, labels : array, samples first
    loss : callable
        ``loss(outputs, labels)``, the mean over the samples.
    parameters : tensor (d,), optional
        All parameters, one after the other, in the model's order.

    Returns
    -------
    float
    """
    values = None if parameters is None else _named(model, parameters)
    device = next(model.parameters()).device
    training, total = model.training, 0.0
    model.eval()
    with torch.no_grad():
        for k in range(0, len(inputs), _CHUNK):
            x = torch.from_numpy(inputs[k : k + _CHUNK]).to(device)
            y = torch.from_numpy(labels[k : k + _CHUNK]).to(device)
            made = model(x) if values is None else functional_call(model, values, (x,))
            total += len(x) * float(loss(made, y))
    model.train(training)
    return total / len(inputs)


def norm(model: nn.Module) -> float:
    """Euclidean norm of all parameters: the distance from the origin."""
    return float(torch.linalg.vector_norm(_vector(model), dtype=torch.float64))


def distance(first: nn.Module, second: nn.Module) -> float:
    """Euclidean distance of the parameters of two models of the same kind."""
    return float(torch.linalg.vector_norm(_vector(first) - _vector(second), dtype=torch.float64))


def _vector(model: nn.Module) -> torch.Tensor:
    refuse_batch_norm(model)
    return parameters_to_vector([p.detach() for p in model.parameters()])


def _named(model: nn.Module, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    named, at = {}, 0
    for name, p in model.named_parameters():
        named[name] = vector[at : at + p.numel()].view_as(p)
        at += p.numel()
    return named
