"""A report card of coresets of a last layer: what a share of guaranteed labels costs (paper 001, Figure 2).

The error that the labels stand is computed, the layer is pruned to it (epsilon-first), and what is then true of it is
measured: weights left, labels guaranteed and kept, errors observed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nettrim.bounds.coresets import PRINTED_FACTOR
from nettrim.bounds.importance import check_layer, spread
from nettrim.bounds.labels import epsilon_for, guaranteed, predicted
from nettrim.pruners.coresets import deterministic_weights, random_weights
from nettrim.pruners.neuron_coreset import input_radius, neurons

__all__ = ["Card", "Row", "neuron_rows", "weight_rows"]

#: how an error of the logits becomes one of the two halves of a neuron
TRANSLATIONS = ("signed", "median Delta", "unsigned")


@dataclass(frozen=True)
class Row:
    """One coreset.

    Attributes
    ----------
    method : str
    translation : str
        "signed": the halves' error that the labels stand. "median Delta": the logits' relative error over the median of
        Delta = (z+ + z-) / |z|. "unsigned": that error itself, as if no weight were negative. For neurons the formula.
    stood : float
        The error of the logits that the asked share of labels stands: relative, or for neurons in their units.
    asked : float
        The error asked of the coreset.
    draws : int
    density : float
        Part of the layer's weights (neurons) that is left.
    nnz : int
        Weights (neurons) that are left.
    guaranteed : float
        Part of the correct labels that the errors stated by the theorem cannot change.
    unchanged : float
        Part of them that are the same.
    accuracy : float or None
        After pruning, if there are labels.
    relative : (float, float)
        Mean and standard deviation of the logits' errors over their sizes; for neurons the errors themselves.
    of_halves : (float, float) or None
        The same over z+ + z-, which is what the theorem bounds.
    failure : float
        Probability that the statement fails for some neuron at an input, at most.
    """

    method: str
    translation: str
    stood: float
    asked: float
    draws: int
    density: float
    nnz: int
    guaranteed: float
    unchanged: float
    accuracy: float | None
    relative: tuple[float, float]
    of_halves: tuple[float, float] | None
    failure: float

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, as plain values."""
        return asdict(self)


#: rows of a layer
Card = list[Row]


def weight_rows(
    W: np.ndarray,
    X: np.ndarray,
    labels: np.ndarray | None = None,
    share: float = 0.5,
    *,
    judged: np.ndarray | None = None,
    translations: tuple[str, ...] = TRANSLATIONS,
    delta: float = 0.5,
    seed: int = 0,
) -> Card:
    """Coresets of a last layer's weights that guarantee a share of its (correct) labels.

    Parameters
    ----------
    W : (N, M) array
        Dense weights; a bias is a row.
    X : (N, P) array
        Non-negative inputs that importances are drawn from, ones for a bias.
    labels : (Q,) integer array, optional
        True labels of the samples that are judged; by default all predicted labels count.
    share : float
    judged : (N, Q) array, optional
        Other inputs, to set the error and to measure by; default X.
    translations : tuple of str
        Of `TRANSLATIONS`.
    delta, seed
        As of `nettrim.pruners.coresets.random_weights`.

    Returns
    -------
    list of Row
        Random weights, deterministic ones by the proven and by the printed factor, for each translation. Where the
        labels stand no error at all, there is no row.
    """
    check_layer(W, X)
    V = X if judged is None else judged
    check_layer(W, V)
    positive, negative = spread(W, V)
    logits, both = positive - negative, positive + negative
    with np.errstate(divide="ignore"):
        factor = float(np.median(both / np.abs(logits)))
    stood = epsilon_for(logits, labels, share, "multiplicative")
    asked = {
        "signed": epsilon_for(logits, labels, share, both),
        "median Delta": stood / factor,
        "unsigned": stood,
    }
    right = np.ones(logits.shape[1], bool) if labels is None else logits.argmax(0) == labels
    rows = []
    for translation in translations:
        epsilon = asked[translation]
        if epsilon <= 0:
            continue
        how: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "seed": seed}
        for method, made in (
            ("random weights", random_weights(W, X, **how)),
            ("deterministic weights", deterministic_weights(W, X, **how)),
            ("deterministic weights, 3K", deterministic_weights(W, X, factor=PRINTED_FACTOR, **how)),
        ):
            left = made.W.astype(np.float64).T @ V.astype(np.float64, copy=False)
            error = np.abs(left - logits)
            stated = guaranteed(logits, made.errors(W, V))
            rows.append(
                Row(
                    method,
                    translation,
                    stood,
                    epsilon,
                    int(made.draws.sum()),
                    made.density,
                    made.nnz,
                    float(stated[right].mean()),
                    float((predicted(left) == predicted(logits))[right].mean()),
                    _accuracy(left, labels),
                    _summary(error, np.abs(logits)),
                    _summary(error, both),
                    made.failure,
                )
            )
    return rows


def neuron_rows(
    W_in: np.ndarray,
    W_out: np.ndarray,
    X: np.ndarray,
    labels: np.ndarray | None = None,
    share: float = 0.5,
    *,
    radius: float | None = None,
    delta: float = 0.5,
    seed: int = 0,
) -> Card:
    """Coresets of the hidden neurons before a last layer that guarantee a share of its (correct) labels.

    Parameters
    ----------
    W_in : (N, H) array
        Weights of the hidden layer, with a row for the bias.
    W_out : (H + 1, k) array
        Weights of the last layer, its bias in the last row, which stays.
    X : (N, P) array
        Inputs of the hidden layer, with a row of ones: what is judged.
    labels, share, delta, seed
        As of `weight_rows`.
    radius : float, optional
        Of the inputs; default the largest norm of a column of X.

    Returns
    -------
    list of Row
        For Hoeffding's inequality and for Theorem A.4 as printed, with a constant of 1.
    """
    hidden = np.maximum(W_in.astype(np.float64).T @ X.astype(np.float64), 0)
    weights, bias = W_out[:-1], W_out[-1].astype(np.float64)[:, None]
    logits = weights.astype(np.float64).T @ hidden + bias
    right = np.ones(logits.shape[1], bool) if labels is None else logits.argmax(0) == labels
    stood = epsilon_for(logits, labels, share)
    rows = []
    for formula in ("hoeffding", "printed"):
        if stood <= 0:
            continue
        beta = input_radius(X) if radius is None else radius
        made = neurons(W_in, weights, beta, epsilon=stood, delta=delta, formula=formula, seed=seed)
        left = made.W_out.astype(np.float64).T @ hidden + bias
        error = np.abs(left - logits)
        rows.append(
            Row(
                "neurons",
                formula,
                stood,
                stood,
                made.draws,
                float(made.kept.mean()),
                int(made.kept.sum()),
                float(guaranteed(logits, made.epsilon)[right].mean()),
                float((predicted(left) == predicted(logits))[right].mean()),
                _accuracy(left, labels),
                (float(error.mean()), float(error.std())),
                None,
                delta,
            )
        )
    return rows


def _summary(error: np.ndarray, size: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the errors over sizes that are not zero."""
    ratio = error[size > 0] / size[size > 0]
    return float(ratio.mean()), float(ratio.std())


def _accuracy(logits: np.ndarray, labels: np.ndarray | None) -> float | None:
    return None if labels is None else float((logits.argmax(0) == labels).mean())
