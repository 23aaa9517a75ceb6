"""How far clipping turns a gradient: the ratio R, the corrected Theorem 3.2, and what is measured.

Per-example gradients g_1, ..., g_n have the mean m, and the ratio (Watson et al., "Inference and Interference",
section 3.1, Definition 3.1)

    R = Tr Cov(g) / ||m||^2 = mean ||g_i - m||^2 / ||m||^2 = mean ||g_i||^2 / ||m||^2 - 1.

Clipping to the norm C gives c = mean g_i min(1, C / ||g_i||). Theorem 3.2 as printed says, if every ||g_i|| >= C,

    c . m / ||m|| >= C (1 - R / 2),

which is FALSE: g = {1, -0.01}, C = 0.01 gives 0 on the left and 0.48 C on the right. What is true is

    c . m / ||m|| >= C (1 - R) / (1 + R)                                                          (corrected)

Derivation. Let u = m / ||m||, a_i = g_i . u, so that mean a_i = ||m|| =: a, and N_i = max(||g_i||, C). Then
c . u = C mean(a_i / N_i), and x_i = N_i + a_i >= 0. By the inequality of Cauchy and Schwarz

    mean(x_i / N_i) mean(x_i N_i) >= (mean x_i)^2.

The mean of the N_i is at least a, so that the right side is at least 4 a^2, and mean(x_i N_i) <= 2 mean N_i^2. So

    c . u >= C (2 ||m||^2 / mean max(||g_i||, C)^2 - 1)                                           (any C)

without any condition, and if every ||g_i|| >= C the mean is (1 + R) ||m||^2: the corrected theorem. It is tight for
every R: where a fraction p of the gradients is 1 and the others are -t with t -> 0, both sides tend to 2 p - 1 times C.

The printed form holds if also every ||g_i|| >= ||m||. Then a_i / ||g_i|| + ||g_i||^2 / (2 a^2) >= 1/2 + a_i / a for
every i, since the difference falls with a_i and is (||g_i|| / a - 1)^2 / 2 at its end a_i = ||g_i||; take the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["Clipping", "clipping_ratio", "corrected_bound", "measure", "printed_bound"]


@dataclass(frozen=True)
class Clipping:
    """What clipping does to the mean of some gradients.

    Attributes
    ----------
    R : float
        The ratio of variance and squared mean.
    cosine : float
        Of the angle between the clipped mean and the mean, in [-1, 1].
    projection : float
        ``c . m / ||m||``, in the gradients' unit.
    bound : float
        What the projection is at least, for any C: the derivation's last line but one.
    corrected, printed : float
        ``C (1 - R) / (1 + R)`` and the paper's ``C (1 - R / 2)``.
    holds : bool
        Every gradient's norm is at least C and at least that of the mean: the printed form is then true as well.
    clipped : float
        Fraction of the gradients with a norm above C.
    count : int
        Gradients.
    """

    R: float
    cosine: float
    projection: float
    bound: float
    corrected: float
    printed: float
    holds: bool
    clipped: float
    count: int


def clipping_ratio(gradients: np.ndarray) -> float:
    """``R = mean ||g_i - m||^2 / ||m||^2`` (Definition 3.1).

    >>> import numpy as np
    >>> from nettrim.bounds.clipping import clipping_ratio
    >>> round(clipping_ratio(np.array([[1.0], [-0.01]])), 4)
    1.0408

    Parameters
    ----------
    gradients : (n, d) array
        One for each row.

    Returns
    -------
    float
        Infinite if the mean is zero.

    Raises
    ------
    TypeError, ValueError
        Not a matrix of finite numbers of a floating dtype.
    """
    G = _checked(gradients)
    mean = G.mean(0)
    square = float(mean @ mean)
    return float(((G - mean) ** 2).sum(1).mean()) / square if square else math.inf


def corrected_bound(R: float, C: float = 1.0) -> float:
    """``C (1 - R) / (1 + R)``, below the projection on the mean if every gradient's norm is at least C."""
    # 1 - R over 1 + R without inf / inf
    return C * (2 / (1 + R) - 1)


def printed_bound(R: float, C: float = 1.0) -> float:
    """``C (1 - R / 2)``, Theorem 3.2 as printed: true only if also every norm is at least that of the mean."""
    return C * (1 - R / 2)


def measure(gradients: np.ndarray | Iterable[np.ndarray], C: float) -> Clipping:
    """Everything that is said here of some gradients.

    >>> import numpy as np
    >>> from nettrim.bounds.clipping import measure
    >>> found = measure(np.array([[1.0], [-0.01]]), 0.01)  # the counterexample
    >>> found.projection, round(found.printed, 4), round(found.corrected, 4), found.holds
    (0.0, 0.0048, -0.0002, False)

    Parameters
    ----------
    gradients : (n, d) array, or an iterable of such blocks
        One for each row; blocks need not be in memory together. Sums are in float64.
    C : float
        Positive.

    Returns
    -------
    Clipping

    Raises
    ------
    TypeError, ValueError
        Not finite gradients of one length, a mean of zero, or C not positive.
    """
    if not 0 < C < math.inf:
        raise ValueError(f"C must be positive and finite; got {C!r}")
    total: np.ndarray | None = None
    clipped, norms = np.zeros(0), []
    for block in [gradients] if isinstance(gradients, np.ndarray) else gradients:
        G = _checked(block)
        if total is None:
            total, clipped = np.zeros(G.shape[1]), np.zeros(G.shape[1])
        if G.shape[1] != len(total):
            raise ValueError(f"gradients must all have {len(total)} entries; got {G.shape[1]}")
        norms.append(np.linalg.norm(G, axis=1))
        total += G.sum(0)
        clipped += (C / np.maximum(norms[-1], C)) @ G
    if total is None:
        raise ValueError("gradients must have at least one block; got none")
    lengths = np.concatenate(norms)
    count = len(lengths)
    mean, c = total / count, clipped / count
    length = float(np.linalg.norm(mean))
    if length == 0:
        raise ValueError("gradients must have a mean other than zero: R and the angle are not defined")
    projection = float(c @ mean) / length
    R = max(float((lengths**2).mean()) / length**2 - 1, 0.0)
    turned = float(np.linalg.norm(c))
    return Clipping(
        R=R,
        cosine=projection / turned if turned else 0.0,
        projection=projection,
        bound=C * (2 * length**2 / float((np.maximum(lengths, C) ** 2).mean()) - 1),
        corrected=corrected_bound(R, C),
        printed=printed_bound(R, C),
        holds=bool(lengths.min() >= max(C, length)),
        clipped=float((lengths > C).mean()),
        count=count,
    )


def _checked(gradients: np.ndarray) -> np.ndarray:
    """The array in float64."""
    if not isinstance(gradients, np.ndarray) or gradients.dtype.kind != "f":
        raise TypeError("gradients must be an array of a floating dtype")
    if gradients.ndim != 2 or gradients.size == 0:
        raise ValueError(f"gradients must be a matrix, one gradient a row; got shape {gradients.shape}")
    made = gradients.astype(np.float64)
    if not np.isfinite(made).all():
        raise ValueError("gradients contain NaN or inf")
    return made
