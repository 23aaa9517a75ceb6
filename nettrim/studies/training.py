"""Training as the studies do it: Adam with weight decay, a rate that decays to zero by a cosine, seeded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

__all__ = ["Batches", "accuracy", "flipped_and_shifted", "train"]

#: what is done to a batch of images before it is used
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass
class Batches:
    """Batches (inputs, labels) in a new order every epoch, the same for the same seed; all are of the same size.

    Attributes
    ----------
    inputs, labels : array
    size : int
    seed : int
    augment : callable, optional
        Makes a batch's inputs from what it is given, and a generator.
    """

    inputs: np.ndarray
    labels: np.ndarray
    size: int = 128
    seed: int = 0
    augment: Augment | None = None

    def __post_init__(self) -> None:
        self._x, self._y = torch.from_numpy(self.inputs), torch.from_numpy(self.labels)
        self._random = torch.Generator().manual_seed(self.seed)

    def __len__(self) -> int:
        return len(self._x) // self.size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self._x), generator=self._random)
        for rows in order[: len(self) * self.size].split(self.size):
            x = self._x[rows]
            yield x if self.augment is None else self.augment(x, self._random), self._y[rows]


def flipped_and_shifted(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Images, each mirrored or not and shifted by up to four pixels, zeros coming in."""
    count, _, height, width = x.shape
    x = torch.where(torch.rand(count, 1, 1, 1, generator=random) < 0.5, x.flip(3), x)
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    top, left = (torch.randint(0, 9, (count, 1), generator=random) for _ in range(2))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    each = torch.arange(count)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def train(
    model: nn.Module,
    batches: Batches,
    epochs: int,
    rate: float = 1e-3,
    weight_decay: float = 0.0,
    progress: Callable[[int, float], object] | None = None,
) -> list[float]:
    """Train a classifier with Adam (AdamW if weights decay).

    Parameters
    ----------
    model : nn.Module
        Left in evaluation mode. Random numbers that it draws, as for dropout, come from torch's global generator.
    batches : Batches
    epochs : int
    rate : float
        At the beginning.
    weight_decay : float
        Decoupled from the gradient.
    progress : callable, optional
        Called with the epoch, from 1, and its mean loss.

    Returns
    -------
    list of float
        Mean loss of each epoch.
    """
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    losses = []
    model.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for x, y in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        losses.append(total / len(batches))
        if progress is not None:
            progress(epoch, losses[-1])
    model.eval()
    return losses


def accuracy(model: nn.Module, inputs: np.ndarray, labels: np.ndarray, size: int = 1000) -> float:
    """Fraction of samples that a classifier, in evaluation mode, gets right; its mode is put back."""
    training = model.training
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(x).argmax(1) for x in torch.from_numpy(inputs).split(size)])
    model.train(training)
    return float((found.numpy() == labels).mean())
