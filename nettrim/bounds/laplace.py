"""The noise of paper 000, Theorem 4.2, and what its claims say once they are corrected; nothing here is a guarantee.

A (m x d) are the weights of one layer, outputs by inputs, A_pruned those after magnitude pruning, and
``A_bar = A_pruned - A``. The theorem replaces what pruning changes, ``A_bar x``, by a noise around it,

    e = Lap(1, sigma)^m o (A_bar x) = (1 + Lap(0, sigma)^m) o (A_bar x),

entry by entry, and shows that the two are near to each other in wide layers.

**A pruned network is not differentially private.** It is a deterministic function: two inputs that it tells apart are
told apart with certainty. That it is near to a random function which is private says nothing about it, as near as it
may be: the exact input can stand in the last digit. Nor does this module say how private the random function is. Its
noise has the scale ``sigma |A_bar x|``, which depends on the input that it should hide, and is zero where ``A_bar x``
is; the mechanism of Laplace adds noise of one scale, that of the largest change. So nothing here gives a privacy
parameter, and none can be had by putting these numbers into a formula that does.

Claim 4.4, derived. Entries of A are independent N(0, sigma_A^2), pruned where ``|A_ij| <= a``, and ``||x|| = 1``. Then
``-A_bar_ij = A_ij 1(|A_ij| <= a)`` has the mean square ``sigma_A^2 E[z^2; |z| <= a / sigma_A]`` with z standard normal,
and so has ``(A_bar x)_i``. The factor ``Lap(0, sigma)`` is independent of it, with the mean square ``2 sigma^2``. Thus

    rms ||e - A_bar x|| / sqrt m = sqrt 2 sigma sigma_A sqrt(E[z^2; |z| <= a / sigma_A]).

Lemma 4.6, corrected. As printed it bounds a probability from below by ``C delta``, where it must be from above, and it
cannot hold for every delta: all n truncated Gaussians f(x_i) are zero with the probability ``P(|x| > a)^n``, the atom,
and then the sum is exactly zero. So ``Pr[|sum alpha_i f(x_i)| <= min(a, .1) delta ||alpha||] <= C delta`` can only be
true for delta well above the atom.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["atom", "deviation", "expected_deviation", "noise", "sensitivity", "small_sums", "truncated_second_moment"]

#: below it the closed form cancels; the series is exact to rounding there
_SMALL = 0.02


def noise(
    A: np.ndarray, A_pruned: np.ndarray, x: np.ndarray, sigma: float, seed: int | np.random.Generator = 0
) -> np.ndarray:
    """One draw of ``e = (1 + Lap(0, sigma)) o (A_bar x)`` (Theorem 4.2). It makes nothing private; see above.

    Parameters
    ----------
    A, A_pruned : (m, d) arrays
    x : (d,) or (d, P) array
        Inputs, a column each.
    sigma : float
        Scale of the Laplace distribution, whose standard deviation is sqrt(2) sigma.
    seed : int or numpy.random.Generator

    Returns
    -------
    (m,) or (m, P) float64 array

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    changed = _change(A, A_pruned, x)
    return (1 + np.random.default_rng(seed).laplace(0, _scale("sigma", sigma), changed.shape)) * changed


