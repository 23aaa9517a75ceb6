"""Patterns of sparsity: how many weights may stay, and which, given a score for each.

A pattern turns scores, larger for what should stay, into a mask with exactly its count of True. That is the Euclidean
projection onto the pattern when the scores are absolute values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["NofM", "PerNeuron", "Sparsity", "Unstructured", "global_counts", "make", "of_pattern", "project"]


class Sparsity(Protocol):
    """What every pattern can do."""

    def count(self, shape: tuple[int, int]) -> int:
        """Weights that stay of an array of this shape; ValueError if the pattern does not fit it."""

    def mask(self, scores: np.ndarray) -> np.ndarray:
        """Bool array with `count` entries True, where the (N, M) scores are largest."""

    def block(self, scores: np.ndarray, before: int, total: int) -> np.ndarray:
        """The mask of rows ``before : before + len(scores)`` of `total`, when rows are decided a block at a time."""


@dataclass(frozen=True)
class Unstructured:
    """The `nnz` largest of the whole array."""

    nnz: int

    def count(self, shape: tuple[int, int]) -> int:
        """Weights that stay of an array of this shape; ValueError if the pattern does not fit it."""
        if not 0 <= self.nnz <= shape[0] * shape[1]:
            raise ValueError(f"nnz must be between 0 and the {shape[0] * shape[1]} weights; got {self.nnz}")
        return self.nnz

    def mask(self, scores: np.ndarray) -> np.ndarray:
        """Where the scores are largest: exactly `count` entries are True."""
        return _largest(scores.ravel(), self.count(scores.shape)).reshape(scores.shape)

    def block(self, scores: np.ndarray, before: int, total: int) -> np.ndarray:
        """The mask of some rows, `before` to ``before + len(scores)`` of `total`, decided before the others."""
        return Unstructured(_share(self.nnz, before, len(scores), total)).mask(scores)


@dataclass(frozen=True)
class PerNeuron:
    """The `nnz` largest of every column: as many inputs for every neuron."""

    nnz: int

    def count(self, shape: tuple[int, int]) -> int:
        """Weights that stay of an array of this shape; ValueError if the pattern does not fit it."""
        if not 0 <= self.nnz <= shape[0]:
            raise ValueError(f"nnz of a neuron must be between 0 and its {shape[0]} inputs; got {self.nnz}")
        return self.nnz * shape[1]

    def mask(self, scores: np.ndarray) -> np.ndarray:
        """Where the scores are largest: exactly `count` entries are True."""
        self.count(scores.shape)
        mask = np.zeros(scores.shape, bool)
        if self.nnz:
            kept = np.argpartition(scores, len(scores) - self.nnz, axis=0)[len(scores) - self.nnz :]
            np.put_along_axis(mask, kept, True, axis=0)
        return mask

    def block(self, scores: np.ndarray, before: int, total: int) -> np.ndarray:
        """The mask of some rows, `before` to ``before + len(scores)`` of `total`, decided before the others."""
        return PerNeuron(_share(self.nnz, before, len(scores), total)).mask(scores)


@dataclass(frozen=True)
class NofM:
    """At most `n` of every `m` consecutive inputs of a neuron, as hardware for 2:4 sparsity wants it."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise ValueError(f"a pattern n:m needs 0 < n <= m; got {self.n}:{self.m}")

    def count(self, shape: tuple[int, int]) -> int:
        """Weights that stay of an array of this shape; ValueError if the pattern does not fit it."""
        if shape[0] % self.m:
            raise ValueError(f"a pattern {self.n}:{self.m} needs a multiple of {self.m} inputs; got {shape[0]}")
        return shape[0] // self.m * self.n * shape[1]

    def mask(self, scores: np.ndarray) -> np.ndarray:
        """Where the scores are largest: exactly `count` entries are True."""
        self.count(scores.shape)
        grouped = scores.reshape(-1, self.m, scores.shape[1])
        mask = np.zeros(grouped.shape, bool)
        kept = np.argpartition(grouped, self.m - self.n, axis=1)[:, self.m - self.n :] if self.n < self.m else None
        if kept is None:
            mask[:] = True
        else:
            np.put_along_axis(mask, kept, True, axis=1)
        return mask.reshape(scores.shape)

    def block(self, scores: np.ndarray, before: int, total: int) -> np.ndarray:
        """The mask of some rows, `before` to ``before + len(scores)`` of `total`, decided before the others."""
        return self.mask(scores)


