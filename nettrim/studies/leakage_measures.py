"""The columns of the leakage study: what a pruned network still does, and what can be learned from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from nettrim.bounds.last_layer import ball_flips
from nettrim.privacy import membership
from nettrim.privacy.checkpoints import Checkpoint
from nettrim.privacy.inversion import Attack
from nettrim.privacy.iterative import prunable
from nettrim.privacy.landscape import instability, interpolate
from nettrim.studies import training
from nettrim.studies.data import DataSet
from nettrim.studies.dp_training import clipping_of
from nettrim.studies.image_search import search
from nettrim.studies.leakage_networks import Made, Setting
from nettrim.studies.pieces import Units

__all__ = ["Budget", "fidelity", "leakage"]

#: public images whose mean an attack starts from
_NEAREST = 10


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
    units: Units,
) -> dict[str, Any]:
    """What a network tells of single samples, and where it lies; each measurement, and each search, is a part."""
    x, y = samples.train

    def clipping(_: Checkpoint) -> dict[str, float]:
        masks = {name: weight.detach() != 0 for name, weight in prunable(model).items()}
        found = clipping_of(model, (x[: budget.gradients], y[: budget.gradients]), 1.0, masks)
        return {"R": found.R, "cosine": found.cosine}

    def line(_: Checkpoint) -> float:
        return instability(interpolate(dense, model, x[: budget.watched], y[: budget.watched], budget.points))

    def members(_: Checkpoint) -> dict[str, Any]:
        return {name: asdict(found) for name, found in _members(model, references, samples, budget).items()}

    names = setting.victim.layers
    return {
        **units.once("clipping", clipping),
        "instability": units.once("line", line),
        "membership": units.once("membership", members),
        "inversion": {layer: _inverted(model, names[layer], samples, budget, setting, units) for layer in layers},
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


def _inverted(
    model: nn.Module, layer: str, samples: DataSet, budget: Budget, setting: Setting, units: Units
) -> dict[str, Any]:
    """Images behind a layer, by an attacker who starts from public images of nearby representations."""
    low, high = float(samples.train[0].min()), float(samples.train[0].max())
    attack = Attack(0, budget.iterations, 0.05, budget.restarts, 0.02, low, high, False, setting.recipe.seed)
    sizes = budget.images, budget.tuning, budget.public
    found = search(model, layer, samples, attack, budget.weights, sizes, _NEAREST, units)
    return {name: value for name, value in found.items() if name not in ("tuning_psnr", "shown", "seconds")}
