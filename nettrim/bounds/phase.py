"""How many samples l1 needs to find a sparse neuron: the phase transition, for inputs as likely as their negatives.

Theorem 4.4 of Aghasi, Abdi, Romberg (2020) promises recovery from ``C (s log(N/s) + s + 1)`` samples, with a constant
that it does not give. For symmetric inputs it can be replaced by the place of the transition itself.

Derivation
----------
Let w be the neuron, ``y_p = max(w'x_p, 0)``, and let the program be (4.6): the least l1 norm with ``u'x_p = y_p``
where ``w'x_p > 0``, and ``u'x_p <= 0`` elsewhere. At ``u = w`` the inequalities are strict, so that they do not
restrict small steps, and since the program is convex, w is its solution if and only if no small step is better: it is
the solution among all u with ``u'x_p = w'x_p`` on the active samples. Silent samples say nothing.

The active samples are distributed as ``sign(w'x) x``. Equations ``d'x_p = 0`` do not depend on the sign of x_p. So for
x that is distributed as -x the active samples are as good as any, and the question is that of compressed sensing from
the number of active samples, half of all on average. For Gaussian x, l1 finds w from m equations with a probability
that goes from 0 to 1 around ``m = delta(s/N) N``, the statistical dimension of the l1 norm's descent cone (Amelunxen,
Lotz, McCoy, Tropp 2014, theorem II and proposition 4.5), within about sqrt(N) of it.
"""

from __future__ import annotations

import math

__all__ = ["GAUSSIAN_EIGENVALUE", "l1_dimension", "samples_needed"]

#: smallest eigenvalue of the covariance of ``x 1(w'x > 0)`` for x ~ N(0, I), in the direction of w (section 4.1)
GAUSSIAN_EIGENVALUE = 0.5 - 0.5 / math.pi

_ROOT = math.sqrt(2 * math.pi)


def l1_dimension(sparsity: float) -> float:
    """Equations that l1 needs for an s-sparse vector of length N, over N: the statistical dimension, for large N.

    The least value over ``t >= 0`` of ``r (1 + t^2) + (1 - r) E max(|g| - t, 0)^2``, with r = s/N and g ~ N(0, 1).

    >>> from nettrim.bounds.phase import l1_dimension
    >>> round(l1_dimension(0.1), 3)
    0.329

    Parameters
    ----------
    sparsity : float
        s/N, in [0, 1].

    Returns
    -------
    float
        From 0, for an empty vector, to 1.

    Raises
    ------
    ValueError
        `sparsity` is not in [0, 1].
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be between 0 and 1; got {sparsity!r}")
    if sparsity in (0, 1):
        return float(sparsity)
    low, high = 0.0, 40.0
    # the derivative grows with t
    for _ in range(100):
        middle = 0.5 * (low + high)
        density, tail = _normal(middle)
        if sparsity * middle + 2 * (1 - sparsity) * (middle * tail - density) < 0:
            low = middle
        else:
            high = middle
    density, tail = _normal(low)
    return sparsity * (1 + low**2) + 2 * (1 - sparsity) * ((1 + low**2) * tail - low * density)


def _normal(t: float) -> tuple[float, float]:
    """Density of the standard normal distribution at t, and the probability beyond it."""
    return math.exp(-0.5 * t * t) / _ROOT, 0.5 * math.erfc(t / math.sqrt(2))


def samples_needed(sparsity: float, active: float = 0.5) -> float:
    """Samples, over N, around which l1 begins to find a ReLU neuron with s of N weights.

    Parameters
    ----------
    sparsity : float
        s/N, in [0, 1].
    active : float
        Fraction of the samples on which the neuron is active; a half for inputs as likely as their negatives.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        `sparsity` is not in [0, 1], or `active` not in (0, 1].
    """
    if not 0 < active <= 1:
        raise ValueError(f"active must be above 0 and at most 1; got {active!r}")
    return l1_dimension(sparsity) / active
