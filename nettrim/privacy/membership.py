"""Membership inference: was this sample in the training set? Scores from log-probabilities, and how good they are.

Scores are larger for likely members. `loss_threshold` asks how well the model does on the sample (Yeom et al. 2018).
`rmia` asks whether it does better on it than other models would, in comparison with other samples (Zarifzadeh et al.
2024, "Low-cost high-power membership inference attacks"). It is the offline variant: no reference model has seen the
sample. With the target model's probability P(x) of the true label, and the references' mean R(x) of theirs,

    ratio(x) = P(x) / ((1 + a) / 2 R(x) + (1 - a) / 2),
    score(x) = share of the population's z with ratio(x) / ratio(z) >= gamma.

The correction by a stands for the models that have seen x, whose probabilities are between R(x) and 1. It is used for x
and z alike, as in the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nettrim.bounds.exchangeable import share_interval
from nettrim.extras import install

__all__ = ["Leakage", "log_probabilities", "loss_threshold", "measure", "rmia"]


@dataclass(frozen=True)
class Leakage:
    """How well scores tell members from others.

    Attributes
    ----------
    auc : float
        Probability that a member's score is larger than another sample's, ties counting half; 1/2 is guessing.
    auc_interval : (float, float)
        95 %, by DeLong et al. (1988); for scores that do not overlap, of as many successes as there are samples of the
        rarer kind (Clopper and Pearson), since the variance is then zero.
    tpr : float
        Share of the members with scores above `threshold`.
    tpr_interval : (float, float)
        95 %, by Clopper and Pearson, for this threshold: that it was chosen on the same non-members is left out.
    fpr : float
        Share of the others with such scores, at most what was asked for. With n of them it is a multiple of 1/n.
    threshold : float
        A score counts if it is at least this; inf if none may.
    members, others : int
        Samples.
    """

    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]
    fpr: float
    threshold: float
    members: int
    others: int


def log_probabilities(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-probabilities of the true labels, by the softmax of logits.

    Parameters
    ----------
    logits : (n, classes) array
    labels : (n,) integer array

    Returns
    -------
    (n,) float64 array

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    from scipy.special import log_softmax

    if not isinstance(logits, np.ndarray) or logits.ndim != 2 or logits.dtype.kind != "f":
        raise TypeError("logits must be a matrix of a floating dtype, a row for each sample")
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must be {len(logits)} integers; got {labels.dtype} of shape {labels.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(f"labels must be between 0 and {logits.shape[1] - 1}")
    return log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def loss_threshold(target: np.ndarray) -> np.ndarray:
    """Scores of the loss-threshold attack: the log-probabilities themselves, minus the cross-entropy.

    Parameters
    ----------
    target : (n,) array
        Log-probabilities of the true labels, by the attacked model.

    Returns
    -------
    (n,) float64 array

    Raises
    ------
    TypeError, ValueError
        Not log-probabilities.
    """
    return _log_probabilities("target", target, 1)


def rmia(
    target: np.ndarray,
    references: np.ndarray,
    population: np.ndarray,
    population_references: np.ndarray,
    gamma: float = 1.0,
    a: float = 0.3,
) -> np.ndarray:
    """Scores of the offline RMIA; see above.

    Parameters
    ----------
    target : (n,) array
        Log-probabilities of the samples' true labels, by the attacked model.
    references : (models, n) array
        By models that were trained without these samples; one will do.
    population : (m,) array
        Of other samples, that none of the models was trained on, by the attacked model.
    population_references : (models, m) array
        By the reference models.
    gamma : float
        How many times the ratio of x must be that of z; at least 1.
    a : float
        In [0, 1]: 1 takes the references as they are. It is best chosen by an attack on a reference model.

    Returns
    -------
    (n,) float64 array
        In [0, 1].

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    if not 1 <= gamma < math.inf:
        raise ValueError(f"gamma must be at least 1; got {gamma!r}")
    if not 0 <= a <= 1:
        raise ValueError(f"a must be in [0, 1]; got {a!r}")
    ratios = []
    for name, own, beside in (("", target, references), ("population", population, population_references)):
        log_p = _log_probabilities(name or "target", own, 1)
        other = f"{name}_references".lstrip("_")
        log_r = _log_probabilities(other, beside, 2)
        if log_r.shape[1] != log_p.size or not len(log_r):
            raise ValueError(f"{other} must be (models, {log_p.size}); got {log_r.shape}")
        mean = np.exp(log_r).mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = log_p - np.log((1 + a) / 2 * mean + (1 - a) / 2)
        # impossible for the model and for the references: 0 / 0, which says nothing
        ratios.append(np.where(np.isnan(ratio), 0.0, ratio))
    if len(population_references) != len(references):
        raise ValueError(f"population_references must be of the {len(references)} models of references")
    if not population.size:
        raise ValueError("population must have at least one sample")
    counts = np.searchsorted(np.sort(ratios[1]), ratios[0] - math.log(gamma), side="right")
    return counts / population.size


