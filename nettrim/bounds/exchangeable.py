"""What holds for a new sample because it might have been any of those measured: no other assumption."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["share_interval", "tolerance"]


def tolerance(errors: np.ndarray, delta: float) -> float:
    """A bound that the error of one more sample exceeds with probability delta at most.

    The ceil((n + 1) (1 - delta))-th smallest of n errors. It needs samples that are exchangeable with the new one and
    that had no part in the choice of the weights (split conformal prediction; Vovk et al. 2005).

    Parameters
    ----------
    errors : (n,) array
    delta : float
        In (0, 1).

    Returns
    -------
    float
        inf if there are too few errors to say.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1); got {delta}")
    errors = np.sort(np.asarray(errors, float).ravel())
    rank = math.ceil((errors.size + 1) * (1 - delta) * (1 - 1e-12))
    return float(errors[rank - 1]) if rank <= errors.size else math.inf


def share_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval for the probability of a success.

    >>> from nettrim.bounds.exchangeable import share_interval
    >>> [round(end, 3) for end in share_interval(0, 20)]
    [0.0, 0.168]
    """
    from scipy.stats import beta

    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes must be between 0 and trials; got {successes} of {trials}")
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high
