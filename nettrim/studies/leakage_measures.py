"""The columns of the leakage study: what a pruned network still does, and what can be learned from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from nettrim.bounds.last_layer import ball_flips
from nettrim.privacy import images as measures
from nettrim.privacy import membership
from nettrim.privacy.inversion import Attack, choose_weight, invert, neighbours
from nettrim.privacy.iterative import prunable
from nettrim.privacy.landscape import instability, interpolate
from nettrim.privacy.layers import evaluation, represent
from nettrim.studies import training
from nettrim.studies.data import DataSet
from nettrim.studies.dp_training import clipping_of
from nettrim.studies.inversion import LAYERS
from nettrim.studies.leakage_networks import Made, Setting

__all__ = ["Budget", "fidelity", "leakage"]


@dataclass(frozen=True)
class Budget:
    """What the attacks may spend, the same for every network.

    Attributes
    ----------
    images, tuning, public : int
        Test images that are looked for; validation images that the weight of the total variation is chosen on, and
        that the attacker has besides.
    iterations, restarts : int
    weights : tuple of float
        Of the total variation, to choose from, for each layer of each network.
    samples : int
        Members, as many others, and as many of the population.
    gradients : int
        Samples whose per-example gradients are measured.
    points, watched : int
        Of the line to the dense network, and samples that its losses are of.
    """

    images: int = 12
    tuning: int = 4
    public: int = 2000
    iterations: int = 200
    restarts: int = 1
    weights: tuple[float, ...] = (1e-4, 1e-6)
    samples: int = 4000
    gradients: int = 500
    points: int = 15
    watched: int = 1000


def fidelity(made: Made, dense: nn.Module, samples: DataSet, setting: Setting) -> dict[str, Any]:
    """How near a pruned network is to the dense one, before any training: measured, proven, and in labels."""
    x, y = samples.validation
    true, left = (training.outputs(model, x).astype(np.float64) for model in (dense, made.model))
    found: dict[str, Any] = {
        "accuracy": float((left.argmax(1) == y).mean()),
        "error": float(np.linalg.norm(left - true) / np.linalg.norm(true)),
        "labels_kept": float((left.argmax(1) == true.argmax(1)).mean()),
        "certified": made.certified,
        "largest": made.largest,
        "guaranteed": None,
    }
    if made.certified is not None:
        logits = training.outputs(dense, samples.train[0][: setting.calibration]).T.astype(np.float64)
        flips = ball_flips(logits, made.certified * float(np.linalg.norm(logits)))
        found["guaranteed"] = 1 - flips / logits.shape[1]
    return found


def leakage(
    model: nn.Module,
    dense: nn.Module,
    references: Sequence[nn.Module],
    samples: DataSet,
    setting: Setting,
    budget: Budget,
    layers: tuple[str, ...],
) -> dict[str, Any]:
    """What a network tells of single samples, and where it lies."""
    x, y = samples.train
    masks = {name: weight.detach() != 0 for name, weight in prunable(model).items()}
    clipping = clipping_of(model, (x[: budget.gradients], y[: budget.gradients]), 1.0, masks)
    line = interpolate(dense, model, x[: budget.watched], y[: budget.watched], budget.points)
    return {
        "R": clipping.R,
        "cosine": clipping.cosine,
        "instability": instability(line),
        "membership": {name: asdict(found) for name, found in _members(model, references, samples, budget).items()},
        "inversion": {layer: _inverted(model, LAYERS[layer], samples, budget, setting) for layer in layers},
    }


def _members(
    model: nn.Module, references: Sequence[nn.Module], samples: DataSet, budget: Budget
) -> dict[str, membership.Leakage]:
    """Membership of training samples: by their loss, and by RMIA."""
    n = budget.samples
    parts = [(x[:n], y[:n]) for x, y in (samples.train, samples.validation, samples.test)]

    def log_p(network: nn.Module) -> list[np.ndarray]:
        return [membership.log_probabilities(training.outputs(network, x), y) for x, y in parts]

    own, others = log_p(model), [log_p(reference) for reference in references]
    beside = [np.stack([log_ps[k] for log_ps in others]) for k in range(3)]
    members, strangers = (membership.rmia(own[k], beside[k], own[2], beside[2]) for k in range(2))
    return {
        "loss": membership.measure(membership.loss_threshold(own[0]), membership.loss_threshold(own[1])),
        "RMIA": membership.measure(members, strangers),
    }


def _inverted(model: nn.Module, layer: str, samples: DataSet, budget: Budget, setting: Setting) -> dict[str, Any]:
    """Images behind a layer, by an attacker who starts from public images of nearby representations."""
    low, high = float(samples.train[0].min()), float(samples.train[0].max())
    own = torch.from_numpy(samples.validation[0])
    tuning, public = own[: budget.tuning], own[budget.tuning : budget.tuning + budget.public]
    true = samples.test[0][: budget.images]
    attack = Attack(0, budget.iterations, 0.05, budget.restarts, 0.02, low, high, False, setting.recipe.seed)
    with torch.no_grad(), evaluation(model):
        ours, target = (represent(model, layer, z) for z in (tuning, torch.from_numpy(true)))
    near = neighbours(model, layer, ours, public), neighbours(model, layer, target, public)
    attack, _ = choose_weight(model, layer, tuning, attack, budget.weights, near[0])
    found = invert(model, layer, target, true.shape[1:], attack, near[1])
    got, mean = found.images.numpy(), samples.validation[0].mean(0)
    return {
        "weight": attack.weight,
        "psnr": measures.psnr(got, true, high - low).tolist(),
        "ssim": measures.ssim(got, true, high - low).tolist(),
        "neighbours": measures.psnr(near[1].numpy(), true, high - low).tolist(),
        "blank": measures.psnr(np.full_like(mean, low), true, high - low).tolist(),
        "mean": measures.psnr(mean, true, high - low).tolist(),
        "feature_error": found.feature_error.tolist(),
    }
