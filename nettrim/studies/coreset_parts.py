"""What the coreset study does with a trained network: a function for each part, from arrays to rows of numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import nettrim as nt
from nettrim.bounds import coresets as bounds
from nettrim.bounds.importance import check_assumption, spread
from nettrim.bounds.labels import epsilon_for, guaranteed
from nettrim.pruners.card import neuron_rows, weight_rows
from nettrim.pruners.coresets import deterministic_weights, random_weights
from nettrim.pruners.magnitude import magnitude
from nettrim.pruners.neuron_coreset import input_radius, neuron_importances, neurons
from nettrim.sparsity import Unstructured
from nettrim.studies import training
from nettrim.studies.coreset_networks import Layers, layers, linear, put, with_ones
from nettrim.studies.data import DataSet

__all__ = ["PARTS"]

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
SPARSITIES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)
TUNED = (0.5, 0.8, 0.9, 0.95)
SCALES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
EPSILONS = (0.7, 0.5, 0.35, 0.25, 0.18, 0.13, 0.09, 0.06, 0.04, 0.025, 0.015)
DENSITIES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.55, 0.75)
#: training samples that importances are drawn from, and that Net-Trim solves on
CALIBRATION = 5000
Rows = list[dict[str, Any]]


def weights(model: nn.Sequential, samples: DataSet, seed: int, epochs: int) -> Rows:
    """Coresets of the last layer's weights that guarantee shares of the labels (Figures 2 and 6), beside Net-Trim's."""
    calibration, judged, labels = _last(model, samples)
    W, X, V = judged.W_out, calibration.hidden, judged.hidden
    assumption = check_assumption(W, X).share
    with np.errstate(divide="ignore"):
        positive, negative = spread(W, V)
        factor = (positive + negative) / np.abs(positive - negative)
    about = {"violated": assumption, "delta": [float(np.quantile(factor, q)) for q in (0.5, 0.95)]}
    rows = [
        {"share": share, **about, **row.to_dict()}
        for share in SHARES
        for row in weight_rows(W, X, labels, share, judged=V, seed=seed)
    ]
    return rows + [{"share": share, **about, **row} for share, row in _by_residuals(W, X, V, labels, seed)]


def _by_residuals(
    W: np.ndarray, X: np.ndarray, V: np.ndarray, labels: np.ndarray, seed: int
) -> list[tuple[float, dict[str, Any]]]:
    """The sparsest layers of three methods whose own residuals, on the judged samples, guarantee each share."""
    path = nt.path(X, W.T @ X, epsilons=EPSILONS, omega="linear")
    if path[-1].status is nt.Status.INTERRUPTED:
        raise KeyboardInterrupt("while a path was solved")
    counts = [min(round(d * W.size), int(np.count_nonzero(W))) for d in DENSITIES]
    made = {
        "Net-Trim": [(epsilon, one.W) for epsilon, one in zip(EPSILONS, path, strict=True)],
        "deterministic weights": [(n / W.size, deterministic_weights(W, X, nnz=n, seed=seed).W) for n in counts],
        "magnitude": [(n / W.size, magnitude(W, Unstructured(n))) for n in counts],
    }
    return [(s, row) for name, found in made.items() for s, row in _sparsest(name, found, W, V, labels)]


def _sparsest(
    name: str, found: list[tuple[float, np.ndarray]], W: np.ndarray, V: np.ndarray, labels: np.ndarray
) -> list[tuple[float, dict[str, Any]]]:
    """Of layers in the order of their counts the first that guarantees each share."""
    positive, negative = spread(W, V)
    logits, both = positive - negative, positive + negative
    right = logits.argmax(0) == labels
    rows: list[dict[str, Any]] = []
    for asked, pruned in found:
        left = pruned.T.astype(np.float64) @ V
        error = np.abs(left - logits)
        rows.append(
            {
                "method": name,
                "translation": "residuals",
                "asked": asked,
                "draws": 0,
                "density": np.count_nonzero(pruned) / pruned.size,
                "nnz": int(np.count_nonzero(pruned)),
                "guaranteed": float(guaranteed(logits, error)[right].mean()),
                "unchanged": float((left.argmax(0) == logits.argmax(0))[right].mean()),
                "accuracy": float((left.argmax(0) == labels).mean()),
                "relative": _summary(error / np.abs(logits)),
                "of_halves": _summary(error / both),
            }
        )
    chosen = [(s, next((row for row in rows if row["guaranteed"] >= s), None)) for s in SHARES]
    return [(s, row) for s, row in chosen if row is not None]


def hidden_neurons(model: nn.Sequential, samples: DataSet, seed: int, epochs: int) -> Rows:
    """Coresets of the last hidden layer's neurons that guarantee shares of the labels (Figures 2, 6 and 7)."""
    _, judged, labels = _last(model, samples)
    return [
        {"share": share, **row.to_dict()}
        for share in SHARES
        for row in neuron_rows(judged.W_in, judged.W_out, judged.X, labels, share, seed=seed)
    ]


