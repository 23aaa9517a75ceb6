"""Coresets of neurons: sampled by what they can contribute on a ball of inputs, without data (paper 001, Algorithm 3).

A neuron's importance is s_j = max_i |w2_ij| phi(beta ||w1_j||), the most that it adds to any output for an input of
norm beta at most. (The paper's formula lacks the absolute value; without it a neuron whose outgoing weights are all
negative would never be drawn.)

Sources: Mussay et al., "Data-independent neural pruning via coresets" (2020), as restated in paper 001, appendix A.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nettrim.bounds import coresets as bounds
from nettrim.bounds.importance import check_delta, check_positive

__all__ = ["NeuronCoreset", "input_radius", "neuron_importances", "neurons"]

FORMULAS = ("hoeffding", "printed")
#: samples beyond which an error is called out of reach
MOST_DRAWS = 1e15


@dataclass(frozen=True)
class NeuronCoreset:
    """A hidden layer pruned to a coreset of its neurons.

    Attributes
    ----------
    W_out : (H, k) array
        New outgoing weights; rows of neurons that left are zero.
    epsilon : float
        Additive error of every output that the formula states, in the units of the outputs.
    draws : int
    importance : (H,) float64 array
    radius : float
        beta.
    delta : float
    formula : {"hoeffding", "printed"}
    """

    W_out: np.ndarray
    epsilon: float
    draws: int
    importance: np.ndarray
    radius: float
    delta: float
    formula: str

    @property
    def kept(self) -> np.ndarray:
        """Neurons that are left, (H,) bool."""
        return np.asarray(self.W_out.any(axis=1))

    @property
    def total(self) -> float:
        """t, the sum of the importances."""
        return float(self.importance.sum())


def input_radius(X: np.ndarray, bias: bool = False) -> float:
    """beta: the largest norm of a column of X, sqrt(beta^2 + 1) with a bias's input of 1 that X does not hold.

    >>> import numpy as np
    >>> from nettrim.pruners.neuron_coreset import input_radius
    >>> float(input_radius(np.array([[3.0, 0.0], [4.0, 1.0]])))
    5.0
    """
    squares = (X.astype(np.float64, copy=False) ** 2).sum(0)
    return float(np.sqrt(squares.max() + bias))


def neuron_importances(W_in: np.ndarray, W_out: np.ndarray, radius: float) -> np.ndarray:
    """max_i |w2_ij| beta ||w1_j|| of every neuron, (H,) float64 (paper 001, Theorem A.4)."""
    norms = np.linalg.norm(W_in.astype(np.float64, copy=False), axis=0)
    return np.abs(W_out.astype(np.float64, copy=False)).max(axis=1) * radius * norms


def neurons(
    W_in: np.ndarray,
    W_out: np.ndarray,
    radius: float,
    *,
    epsilon: float | None = None,
    count: int | None = None,
    delta: float = 0.5,
    formula: str = "hoeffding",
    constant: float = 1.0,
    seed: int | np.random.Generator = 0,
) -> NeuronCoreset:
    """Sample hidden neurons by importance; their outgoing weights become K_j w2_j / (m q_j) (Algorithm 3).

    Parameters
    ----------
    W_in : (N, H) array
        Weights of the hidden layer, the biases as a row if it has any.
    W_out : (H, k) array
        Weights from it to the outputs, without their bias, which stays.
    radius : float
        beta, the largest norm of an input (`input_radius`).
    epsilon : float, optional
        Additive error of every output. Give epsilon or count.
    count : int, optional
        Neurons to be left, as expected.
    delta : float
        Probability of failure.
    formula : {"hoeffding", "printed"}
        Between epsilon and the samples: for one input, with proven constants; or Theorem A.4 for all inputs of the
        ball as printed, with `constant` (see `nettrim.bounds.coresets.neuron_draws` for what is wrong with it).
    constant : float
        c.
    seed : int or numpy.random.Generator

    Returns
    -------
    NeuronCoreset

    Raises
    ------
    TypeError, ValueError
        Wrong input, or a count that no number of samples reaches; the message names the argument.
    """
    _check(W_in, W_out, radius, delta, formula)
    check_positive("constant", constant)
    if (epsilon is None) == (count is None):
        raise ValueError("give one of epsilon and count")
    rng = np.random.default_rng(seed)
    s = neuron_importances(W_in, W_out, radius)
    total, inputs, outputs = float(s.sum()), W_in.shape[0], W_out.shape[1]
    if total == 0:
        raise ValueError("W_in and W_out: no neuron has an importance, for all are dead or disconnected")
    q = s / total
    if epsilon is None:
        draws = _draws_for(q, count)
    elif formula == "printed":
        draws = bounds.neuron_draws(epsilon, total, inputs, delta, constant)
    else:
        draws = bounds.hoeffding_draws(epsilon, total, outputs, delta)
    if draws > MOST_DRAWS:
        raise ValueError(f"epsilon = {epsilon:g} needs {draws:.1e} samples; at most {MOST_DRAWS:.0e}")
    times = rng.multinomial(int(draws), q)
    factors = np.divide(times, draws * q, out=np.zeros_like(q), where=q > 0)
    stated = (
        bounds.neuron_error(draws, total, inputs, delta, constant)
        if formula == "printed"
        else bounds.hoeffding_error(draws, total, outputs, delta)
    )
    made = (W_out * factors[:, None]).astype(W_out.dtype)
    return NeuronCoreset(made, stated, int(draws), s, radius, delta, formula)


def _draws_for(q: np.ndarray, count: int | None) -> float:
    """The fewest samples that are expected to find `count` different neurons."""
    reachable = int(np.count_nonzero(q))
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
        raise TypeError(f"count must be a whole number; got {count!r}")
    if not 1 <= count <= reachable:
        raise ValueError(
            f"count must be between 1 and the {reachable} neurons with an importance, of {q.size}: no number of "
            f"samples leaves {count}"
        )
    # all of them are never expected for certain
    wanted = count - 0.5 if count == reachable else float(count)
    low, high = 0, 1
    while bounds.expected_unique(high, q) < wanted:
        low, high = high, 2 * high
        if high > 2**50:
            raise ValueError(f"count = {count} needs more than {low:.0e} samples: some neurons are all but never drawn")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bounds.expected_unique(middle, q) >= wanted else (middle, high)
    return float(high)


def _check(W_in: np.ndarray, W_out: np.ndarray, radius: float, delta: float, formula: str) -> None:
    for name, a in (("W_in", W_in), ("W_out", W_out)):
        if not isinstance(a, np.ndarray) or a.ndim != 2 or a.dtype.kind != "f":
            raise TypeError(f"{name} must be a matrix of a floating dtype")
        if not a.size or not np.isfinite(a).all():
            raise ValueError(f"{name} is empty or contains NaN or inf")
    if W_in.shape[1] != len(W_out):
        raise ValueError(f"W_in must have a column for each row of W_out: they are {W_in.shape} and {W_out.shape}")
    if not 0 < radius < np.inf:
        raise ValueError(f"radius must be positive and finite; got {radius}")
    if formula not in FORMULAS:
        raise ValueError(f"formula must be one of {', '.join(FORMULAS)}; got {formula!r}")
    check_delta(delta)
