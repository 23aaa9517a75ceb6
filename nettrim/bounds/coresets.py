"""What sampling a layer's weights or neurons costs and guarantees (paper 001, Theorems A.1, A.2 and A.4).

All errors of weights are relative to the output of the half (positive or negative weights) that was sampled, and hold
for one input drawn at random, with probability 1 - delta. A neuron has two halves and a layer many neurons: that all
of them hold has at least the probability 1 minus the sum (`union`).
"""

from __future__ import annotations

import numpy as np

from nettrim.bounds.importance import CDF_RATIO, check_delta

__all__ = [
    "PRINTED_FACTOR",
    "PROVEN_FACTOR",
    "deterministic_error",
    "expected_unique",
    "hoeffding_draws",
    "hoeffding_error",
    "neuron_draws",
    "neuron_error",
    "random_draws",
    "random_error",
    "union",
]

#: of K and the importances that are pruned: what follows from Assumption A.3, and what Theorem A.2 prints
PROVEN_FACTOR, PRINTED_FACTOR = 1.0, 3.0


def random_error(draws: float | np.ndarray, total: float | np.ndarray, delta: float, ratio: float = CDF_RATIO):  # type: ignore[no-untyped-def]
    """Relative error after `draws` samples of a half's weights (paper 001, Theorem A.1).

    sqrt(s (s + 6)) + s with s = S K log(4 / delta) / (3 m). The theorem asks for an error below 1: what is larger says
    nothing.

    Parameters
    ----------
    draws : float or array
        m; 0 gives inf.
    total : float or array
        S, the sum of the half's importances; 0, of an empty half, gives 0.
    delta : float
        Probability of failure for one half and one input.
    ratio : float
        K of Assumption A.3.

    Returns
    -------
    float array
    """
    check_delta(delta)
    draws, total = np.broadcast_arrays(np.asarray(draws, float), np.asarray(total, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.where(total > 0, total * ratio * np.log(4 / delta) / (3 * draws), 0.0)
    return np.sqrt(s * (s + 6)) + s


def random_draws(epsilon: float, total: float | np.ndarray, delta: float, ratio: float = CDF_RATIO):  # type: ignore[no-untyped-def]
    """Samples of a half's weights for a relative error: the inverse of `random_error`, rounded up.

    m = S K log(4 / delta) (6 + 2 epsilon) / (3 epsilon^2).

    Parameters
    ----------
    epsilon : float
        Relative error, positive.
    total, delta, ratio
        As of `random_error`.

    Returns
    -------
    float array of whole numbers
    """
    check_delta(delta)
    check_epsilon(epsilon)
    exact = np.asarray(total, float) * ratio * np.log(4 / delta) * (6 + 2 * epsilon) / (3 * epsilon**2)
    return np.ceil(exact * (1 - 1e-12))


def deterministic_error(pruned: float | np.ndarray, ratio: float = CDF_RATIO, factor: float = PROVEN_FACTOR):  # type: ignore[no-untyped-def]
    """Relative error after pruning weights whose importances sum to `pruned` (paper 001, Theorem A.2).

    Derivation: by Assumption A.3 and |S| samples, with probability 1 - delta / 2 no share of any weight exceeds
    K s_j, so that what is left out is at most K sum s_j of the output. The paper prints three times that.

    Parameters
    ----------
    pruned : float or array
    ratio : float
        K.
    factor : float
        1 for what is proven, 3 for what is printed.
    """
    return factor * ratio * np.asarray(pruned, float)


def neuron_draws(epsilon: float, total: float, inputs: int, delta: float, constant: float = 1.0) -> float:
    """Samples of neurons for an additive error on all inputs of the ball, as printed (paper 001, Theorem A.4).

    m = (c t / epsilon^2) (d log t + log(1 / delta)), rounded up. The constant c is "sufficiently large" and not given.
    Note that this is not invariant to scale: a network whose outputs are all alpha times as large, and an error alpha
    times as large, is the same problem, but needs about 1 / alpha of the samples by this formula. So it cannot hold
    with one c for all networks, and `hoeffding_draws` is the count to trust.

    Parameters
    ----------
    epsilon : float
        In the units of the outputs, positive.
    total : float
        t, the sum of the neurons' importances.
    inputs : int
        d.
    delta : float
    constant : float
        c.

    Raises
    ------
    ValueError
        d log t + log(1 / delta) is not positive: the formula says nothing.
    """
    check_delta(delta)
    check_epsilon(epsilon)
    return float(np.ceil(constant * total / epsilon**2 * _complexity(total, inputs, delta) * (1 - 1e-12)))


def neuron_error(draws: float, total: float, inputs: int, delta: float, constant: float = 1.0) -> float:
    """Additive error after `draws` samples of neurons: the inverse of `neuron_draws`."""
    check_delta(delta)
    return float(np.sqrt(constant * total * _complexity(total, inputs, delta) / draws)) if draws > 0 else float("inf")


def _complexity(total: float, inputs: int, delta: float) -> float:
    value = inputs * np.log(total) - np.log(delta) if total > 0 else -np.inf
    if value <= 0:
        raise ValueError(
            f"total must be so large that d log t + log(1 / delta) is positive; got t = {total:g} and d = {inputs}"
        )
    return float(value)


def hoeffding_draws(epsilon: float, total: float, outputs: int, delta: float) -> float:
    """Samples of neurons for an additive error of every output at one input, by Hoeffding's inequality.

    m = 2 t^2 log(2 k / delta) / epsilon^2, rounded up.

    Derivation: a sample contributes w2_ij phi(w1_j . x) / q_j to output i, with q_j = s_j / t. On the ball
    |w2_ij| phi(w1_j . x) <= s_j, so that it lies in [-t, t]; k outputs share delta.

    Parameters
    ----------
    epsilon : float
        In the units of the outputs, positive.
    total : float
        t.
    outputs : int
        k.
    delta : float
    """
    check_delta(delta)
    check_epsilon(epsilon)
    return float(np.ceil(2 * total**2 * np.log(2 * outputs / delta) / epsilon**2 * (1 - 1e-12)))


def hoeffding_error(draws: float, total: float, outputs: int, delta: float) -> float:
    """Additive error after `draws` samples of neurons: the inverse of `hoeffding_draws`."""
    check_delta(delta)
    return float(total * np.sqrt(2 * np.log(2 * outputs / delta) / draws)) if draws > 0 else float("inf")


def expected_unique(draws: float, probabilities: np.ndarray) -> float:
    """How many different outcomes `draws` samples are expected to have, sum_j 1 - (1 - q_j)^m."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # of a certain outcome it is -inf, which any draw leaves so
        powers = np.where(probabilities > 0, draws * np.log1p(-np.minimum(probabilities, 1.0)), 0.0) if draws else 0.0
    return float(-np.expm1(powers).sum())


def union(delta: float, parts: int) -> float:
    """Probability that one of `parts` statements fails, each with probability delta, at most."""
    return min(1.0, delta * parts)


def check_epsilon(epsilon: float) -> None:
    """Refuse an error that is not positive and finite."""
    if not 0 < epsilon < np.inf:
        raise ValueError(f"epsilon must be positive and finite; got {epsilon}")