def sparsity_first(model: nn.Sequential, samples: DataSet, seed: int, epochs: int) -> Rows:
    """What a count costs: errors, bounds, labels and accuracy (Figures 3 and 8)."""
    calibration, judged, labels = _last(model, samples)
    W, X, V = judged.W_out, calibration.hidden, judged.hidden
    logits = W.T @ V
    right = logits.argmax(0) == labels
    positive, negative = spread(W, V)
    rows = []
    for sparsity in SPARSITIES:
        density = 1 - sparsity
        made: dict[str, tuple[np.ndarray, np.ndarray | float, float]] = {}
        for name, prune in (("deterministic weights", deterministic_weights), ("random weights", random_weights)):
            try:
                core = prune(W, X, density=density, seed=seed)
            except ValueError as refused:
                rows.append({"method": name, "sparsity": sparsity, "refused": str(refused)})
                continue
            made[name] = (core.W, core.errors(W, V), float(core.epsilon.max()))
        count = round(density * (len(W) - 1))
        try:
            cut = neurons(judged.W_in, W[:-1], input_radius(judged.X), count=count, seed=seed)
            made["neurons"] = (np.vstack([cut.W_out, W[-1:]]), cut.epsilon, cut.epsilon)
        except ValueError as refused:
            rows.append({"method": "neurons", "sparsity": sparsity, "refused": str(refused)})
        for name, (pruned, stated, epsilon) in made.items():
            left = pruned.T @ V
            error = np.abs(left - logits)
            rows.append(
                {
                    "method": name,
                    "sparsity": sparsity,
                    "found": 1 - float((pruned[:-1] != 0).any(1).mean() if name == "neurons" else (pruned != 0).mean()),
                    "epsilon": epsilon,
                    "guaranteed": float(guaranteed(logits, stated)[right].mean()),
                    "accuracy": float((left.argmax(0) == labels).mean()),
                    "error": _summary(error),
                    "of_halves": _summary(error / (positive + negative)),
                }
            )
    return rows


def tuning(model: nn.Sequential, samples: DataSet, seed: int, epochs: int) -> Rows:
    """The fine-tuning gap: the last layer pruned, the network trained on, errors before and after (Figure 3)."""
    calibration = layers(model, samples.train[0][:CALIBRATION])
    dense = training.outputs(model, samples.validation[0])
    rows = []
    for sparsity in TUNED:
        pruned = copy.deepcopy(model)
        core = deterministic_weights(calibration.W_out, calibration.hidden, density=1 - sparsity, seed=seed)
        name, last = linear(pruned, -1)
        masks = {f"{name}.weight": put(last, core.W)}
        row: dict[str, Any] = {"sparsity": sparsity, "before": _compared(pruned, samples, dense)}
        training.sgd(pruned, training.Batches(*samples.train, 100, seed), epochs, masks=masks)
        rows.append(row | {"after": _compared(pruned, samples, dense)})
    return rows


def distillation(model: nn.Sequential, samples: DataSet, seed: int, epochs: int) -> Rows:
    """The first layer pruned and the network trained to the dense one's outputs (paper 001, section 5.2, table)."""
    first = layers(model, samples.train[0][:CALIBRATION], 0)
    targets = training.outputs(model, samples.train[0])
    rows = []
    for method, sparsity in (("neurons", 0.9), ("deterministic weights", 0.95)):
        pruned = copy.deepcopy(model)
        (at, one), (after, two) = linear(pruned, 0), linear(pruned, 1)
        if method == "neurons":
            count = round((1 - sparsity) * one.out_features)
            core = neurons(first.W_in, first.W_out[:-1], input_radius(first.X), count=count, seed=seed)
            kept = torch.from_numpy(core.kept)
            masks = {f"{at}.weight": kept[:, None].expand(one.weight.shape), f"{at}.bias": kept}
            masks[f"{after}.weight"] = put(two, core.W_out)
        else:
            masks = {f"{at}.weight": put(one, deterministic_weights(first.W_in, first.X, density=1 - sparsity).W)}
        # what the coreset approximates: the pre-activations of the next layer, or of its own
        end = int(after if method == "neurons" else at) + 1
        row: dict[str, Any] = {"method": method, "sparsity": sparsity}
        row["before"] = _distances(model, pruned, samples, end)
        training.train_to_outputs(pruned, samples.train[0], targets, epochs, seed=seed, norms="targets", masks=masks)
        rows.append(row | {"after": _distances(model, pruned, samples, end)})
    return rows


