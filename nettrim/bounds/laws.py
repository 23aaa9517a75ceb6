"""How the error of random and magnitude masks falls with the width, for layers of independent uniform weights.

The setting is that of Qian and Klabjan (2021): a layer of N x M weights, D = N M of them, independent and uniform on
``[-K / sqrt(max(N, M)), K / sqrt(max(N, M))]``, of which ``floor(D^(1 - alpha))`` are pruned, the smallest or any. Its
error is the largest over the unit ball, which is the largest singular value of what was pruned.

Derivation. Let a be the ends of the interval and p the fraction that is pruned.

1. Random: an entry of the difference is a weight with probability p and zero otherwise. Its variance is p a^2 / 3.
2. Magnitude: absolute values are uniform on [0, a], so that those below p a are pruned. An entry of the difference is
   uniform on [-p a, p a] with probability p and zero otherwise. Its variance is p (p a)^2 / 3.
3. The largest singular value of an N x M matrix of independent entries with mean zero and standard deviation s is
   ``(sqrt(N) + sqrt(M)) s (1 + o(1))`` (Bai and Yin 1993; with zeros among them, as long as rows and columns have many
   more entries than log D that are not zero: Latala 2005, Bandeira and van Handel 2016). Finite matrices are below it,
   at N = M = d by about 0.4 d^(-2/3) of it.
4. With p = D^-alpha, and for N = M = d: ``2 sqrt(d) s`` with ``a = K / sqrt(d)``, ``p = d^(-2 alpha)`` is
   ``(2 K / sqrt 3) d^(-alpha)`` for random and ``(2 K / sqrt 3) d^(-3 alpha)`` for magnitude masks.

Rows of the difference have d^(1 - 2 alpha) entries, so that the laws need alpha < 1/2, and large widths where alpha is
near to it: with few entries in a row, the heaviest rows decide, and the error is above the law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

__all__ = ["iid_prediction", "kept_fraction", "magnitude_law", "pruned_count", "pruned_fraction", "random_law", "slope"]

#: an alpha this near to a fraction with a denominator of at most _DENOMINATOR is meant to be that fraction
_NEAR, _DENOMINATOR = 1e-12, 100


def pruned_count(D: int, alpha: float) -> int:
    """``floor(D^(1 - alpha))``, the number of weights that are pruned.

    In floating point, D^(1 - alpha) may be just below a whole number that it should be. So alpha = p / q is taken as a
    fraction, and the answer is the largest k with ``k^q <= D^(q - p)``, in whole numbers.

    >>> from nettrim.bounds.laws import pruned_count
    >>> pruned_count(10**6, 0.5), pruned_count(10**10, 0.1)
    (1000, 1000000000)

    Parameters
    ----------
    D : int
        Weights.
    alpha : float
        In [0, 1]: at 0 all are pruned, at 1 one is.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        Not a count, not an exponent; the message names the argument.
    """
    D = _count("D", D)
    alpha = _exponent(alpha)
    k = math.floor(D ** (1 - alpha))
    exact = Fraction(alpha).limit_denominator(_DENOMINATOR)
    if abs(float(exact) - alpha) <= _NEAR:
        p, q = exact.numerator, exact.denominator
        power = D ** (q - p)
        while k**q > power:
            k -= 1
        while (k + 1) ** q <= power:
            k += 1
    return k


def pruned_fraction(D: int, alpha: float) -> float:
    """``floor(D^(1 - alpha)) / D``, which is D^-alpha but for the rounding: the fraction that is PRUNED.

    A summary of the paper defines its compression ratio gamma as the fraction that is kept, and then sets
    ``gamma = D^-alpha`` and prunes ``floor(gamma D)`` weights, which makes it the fraction that is pruned. Here the two
    have names of their own.

    Parameters
    ----------
    D : int
        Weights.
    alpha : float
        In [0, 1].

    Returns
    -------
    float
    """
    return pruned_count(D, alpha) / D


def kept_fraction(D: int, alpha: float) -> float:
    """What `pruned_fraction` leaves: the fraction that is KEPT, the paper's gamma as it is defined.

    Parameters
    ----------
    D : int
        Weights.
    alpha : float
        In [0, 1].

    Returns
    -------
    float
    """
    return (D - pruned_count(D, alpha)) / D


def magnitude_law(shape: int | tuple[int, int], alpha: float, K: float = 1.0) -> float:
    """The error of a magnitude mask: ``(2 K / sqrt 3) d^(-3 alpha)`` for a d x d layer; see the derivation above.

    >>> from nettrim.bounds.laws import magnitude_law
    >>> round(magnitude_law(100, 0.5, K=3**0.5), 12)
    0.002

    Parameters
    ----------
    shape : int or (int, int)
        d, or N and M.
    alpha : float
        In [0, 1].
    K : float
        The weights lie within K / sqrt(max(N, M)).

    Returns
    -------
    float
        Of the largest singular value, for large layers.

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    return _law(shape, alpha, K, 1.5)


