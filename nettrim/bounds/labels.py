"""Which predicted labels an error of the logits cannot change (paper 001, Lemma 4.1, and sharper than it).

Logits are (M, P): a row a class, a column a sample. A label is the class with the largest logit. All conditions are
strict: at equality another class may tie.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["epsilon_for", "guaranteed", "predicted", "required"]

KINDS = ("additive", "multiplicative")


def predicted(logits: np.ndarray) -> np.ndarray:
    """Labels of (M, P) logits, (P,); the first class where several are largest."""
    return _checked(logits).argmax(0)


def required(logits: np.ndarray, sizes: str | np.ndarray = "additive") -> np.ndarray:
    """The epsilon below which each sample's label stands, if logit k errs by less than epsilon times its size.

    min_k (f_j - f_k) / (a_j + a_k), with f_j the largest logit and a the sizes. "additive", a = 1, and
    "multiplicative", a = |f|, are Lemma 4.1 of paper 001, where the smallest is at the second largest logit. With
    a = z+ + z-, the outputs of a neuron's positive and negative weights, it is the certificate of sampled signed
    weights that needs no bound on (z+ + z-) / |z|.

    Parameters
    ----------
    logits : (M, P) array
        At least two classes.
    sizes : {"additive", "multiplicative"} or (M, P) array
        Non-negative.

    Returns
    -------
    (P,) float64 array
        0 for ties; inf if no error changes the label.

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    logits = _checked(logits)
    a = _sizes(logits, sizes)
    top, each = logits.argmax(0), np.arange(logits.shape[1])
    difference, size = logits[top, each] - logits, a[top, each] + a
    with np.errstate(divide="ignore"):
        # nothing that errs, and yet a tie: no strict inequality
        limits = np.divide(difference, size, out=np.zeros_like(difference), where=(size > 0) | (difference > 0))
    limits[top, each] = np.inf
    return limits.min(0)


def guaranteed(logits: np.ndarray, errors: np.ndarray | float) -> np.ndarray:
    """Whether each label stands when logit k of sample p may err by ``errors[k, p]``.

    It does if f_j - f_k > e_j + e_k for every class k but j.

    Parameters
    ----------
    logits : (M, P) array
    errors : array that broadcasts to (M, P)
        Non-negative; inf where nothing is known.

    Returns
    -------
    (P,) bool array
    """
    logits = _checked(logits)
    errors = np.broadcast_to(np.asarray(errors, float), logits.shape)
    if np.isnan(errors).any() or (errors < 0).any():
        raise ValueError("errors must not be negative or NaN")
    top, each = logits.argmax(0), np.arange(logits.shape[1])
    lowest = logits[top, each] - errors[top, each]
    others = logits + errors
    others[top, each] = -np.inf
    return lowest > others.max(0)


def epsilon_for(
    logits: np.ndarray,
    labels: np.ndarray | None = None,
    share: float = 0.5,
    sizes: str | np.ndarray = "additive",
) -> float:
    """The largest epsilon that leaves a share of the (correct) labels guaranteed (paper 001, section 4.1).

    Parameters
    ----------
    logits : (M, P) array
    labels : (P,) integer array, optional
        The true ones; the share is then of the correctly labelled samples, as in the paper.
    share : float
        In (0, 1].
    sizes : {"additive", "multiplicative"} or (M, P) array
        As of `required`.

    Returns
    -------
    float
        At least ``ceil(share * samples)`` labels have a larger limit. 0 if so many cannot be guaranteed.

    Raises
    ------
    ValueError
        Wrong input, or no sample is labelled correctly.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1]; got {share}")
    limits = required(logits, sizes)
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != limits.shape or labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be {limits.size} integers; got {labels.dtype} of shape {labels.shape}")
        limits = limits[logits.argmax(0) == labels]
        if not limits.size:
            raise ValueError("labels: none of the samples is labelled correctly")
    limits = np.sort(limits)
    smallest = limits[limits.size - math.ceil(share * limits.size * (1 - 1e-12))]
    # the condition is strict
    return float(max(np.nextafter(smallest, 0.0), 0.0))


def _sizes(logits: np.ndarray, sizes: str | np.ndarray) -> np.ndarray:
    if isinstance(sizes, str):
        if sizes not in KINDS:
            raise ValueError(f"sizes must be an array or one of {', '.join(KINDS)}; got {sizes!r}")
        return np.ones_like(logits) if sizes == "additive" else np.abs(logits)
    sizes = np.asarray(sizes, float)
    if sizes.shape != logits.shape or not (sizes >= 0).all():
        raise ValueError(f"sizes must be a non-negative number for each logit, {logits.shape}; got {sizes.shape}")
    return sizes


def _checked(logits: np.ndarray) -> np.ndarray:
    if not isinstance(logits, np.ndarray) or logits.ndim != 2 or logits.dtype.kind != "f":
        raise TypeError("logits must be a matrix of a floating dtype")
    if logits.shape[0] < 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must have at least two classes and a sample; got {logits.shape}")
    if not np.isfinite(logits).all():
        raise ValueError("logits contains NaN or inf")
    return logits.astype(np.float64)
