"""How much each weight of a layer matters: its largest share of the neuron's output over samples.

The weights of a neuron fall into two halves, the positive and the negative ones. On non-negative inputs each half has a
non-negative output, z+ and z-, and the neuron's is their difference. A weight's share of its own half is

    g_j(x) = |w_j| x_j / sum_k |w_k| x_k,    over the k whose weights have the same sign,

and its importance s_j is the largest g_j(x) over samples (paper 001, Algorithms 1 and 2; Baykal et al. 2019b).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "CDF_EXPONENT",
    "CDF_RATIO",
    "Assumption",
    "check_assumption",
    "draw_samples",
    "halves",
    "importances",
    "missed",
    "samples_needed",
    "spread",
    "totals",
]

#: K and K' of Assumption A.3, as the paper sets them
CDF_RATIO, CDF_EXPONENT = 2.0, 3.0


def halves(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positive weights and the sizes of the negative ones, zero elsewhere, float64 (N, M) each."""
    W = W.astype(np.float64, copy=False)
    return np.maximum(W, 0), np.maximum(-W, 0)


def importances(W: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Importance of every weight within its half (paper 001, Algorithms 1 and 2, line 1).

    Parameters
    ----------
    W : (N, M) array
        Inputs by outputs; a bias is a row, whose input is 1.
    X : (N, P) array
        Non-negative inputs, a column a sample.

    Returns
    -------
    (N, M) float64 array in [0, 1]
        Zero for weights that are zero or whose input is.

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    check_layer(W, X)
    found = np.zeros(W.shape)
    for _, m, rows, sizes, X64, inverse in _neurons(W, X):
        largest = np.empty(rows.size)
        _kernels().largest(X64, rows, inverse, largest)
        found[rows, m] = sizes * largest
    # rounding of the sum
    return np.minimum(found, 1)


def totals(W: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Sums S of the importances, (2, M): of each neuron's positive and of its negative weights."""
    return np.stack([np.where(half > 0, importance, 0).sum(0) for half in halves(W)])


def spread(W: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the two halves, z+ and z-, (M, P) each.

    (z+ + z-) / |z+ - z-| is the factor Delta by which signed weights make a relative error larger (paper 001, A.2).
    """
    positive, negative = halves(W)
    X = X.astype(np.float64, copy=False)
    return positive.T @ X, negative.T @ X


def samples_needed(weights: int, delta: float, exponent: float = CDF_EXPONENT) -> int:
    """Samples that importances are to be taken over, |S| = ceil(K' log(2 rho / delta)) (paper 001, Theorem A.1).

    Parameters
    ----------
    weights : int
        rho, the non-zero weights of the layer.
    delta : float
        Probability of failure, in (0, 1).
    exponent : float
        K'.
    """
    check_delta(delta)
    return max(1, int(np.ceil(exponent * np.log(2 * max(weights, 1) / delta))))


def missed(weights: int, samples: int, exponent: float = CDF_EXPONENT) -> float:
    """Probability that some weight's largest share is more than K times its importance, at most, under Assumption A.3.

    For one weight all of |S| samples stay below M_j / K with probability exp(-|S| / K') at most; with
    |S| = ceil(K' log(2 rho / delta)) the rho weights of a layer add up to delta / 2. It is one event for all neurons
    and all inputs.

    Parameters
    ----------
    weights : int
        rho.
    samples : int
        |S|.
    exponent : float
        K'.
    """
    return float(min(1.0, weights * np.exp(-samples / exponent)))


def draw_samples(X: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` columns of X, drawn without replacement.

    Raises
    ------
    ValueError
        X has fewer.
    """
    if not 1 <= count <= X.shape[1]:
        raise ValueError(f"samples must be between 1 and the {X.shape[1]} columns of X; got {count}")
    return X[:, np.sort(rng.choice(X.shape[1], count, replace=False))]


@dataclass(frozen=True)
class Assumption:
    """Assumption A.3 on samples: F_j(M_j / K) <= exp(-1 / K'), with F_j the distribution of g_j and M_j its maximum.

    Attributes
    ----------
    violated : (N, M) bool array
        Weights for which it does not hold.
    weights : (2,) int array
        Non-zero weights that are positive, and that are negative.
    broken : (2,) int array
        Those of them in `violated`.
    samples : int
    """

    violated: np.ndarray
    weights: np.ndarray
    broken: np.ndarray
    samples: int

    @property
    def share(self) -> float:
        """Part of the non-zero weights for which it does not hold."""
        return float(self.broken.sum() / max(int(self.weights.sum()), 1))

    @property
    def holds(self) -> bool:
        """Whether it holds for every weight."""
        return not self.violated.any()


def check_assumption(
    W: np.ndarray, X: np.ndarray, ratio: float = CDF_RATIO, exponent: float = CDF_EXPONENT
) -> Assumption:
    """Whether the samples meet the assumption that Theorems A.1 and A.2 rest on (paper 001, Assumption A.3).

    Weights whose input is always zero are passed over. The distribution is that of the samples, so with few of them the
    answer is rough. For real weights it mostly fails: the largest share of a weight is far above its usual ones.

    Parameters
    ----------
    W : (N, M) array
    X : (N, P) array
        Non-negative inputs, as many as there are.
    ratio, exponent : float
        K and K'.

    Returns
    -------
    Assumption
    """
    check_layer(W, X)
    check_positive("ratio", ratio)
    check_positive("exponent", exponent)
    limit = np.exp(-1 / exponent)
    violated = np.zeros(W.shape, bool)
    weights, broken = np.zeros(2, int), np.zeros(2, int)
    for k, m, rows, _, X64, inverse in _neurons(W, X):
        largest = np.empty(rows.size)
        within = np.empty(rows.size, np.int64)
        _kernels().largest(X64, rows, inverse, largest)
        _kernels().count_within(X64, rows, inverse, largest / ratio, within)
        # of an input that is always zero there is nothing to assume
        wrong = (within / X.shape[1] > limit) & (largest > 0)
        violated[rows, m] = wrong
        weights[k] += rows.size
        broken[k] += int(wrong.sum())
    return Assumption(violated, weights, broken, X.shape[1])


def _neurons(W: np.ndarray, X: np.ndarray) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """For each half (0 positive, 1 negative) of each neuron: its rows and their sizes, X, and one over its outputs."""
    X64 = np.ascontiguousarray(X, np.float64)
    for k, half in enumerate(halves(W)):
        outputs = half.T @ X64
        inverse = np.divide(1, outputs, out=np.zeros_like(outputs), where=outputs > 0)
        for m in range(W.shape[1]):
            rows = np.flatnonzero(half[:, m])
            if rows.size:
                yield k, m, rows, half[rows, m], X64, inverse[m]


def _kernels() -> Any:
    # Numba takes longer to import than most callers of this package need
    from nettrim.kernels import shares

    return shares


def check_layer(W: np.ndarray, X: np.ndarray) -> None:
    """Refuse what is not a layer with non-negative inputs; the message names the argument."""
    for name, a in (("W", W), ("X", X)):
        if not isinstance(a, np.ndarray) or a.ndim != 2 or a.dtype.kind != "f":
            raise TypeError(f"{name} must be a matrix of a floating dtype")
        if not a.size:
            raise ValueError(f"{name} is empty")
        if not np.isfinite(a).all():
            raise ValueError(f"{name} contains NaN or inf")
    if len(W) != len(X):
        raise ValueError(f"W and X must have a row for each input: W is {W.shape}, X is {X.shape}")
    if (X < 0).any():
        raise ValueError("X must be non-negative, as outputs of ReLUs and pixels are: the theorems rest on it")


def check_delta(delta: float) -> None:
    """Refuse what is not a probability of failure."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1); got {delta}")


def check_positive(name: str, value: float) -> None:
    """Refuse what is not a positive finite number."""
    if not 0 < value < np.inf:
        raise ValueError(f"{name} must be positive and finite; got {value}")