def random_law(shape: int | tuple[int, int], alpha: float, K: float = 1.0) -> float:
    """The error of a random mask: ``(2 K / sqrt 3) d^(-alpha)`` for a d x d layer; see the derivation above.

    >>> from nettrim.bounds.laws import random_law
    >>> round(random_law(100, 0.5, K=3**0.5), 12)
    0.2

    Parameters
    ----------
    shape : int or (int, int)
        d, or N and M.
    alpha : float
        In [0, 1].
    K : float
        The weights lie within K / sqrt(max(N, M)).

    Returns
    -------
    float
        Of the largest singular value, for large layers.

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    return _law(shape, alpha, K, 0.5)


def iid_prediction(difference: np.ndarray) -> float:
    """What the largest singular value would be, were the entries independent with mean zero and this mean square.

    Step 3 of the derivation with the matrix's own mean square, ``||difference||_F^2 / (N M)``: no law is assumed for
    the weights, so that a trained layer's error over this prediction shows their dependence alone.

    >>> import numpy as np
    >>> from nettrim.bounds.laws import iid_prediction
    >>> round(iid_prediction(np.full((100, 100), 0.1)), 12)
    2.0

    Parameters
    ----------
    difference : (N, M) array
        What was pruned: the weights where the mask is False, zero elsewhere.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        Not a finite matrix; the message names the argument.
    """
    if not isinstance(difference, np.ndarray) or difference.dtype.kind != "f":
        raise TypeError("difference must be an array of a floating dtype")
    if difference.ndim != 2 or difference.size == 0:
        raise ValueError(f"difference must be a matrix with entries; got shape {difference.shape}")
    if not np.isfinite(difference).all():
        raise ValueError("difference contains NaN or inf")
    N, M = difference.shape
    return float(np.linalg.norm(difference.astype(np.float64))) * (1 / math.sqrt(N) + 1 / math.sqrt(M))


def slope(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The exponent c of ``y ~ x^c`` by least squares of the logarithms, and half its 95 % interval (Student's t).

    >>> from nettrim.bounds.laws import slope
    >>> mean, half = slope([1, 2, 4, 8], [3, 12, 48, 192])
    >>> round(mean, 12), round(half, 12)
    (2.0, 0.0)

    Parameters
    ----------
    x, y : sequence of float
        Positive, and as many of one as of the other.

    Returns
    -------
    (float, float)
        The half width is NaN for two points.

    Raises
    ------
    ValueError
        Not positive and finite, not as many, or fewer than two different x.
    """
    from scipy.stats import t

    points = []
    for name, values in (("x", x), ("y", y)):
        found = np.asarray(values, np.float64)
        if found.ndim != 1 or not ((found > 0) & np.isfinite(found)).all():
            raise ValueError(f"{name} must be positive finite numbers in one dimension")
        points.append(np.log(found))
    if len(points[0]) != len(points[1]):
        raise ValueError(f"y must have as many numbers as x, {len(points[0])}; got {len(points[1])}")
    if len(np.unique(points[0])) < 2:
        raise ValueError("x must have at least two different numbers")
    u, v = (p - p.mean() for p in points)
    mean = float(u @ v / (u @ u))
    freedom = len(u) - 2
    if freedom == 0:
        return mean, math.nan
    deviation = math.sqrt(float(((v - mean * u) ** 2).sum()) / freedom / float(u @ u))
    return mean, float(t.ppf(0.975, freedom)) * deviation


def _law(shape: int | tuple[int, int], alpha: float, K: float, power: float) -> float:
    """Steps 1 to 3: (sqrt N + sqrt M) a p^power / sqrt 3."""
    sides = (shape, shape) if isinstance(shape, (int, np.integer)) else shape
    if not isinstance(sides, tuple) or len(sides) != 2:
        raise TypeError(f"shape must be a whole number or two of them; got {shape!r}")
    N, M = (_count("shape", side) for side in sides)
    alpha = _exponent(alpha)
    if not 0 < K < math.inf:
        raise ValueError(f"K must be positive and finite; got {K}")
    end, fraction = K / math.sqrt(max(N, M)), (N * M) ** -alpha
    return (math.sqrt(N) + math.sqrt(M)) * end * fraction**power / math.sqrt(3)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")
    return int(value)


def _exponent(alpha: float) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.integer, np.floating)):
        raise TypeError(f"alpha must be a number; got {alpha!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1]; got {alpha}")
    return float(alpha)