def deviation(A: np.ndarray, A_pruned: np.ndarray, x: np.ndarray, sigma: float) -> float:
    """``sqrt(E ||e - A_bar x||^2 / m)`` for given weights, ``sqrt 2 sigma ||A_bar x|| / sqrt m``: an error, in RMS.

    Parameters
    ----------
    A, A_pruned : (m, d) arrays
    x : (d,) array
        Or (d, P): the mean square is then over its columns too.
    sigma : float

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    changed = _change(A, A_pruned, x)
    return math.sqrt(2) * _scale("sigma", sigma) * float(np.sqrt((changed**2).mean()))


def expected_deviation(sigma: float, sigma_A: float, a: float) -> float:
    """Claim 4.4, corrected: ``sqrt 2 sigma sigma_A sqrt(E[z^2; |z| <= a / sigma_A])``, for inputs of norm 1.

    It is a distance between two functions, and no measure of privacy.

    Parameters
    ----------
    sigma : float
        Scale of the Laplace distribution.
    sigma_A : float
        Standard deviation of the weights.
    a : float
        Weights of at most this magnitude are pruned.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        Not positive and finite; the message names the argument.
    """
    sigma_A = _scale("sigma_A", sigma_A)
    root = math.sqrt(truncated_second_moment(_scale("a", a) / sigma_A))
    return math.sqrt(2) * _scale("sigma", sigma) * sigma_A * root


def truncated_second_moment(t: float) -> float:
    """``E[z^2; |z| <= t]`` of a standard normal z: ``erf(t / sqrt 2) - 2 t phi(t)``, phi its density.

    >>> from nettrim.bounds.laplace import truncated_second_moment
    >>> round(truncated_second_moment(1.0), 6), truncated_second_moment(40.0)
    (0.198748, 1.0)

    Parameters
    ----------
    t : float
        Positive.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        `t` is not positive and finite.
    """
    t = _scale("t", t)
    if t < _SMALL:
        # integral of z^2 (1 - z^2 / 2 + z^4 / 8) sqrt(2 / pi) from 0 to t
        return math.sqrt(2 / math.pi) * t**3 * (1 / 3 - t**2 / 10 + t**4 / 56)
    return math.erf(t / math.sqrt(2)) - 2 * t * math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)


def sensitivity(A: np.ndarray, A_pruned: np.ndarray, p: int = 1) -> float:
    """Largest ``||A_bar (x - y)||_p`` over ``||x - y||_1 <= 1``: the largest p-norm of a column (Definition 3.2).

    It is that of what pruning changes, for any inputs. The noise of Theorem 4.2 is not scaled by it, but by the input's
    own ``A_bar x``, so that it does not turn that noise into the mechanism of Laplace.

    Parameters
    ----------
    A, A_pruned : (m, d) arrays
    p : {1, 2}

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2; got {p!r}")
    return float(np.linalg.norm(_difference(A, A_pruned), ord=p, axis=0).max())


def atom(n: int, a: float) -> float:
    """``P(|x| > a)^n``: the probability that all of n truncated standard Gaussians are zero.

    Parameters
    ----------
    n : int
    a : float
        Gaussians beyond it are set to zero.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        Wrong input; the message names the argument.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1; got {n!r}")
    return math.erfc(_scale("a", a) / math.sqrt(2)) ** int(n)


def small_sums(
    alpha: np.ndarray, a: float, delta: float, draws: int = 10_000, seed: int | np.random.Generator = 0
) -> float:
    """The share of draws with ``|sum alpha_i f(x_i)| <= min(a, .1) delta ||alpha||``, as Lemma 4.6 asks for.

    f(x) is x where ``|x| <= a`` and zero beyond. For independent standard Gaussians the share is at least `atom`,
    however small delta is, and proportional to delta only well above it.

    Parameters
    ----------
    alpha : (n,) array
        Not all zero.
    a, delta : float
        Positive.
    draws : int
    seed : int or numpy.random.Generator

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    if not isinstance(alpha, np.ndarray) or alpha.dtype.kind != "f" or alpha.ndim != 1:
        raise TypeError("alpha must be a vector of a floating dtype")
    if not np.isfinite(alpha).all() or not alpha.any():
        raise ValueError("alpha must be finite and not all zero")
    if isinstance(draws, bool) or not isinstance(draws, (int, np.integer)) or draws < 1:
        raise ValueError(f"draws must be a whole number of at least 1; got {draws!r}")
    a, delta = _scale("a", a), _scale("delta", delta)
    x = np.random.default_rng(seed).standard_normal((int(draws), alpha.size))
    sums = np.where(np.abs(x) <= a, x, 0) @ alpha.astype(np.float64)
    return float((np.abs(sums) <= min(a, 0.1) * delta * np.linalg.norm(alpha)).mean())


def _change(A: np.ndarray, A_pruned: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A_bar x."""
    difference = _difference(A, A_pruned)
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        raise TypeError("x must be an array of a floating dtype")
    if x.ndim not in (1, 2) or len(x) != difference.shape[1] or not x.size or not np.isfinite(x).all():
        raise ValueError(f"x must be finite, of shape ({difference.shape[1]},) or ({difference.shape[1]}, P)")
    return difference @ x.astype(np.float64)


def _difference(A: np.ndarray, A_pruned: np.ndarray) -> np.ndarray:
    """A_bar = A_pruned - A."""
    for name, values in (("A", A), ("A_pruned", A_pruned)):
        if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f":
            raise TypeError(f"{name} must be a matrix of a floating dtype")
        if not values.size or not np.isfinite(values).all():
            raise ValueError(f"{name} must have entries, all of them finite")
    if A.shape != A_pruned.shape:
        raise ValueError(f"A_pruned must be of the shape of A, {A.shape}; got {A_pruned.shape}")
    return A_pruned.astype(np.float64) - A.astype(np.float64)


def _scale(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name} must be a positive number; got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite; got {value!r}")
    return float(value)
