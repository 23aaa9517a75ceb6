"""Coresets of weights: sampled by their importance, or the least important pruned (paper 001, Algorithms 1 and 2).

Each neuron's positive and negative weights are pruned apart. `epsilon` asks for a relative error of each half
(epsilon-first), `nnz` or `density` for a count (sparsity-first); the error that belongs to the count is then in the
result. The theorems' assumption is not checked here but by `nettrim.bounds.importance.check_assumption`.

Sources: Baykal et al., "SiPPing neural networks" (2019b), as restated in paper 001, appendix A.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nettrim import sparsity
from nettrim.bounds import coresets as bounds
from nettrim.bounds.importance import (
    CDF_RATIO,
    check_delta,
    check_layer,
    check_positive,
    draw_samples,
    importances,
    missed,
    samples_needed,
    spread,
    totals,
)

__all__ = ["WeightCoreset", "deterministic_weights", "random_weights"]

#: samples of a half beyond which a count is called out of reach
MOST_DRAWS = 1e15


@dataclass(frozen=True)
class WeightCoreset:
    """A layer pruned to a coreset of its weights, and the errors that the theorems state.

    Attributes
    ----------
    W : (N, M) array
        Pruned weights, in the dtype of the dense ones.
    epsilon : (2, M) float64 array
        Error of the positive and of the negative half of each neuron, relative to that half's output; what is 1 or
        more says nothing.
    draws : (2, M) int64 array
        Samples of the weights; zeros of the deterministic algorithm.
    importance : (N, M) float64 array
    samples : int
        Of the inputs that importances were taken over.
    delta : float
        What was asked: the probability of failure for one half and one input.
    missed : float
        Probability, under Assumption A.3, that the importances of some weights are too small
        (`nettrim.bounds.importance.missed`): one event for all neurons and all inputs.
    method : {"random weights", "deterministic weights"}
    """

    W: np.ndarray
    epsilon: np.ndarray
    draws: np.ndarray
    importance: np.ndarray
    samples: int
    delta: float
    missed: float
    method: str

    @property
    def nnz(self) -> int:
        """Weights that are left."""
        return int(np.count_nonzero(self.W))

    @property
    def density(self) -> float:
        """Part of the weights, zeros of the dense layer included, that is left."""
        return self.nnz / self.W.size

    @property
    def failure(self) -> float:
        """Probability that the error of any half is larger, at most, under Assumption A.3.

        Of deterministic coresets at all inputs together; of random ones at one input, delta / 2 for the draws of each
        half in use on top of it.
        """
        drawn = int((self.draws > 0).sum())
        return min(1.0, self.missed + bounds.union(self.delta / 2, drawn))

    def errors(self, dense: np.ndarray, X: np.ndarray) -> np.ndarray:
        """Bound on the errors of the outputs, epsilon+ z+ + epsilon- z-, in their units.

        Parameters
        ----------
        dense : (N, M) array
            The dense weights.
        X : (N, P) array

        Returns
        -------
        (M, P) float64 array
        """
        check_layer(dense, X)
        if dense.shape != self.W.shape:
            raise ValueError(f"dense must be of shape {self.W.shape}; got {dense.shape}")
        positive, negative = spread(dense, X)
        return self.epsilon[0][:, None] * positive + self.epsilon[1][:, None] * negative


def random_weights(
    W: np.ndarray,
    X: np.ndarray,
    *,
    epsilon: float | None = None,
    nnz: int | None = None,
    density: float | None = None,
    delta: float = 0.5,
    ratio: float = CDF_RATIO,
    samples: int | None = None,
    seed: int | np.random.Generator = 0,
) -> WeightCoreset:
    """Sample the weights of every half by importance, and weight them so that they are unbiased (Algorithm 1).

    w_j becomes K_j w_j / (m q_j) with K multinomial and q_j = s_j / S.

    For a count, the samples are fixed beforehand, the same error for every half, so that the number of different
    weights is expected to be the count; stopping at the count, as the paper does, biases the weights.

    Parameters
    ----------
    W : (N, M) array
        Dense weights, inputs by outputs; a bias is a row.
    X : (N, P) array
        Non-negative inputs, a column a sample; ones for a bias.
    epsilon : float, optional
        Relative error of every half. Give one of epsilon, nnz and density.
    nnz, density
        Weights to be left, as expected.
    delta : float
        Probability of failure, for one half and one input.
    ratio : float
        K of Assumption A.3.
    samples : int, optional
        Columns of X, drawn at random, to take importances over; default what Theorem A.1 asks for.
    seed : int or numpy.random.Generator

    Returns
    -------
    WeightCoreset

    Raises
    ------
    TypeError, ValueError
        Wrong input, or a count that no number of samples reaches; the message names the argument.
    """
    check_layer(W, X)
    check_delta(delta)
    check_positive("ratio", ratio)
    rng = np.random.default_rng(seed)
    importance, used = _importance(W, X, delta, samples, rng)
    total = totals(W, importance)
    if (epsilon is None) == (nnz is None and density is None):
        raise ValueError("give one of epsilon, nnz and density")
    if epsilon is None:
        epsilon = _error_for(W, importance, total, _count(W, nnz, density), delta, ratio)
    draws = bounds.random_draws(epsilon, total, delta, ratio)
    if draws.max() > MOST_DRAWS:
        raise ValueError(f"epsilon = {epsilon:g} needs {draws.max():.1e} samples of a half; at most {MOST_DRAWS:.0e}")
    draws = draws.astype(np.int64)
    pruned = np.zeros(W.shape)
    for k, sign in enumerate((1, -1)):
        mine = np.where(sign * W > 0, importance, 0)
        for m in np.flatnonzero(total[k]):
            rows = np.flatnonzero(mine[:, m])
            q = mine[rows, m] / mine[rows, m].sum()
            times = rng.multinomial(draws[k, m], q)
            pruned[rows, m] = times * W[rows, m] / (draws[k, m] * q)
    stated = bounds.random_error(draws, total, delta, ratio)
    lost = missed(int(np.count_nonzero(W)), used)
    return WeightCoreset(pruned.astype(W.dtype), stated, draws, importance, used, delta, lost, "random weights")


def deterministic_weights(
    W: np.ndarray,
    X: np.ndarray,
    *,
    epsilon: float | None = None,
    nnz: int | None = None,
    density: float | None = None,
    delta: float = 0.5,
    ratio: float = CDF_RATIO,
    factor: float = bounds.PROVEN_FACTOR,
    samples: int | None = None,
    seed: int | np.random.Generator = 0,
) -> WeightCoreset:
    """Prune the weights of least importance, and leave the others as they are (Algorithm 2).

    For a count, the layer's weights leave in the order of the error that their half then has, so that the largest
    error is as small as it can be.

    Parameters
    ----------
    W, X, epsilon, nnz, density, delta, ratio, samples, seed
        As of `random_weights`; counts are met exactly.
    factor : float
        Of K and the importances that are pruned: 1 is proven, 3 is printed in Theorem A.2.

    Returns
    -------
    WeightCoreset

    Raises
    ------
    TypeError, ValueError
        As `random_weights`.
    """
    check_layer(W, X)
    check_delta(delta)
    check_positive("ratio", ratio)
    check_positive("factor", factor)
    importance, used = _importance(W, X, delta, samples, np.random.default_rng(seed))
    if (epsilon is None) == (nnz is None and density is None):
        raise ValueError("give one of epsilon, nnz and density")
    after = bounds.deterministic_error(_sums_of_smaller(W, importance), ratio, factor)
    there = W != 0
    if epsilon is not None:
        bounds.check_epsilon(epsilon)
        # sums round
        gone = there & (after <= epsilon * (1 + 1e-12))
    else:
        count = _count(W, nnz, density)
        left = int(there.sum())
        if count > left:
            raise ValueError(f"nnz must not exceed the {left} non-zero weights; got {count}")
        order = np.argsort(np.where(there, after, np.inf), axis=None, kind="stable")[: left - count]
        gone = np.zeros(W.shape, bool)
        gone.ravel()[order] = True
    stated = bounds.deterministic_error(totals(W, np.where(gone, importance, 0)), ratio, factor)
    pruned = np.where(gone, 0, W)
    zeros = np.zeros(stated.shape, np.int64)
    lost = missed(int(np.count_nonzero(W)), used)
    return WeightCoreset(pruned, stated, zeros, importance, used, delta, lost, "deterministic weights")


def _importance(
    W: np.ndarray, X: np.ndarray, delta: float, samples: int | None, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    needed = samples_needed(int(np.count_nonzero(W)), delta)
    if samples is None and X.shape[1] < needed:
        raise ValueError(f"X must have {needed} samples (Theorem A.1 at this delta); got {X.shape[1]}")
    used = needed if samples is None else samples
    return importances(W, draw_samples(X, used, rng)), used


def _count(W: np.ndarray, nnz: int | None, density: float | None) -> int:
    return sparsity.make((W.shape[0], W.shape[1]), density, nnz).count((W.shape[0], W.shape[1]))


def _sums_of_smaller(W: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """For each weight the sum of the importances of its half up to its own, in the order of importance."""
    found = np.zeros(W.shape)
    for sign in (1, -1):
        for m in range(W.shape[1]):
            rows = np.flatnonzero(sign * W[:, m] > 0)
            rows = rows[np.argsort(importance[rows, m], kind="stable")]
            found[rows, m] = np.cumsum(importance[rows, m])
    return found


def _error_for(
    W: np.ndarray, importance: np.ndarray, total: np.ndarray, count: int, delta: float, ratio: float
) -> float:
    """The error for which the samples are expected to find `count` different weights."""
    reachable, fewest = int(np.count_nonzero(importance)), int(np.count_nonzero(total))
    if not fewest <= count <= reachable:
        raise ValueError(
            f"nnz must be between {fewest}, one weight for each half of a neuron, and the {reachable} weights with an "
            f"importance, of {W.size} (density {fewest / W.size:.4f} to {reachable / W.size:.4f}): no number of "
            f"samples leaves {count}"
        )
    parts = [
        (total[k, m], importance[sign * W[:, m] > 0, m] / total[k, m])
        for k, sign in enumerate((1, -1))
        for m in np.flatnonzero(total[k])
    ]

    def expected(epsilon: float) -> float:
        return sum(bounds.expected_unique(float(bounds.random_draws(epsilon, S, delta, ratio)), q) for S, q in parts)

    # all that can be drawn are never expected for certain
    wanted = count - 0.5 if count == reachable else float(count)
    low, high = 1e-7, 1e9
    if expected(low) < wanted:
        raise ValueError(
            f"nnz = {count} needs more than {bounds.random_draws(low, total, delta, ratio).max():.0e} samples of a "
            f"half; about {expected(low):.0f} are within reach"
        )
    for _ in range(100):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if expected(middle) >= wanted else (low, middle)
        if high / low < 1 + 1e-9:
            break
    return float(low)
