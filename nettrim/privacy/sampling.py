"""Poisson sampling, and independent streams of random numbers for one seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["PoissonBatches", "seeded"]


@dataclass
class PoissonBatches:
    """Batches in which every sample is, each time, with the same probability, independently of the others.

    Attributes
    ----------
    inputs, labels : array, samples first
    expected : int
        Mean size of a batch; a batch may be empty.
    seed : int

    Raises
    ------
    ValueError
        `expected` is not between 1 and the number of samples.
    """

    inputs: np.ndarray
    labels: np.ndarray
    expected: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.expected <= len(self.inputs):
            raise ValueError(f"expected must be between 1 and the {len(self.inputs)} samples; got {self.expected}")
        self._x, self._y = torch.from_numpy(self.inputs), torch.from_numpy(self.labels)
        self._random = seeded(self.seed, "samples")
        self._done = self._first = 0

    @property
    def rate(self) -> float:
        """The probability that a sample is in a batch."""
        return self.expected / len(self._x)

    def __len__(self) -> int:
        """Batches of an epoch, the nearest whole number to samples over expected size."""
        return round(len(self._x) / self.expected)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        first, self._first = self._first, 0
        for k in range(first, len(self)):
            # in float64: the probability is then exact to far more digits than epsilon has
            drawn = torch.rand(len(self._x), generator=self._random, dtype=torch.float64) < self.rate
            self._done = (k + 1) % len(self)
            yield self._x[drawn], self._y[drawn]

    def state(self) -> tuple[int, dict[str, torch.Tensor]]:
        """How many batches of an epoch have been given, and what the next ones are drawn from."""
        return self._done, {"now": self._random.get_state()}

    def go_on(self, done: int, states: Mapping[str, torch.Tensor]) -> None:
        """Let the next iteration begin where `state` was taken."""
        self._random.set_state(states["now"])
        self._done = self._first = done


def seeded(seed: int, stream: str) -> torch.Generator:
    """A generator for one use of a seed: streams of other names, or other seeds, are independent of it."""
    state = np.random.SeedSequence([seed, *stream.encode()]).generate_state(1, np.uint64)[0]
    # torch takes signed numbers
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