def make(
    shape: tuple[int, int],
    density: float | None = None,
    nnz: int | None = None,
    per: str = "layer",
    pattern: str | None = None,
) -> Unstructured | PerNeuron | NofM:
    """The pattern for an (N, M) array.

    Parameters
    ----------
    shape : (int, int)
    density : float, optional
        Fraction of weights that stay, in [0, 1].
    nnz : int, optional
        Or their number; of a neuron with ``per="neuron"``. Give one of density, nnz and pattern.
    per : {"layer", "neuron"}
        Whether the count is for the whole array or the same for every neuron.
    pattern : str, optional
        "n:m", such as "2:4".

    Returns
    -------
    Unstructured, PerNeuron or NofM

    Raises
    ------
    TypeError, ValueError
        A wrong number; the message names the argument.
    """
    if sum(value is not None for value in (density, nnz, pattern)) != 1:
        raise ValueError("give one of density, nnz and pattern")
    if per not in ("layer", "neuron"):
        raise ValueError(f"per must be 'layer' or 'neuron'; got {per!r}")
    made: Unstructured | PerNeuron | NofM
    if pattern is not None:
        made = of_pattern(pattern)
    else:
        size = shape[0] * (shape[1] if per == "layer" else 1)
        if nnz is None:
            if isinstance(density, bool) or not isinstance(density, (int, float, np.integer, np.floating)):
                raise TypeError(f"density must be a number; got {density!r}")
            if not 0 <= density <= 1:
                raise ValueError(f"density must be in [0, 1]; got {density}")
            nnz = round(float(density) * size)
        elif isinstance(nnz, bool) or not isinstance(nnz, (int, np.integer)):
            raise TypeError(f"nnz must be a whole number; got {nnz!r}")
        made = Unstructured(int(nnz)) if per == "layer" else PerNeuron(int(nnz))
    made.count(shape)
    return made


def of_pattern(pattern: str) -> NofM:
    """The pattern that "n:m" stands for.

    Raises
    ------
    TypeError, ValueError
        Not a string of that form.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a string such as '2:4'; got {pattern!r}")
    n, colon, m = pattern.partition(":")
    if not (colon and n.isdecimal() and m.isdecimal()):
        raise ValueError(f"pattern must be of the form 'n:m', such as '2:4'; got {pattern!r}")
    return NofM(int(n), int(m))


def project(W: np.ndarray, pattern: Sparsity | str, bias: bool = False) -> np.ndarray:
    """The nearest weights (Frobenius) that have a pattern; a bias, the last row, is left as it is.

    >>> import numpy as np
    >>> from nettrim.sparsity import project
    >>> project(np.array([[3.0], [1.0], [-2.0], [0.5]]), "2:4").ravel()
    array([ 3.,  0., -2.,  0.])

    Parameters
    ----------
    W : (N, M) array
    pattern : Sparsity or str
        Or "n:m".
    bias : bool

    Returns
    -------
    (N, M) array

    Raises
    ------
    TypeError, ValueError
        A wrong pattern, or one that does not fit the shape.
    """
    chosen = of_pattern(pattern) if isinstance(pattern, str) else pattern
    projected = W.copy()
    inputs = W.shape[0] - bias
    projected[:inputs][~chosen.mask(np.abs(W[:inputs]))] = 0
    return projected


def global_counts(scores: Sequence[np.ndarray], nnz: int) -> list[int]:
    """How many of the `nnz` largest of all arrays together lie in each.

    Parameters
    ----------
    scores : sequence of arrays
        One for each layer, comparable between layers.
    nnz : int

    Returns
    -------
    list of int

    Raises
    ------
    ValueError
        `nnz` is negative or more than there are.
    """
    joined = np.concatenate([s.ravel() for s in scores])
    if not 0 <= nnz <= joined.size:
        raise ValueError(f"nnz must be between 0 and the {joined.size} weights; got {nnz}")
    mask, ends = _largest(joined, nnz), np.cumsum([s.size for s in scores])
    return [int(part.sum()) for part in np.split(mask, ends[:-1])]


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    mask = np.zeros(values.size, bool)
    if k:
        mask[np.argpartition(values, values.size - k)[values.size - k :]] = True
    return mask


def _share(count: int, before: int, rows: int, total: int) -> int:
    """What of `count` falls to these rows, so that the shares of all blocks add up to it."""
    return count * (before + rows) // total - count * before // total