def ball(model: nn.Sequential, samples: DataSet, seed: int, epochs: int) -> Rows:
    """Errors of neuron coresets on the data and on the sphere that the theorem knows of (Figure 11)."""
    _, judged, _ = _last(model, samples)
    radius = input_radius(judged.X[:-1])
    points = np.random.default_rng(seed).standard_normal((len(judged.X) - 1, 1000))
    sphere = with_ones(radius * points / np.linalg.norm(points, axis=0))
    rows = []
    for sparsity in (0.1, 0.3, 0.5, 0.7, 0.9):
        count = round((1 - sparsity) * (len(judged.W_out) - 1))
        try:
            core = neurons(judged.W_in, judged.W_out[:-1], float(np.hypot(radius, 1)), count=count, seed=seed)
        except ValueError as refused:
            rows.append({"sparsity": sparsity, "refused": str(refused)})
            continue
        change = (core.W_out - judged.W_out[:-1]).T
        errors = [np.abs(change @ np.maximum(judged.W_in.T @ x, 0)) for x in (judged.X, sphere)]
        row = {"sparsity": sparsity, "draws": core.draws, "hoeffding": core.epsilon}
        rows.append(row | {"data": _summary(errors[0]), "sphere": _summary(errors[1])})
    return rows


def scaling(model: nn.Sequential, samples: DataSet, seed: int, epochs: int) -> Rows:
    """Samples of neurons that formulas ask for when the hidden layer and all biases are scaled (Figure 12)."""
    _, judged, labels = _last(model, samples)
    logits = judged.W_out.T @ judged.hidden
    radius, inputs = input_radius(judged.X), len(judged.W_in)
    rows = []
    for scale in SCALES:
        total = float(neuron_importances(scale * judged.W_in, judged.W_out[:-1], radius).sum())
        epsilon = epsilon_for(scale * logits, labels, 0.5)
        try:
            printed: float | None = bounds.neuron_draws(epsilon, total, inputs, 0.5)
        except ValueError:
            printed = None
        proven = bounds.hoeffding_draws(epsilon, total, len(logits), 0.5)
        rows.append({"scale": scale, "total": total, "epsilon": epsilon, "printed": printed, "hoeffding": proven})
    return rows


PARTS: dict[str, Callable[[nn.Sequential, DataSet, int, int], Rows]] = {
    "weights": weights,
    "neurons": hidden_neurons,
    "sparsity": sparsity_first,
    "tuning": tuning,
    "distillation": distillation,
    "ball": ball,
    "scaling": scaling,
}


def _last(model: nn.Sequential, samples: DataSet) -> tuple[Layers, Layers, np.ndarray]:
    """The last two layers with training samples, with validation samples, and the labels of these."""
    return (
        layers(model, samples.train[0][:CALIBRATION]),
        layers(model, samples.validation[0]),
        samples.validation[1],
    )


def _compared(model: nn.Sequential, samples: DataSet, dense: np.ndarray) -> dict[str, Any]:
    made = training.outputs(model, samples.validation[0])
    return {
        "accuracy": float((made.argmax(1) == samples.validation[1]).mean()),
        "error": _summary(np.abs(made - dense)),
    }


def _distances(dense: nn.Sequential, pruned: nn.Sequential, samples: DataSet, end: int) -> dict[str, Any]:
    x = samples.validation[0]
    hidden = [training.outputs(model[:end], x) for model in (dense, pruned)]
    whole = [training.outputs(model, x) for model in (dense, pruned)]
    return {
        "accuracy": float((whole[1].argmax(1) == samples.validation[1]).mean()),
        "hidden": _summary(np.abs(hidden[1] - hidden[0])),
        "output": _summary(np.abs(whole[1] - whole[0])),
    }


def _summary(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return float(finite.mean()), float(finite.std())
