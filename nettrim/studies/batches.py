"""Batches of samples in an order that a seed decides, and what is done to images before they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

__all__ = ["Augment", "Batches", "flipped_and_shifted"]

#: what is done to a batch of images before it is used
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass
class Batches:
    """Batches (inputs, labels) in a new order every epoch, the same for the same seed; all are of the same size.

    Attributes
    ----------
    inputs, labels : array
        Targets of any kind in place of labels.
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
        self._done = self._first = 0
        self._begun = self._random.get_state()

    def __len__(self) -> int:
        return len(self._x) // self.size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        now, first, self._first = self._random.get_state(), self._first, 0
        if first:
            # the order is the epoch's, and is drawn as it was
            self._random.set_state(self._begun)
        else:
            self._begun = now
        order = torch.randperm(len(self._x), generator=self._random)
        if first:
            self._random.set_state(now)
        for k, rows in enumerate(order[first * self.size : len(self) * self.size].split(self.size), first):
            x = self._x[rows]
            x = x if self.augment is None else self.augment(x, self._random)
            self._done = (k + 1) % len(self)
            yield x, self._y[rows]

    def state(self) -> tuple[int, dict[str, torch.Tensor]]:
        """How many batches of an epoch have been given, and what the next ones are drawn from."""
        return self._done, {"now": self._random.get_state(), "begun": self._begun}

    def go_on(self, done: int, states: Mapping[str, torch.Tensor]) -> None:
        """Let the next iteration begin where `state` was taken."""
        self._begun = states["begun"]
        self._random.set_state(states["now"])
        self._done = self._first = done


def flipped_and_shifted(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Images, each mirrored or not and shifted by up to four pixels, zeros coming in."""
    count, _, height, width = x.shape
    x = torch.where(torch.rand(count, 1, 1, 1, generator=random) < 0.5, x.flip(3), x)
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    top, left = (torch.randint(0, 9, (count, 1), generator=random) for _ in range(2))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    each = torch.arange(count)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