def measure(members: np.ndarray, others: np.ndarray, fpr: float = 0.01) -> Leakage:
    """AUC, and the share of members found at a small share of false alarms, of scores.

    Parameters
    ----------
    members, others : (n,) and (m,) arrays
        Scores, larger for likely members; n and m need not be the same.
    fpr : float
        Largest share of the others that may be taken for members, in (0, 1).

    Returns
    -------
    Leakage

    Raises
    ------
    ImportError
        scikit-learn is not installed.
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    try:
        from sklearn.metrics import roc_auc_score, roc_curve
    except ImportError as error:
        raise ImportError(f"curves need scikit-learn: {install('studies')}") from error
    inside, outside = _scores("members", members), _scores("others", others)
    if not 0 < fpr < 1:
        raise ValueError(f"fpr must be in (0, 1); got {fpr!r}")
    n, m = inside.size, outside.size
    truth, values = np.repeat([1, 0], [n, m]), np.concatenate([inside, outside])
    auc = float(roc_auc_score(truth, values))
    false, true, thresholds = roc_curve(truth, values, drop_intermediate=False)
    # shares are multiples of 1 / m, with the rounding of a quotient
    last = int(np.flatnonzero(false <= fpr * (1 + 1e-12))[-1])
    return Leakage(
        auc,
        _delong(inside, outside, auc),
        float(true[last]),
        share_interval(round(true[last] * n), n),
        float(false[last]),
        float(thresholds[last]),
        n,
        m,
    )


def _delong(members: np.ndarray, others: np.ndarray, auc: float) -> tuple[float, float]:
    """The interval of DeLong et al.: the variance of the placements of either kind among the other."""
    from scipy.stats import norm, rankdata

    n, m = members.size, others.size
    ranks = rankdata(np.concatenate([members, others]))
    placed = (ranks[:n] - rankdata(members)) / m, 1 - (ranks[n:] - rankdata(others)) / n
    variance = sum(float(values.var(ddof=1)) / values.size if values.size > 1 else math.inf for values in placed)
    if min(n, m) > 1 and variance == 0 and auc in (0.0, 1.0):
        rarer = min(n, m)
        return share_interval(round(auc * rarer), rarer)
    half = float(norm.ppf(0.975)) * math.sqrt(variance)
    return max(0.0, auc - half), min(1.0, auc + half)


def _scores(name: str, values: np.ndarray) -> np.ndarray:
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim != 1:
        raise TypeError(f"{name} must be a vector of a floating dtype")
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} must be at least one number, none NaN or infinite")
    return values.astype(np.float64)


def _log_probabilities(name: str, values: np.ndarray, ndim: int) -> np.ndarray:
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim != ndim:
        raise TypeError(f"{name} must be an array of a floating dtype with {ndim} dimension{'s' * (ndim > 1)}")
    if np.isnan(values).any() or (values > 1e-6).any():
        raise ValueError(f"{name} must be log-probabilities, at most 0 and not NaN")
    return values.astype(np.float64)
