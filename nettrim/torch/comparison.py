"""Pruned layers beside what magnitude pruning makes of them, each layer by itself."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from nettrim.torch.capture import (
    Arguments,
    arguments_of,
    batches_of,
    evaluating,
    head,
    length,
    observe,
    split,
    state_digest,
)
from nettrim.torch.fold import fold_batch_norm
from nettrim.torch.store import load

__all__ = ["FRACTIONS", "Comparison", "LayerComparison", "compare"]

#: kept fractions of the curves of magnitude pruning
FRACTIONS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: samples that errors are measured on, at most
SAMPLES = 500


@dataclass(frozen=True)
class LayerComparison:
    """A layer in all runs. Errors are those of its outputs, after its ReLU, from the unpruned network's inputs.

    Attributes
    ----------
    name : str
    before, after : (N, M) array
        Weights of the unpruned layer and of the first run: a column a neuron, without biases.
    groups : int
        Of a convolution.
    fractions, magnitude : list of float
        Fractions of weights, and the relative error with so many of the largest kept.
    points : list of (float, float)
        For each run, the fraction of weights kept and the relative error.
    """

    name: str
    before: np.ndarray
    after: np.ndarray
    groups: int
    fractions: list[float]
    magnitude: list[float]
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Comparison:
    """Runs of one model.

    Attributes
    ----------
    reports : list of dict
        What each file says of its run.
    layers : list of LayerComparison
    samples : int
        That errors were measured on.
    held_out : bool
        Whether these were held out from the first run.
    """

    reports: list[dict[str, Any]]
    layers: list[LayerComparison]
    samples: int
    held_out: bool


def compare(
    model: nn.Module,
    loader: Iterable[Any],
    paths: Sequence[str | os.PathLike[str]],
    arguments: Arguments = arguments_of,
) -> Comparison:
    """Measure the layers in files that `PrunedModel.save` wrote, and magnitude pruning of the same layers.

    Parameters
    ----------
    model : nn.Module
        That all of them began with; it is not changed.
    loader : iterable of batches
        As given to `prune`.
    paths : sequence of paths
        At least one.
    arguments : callable, optional
        As given to `prune`.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        A file is not one of nettrim's, has other layers than the first, or was pruned from other weights.
    """
    states, reports = zip(*(load(path) for path in paths), strict=True)
    names, given = [row["name"] for row in reports[0]["layers"]], state_digest(model)
    for path, report in zip(paths, reports, strict=True):
        if [row["name"] for row in report["layers"]] != names or report["folded"] != reports[0]["folded"]:
            raise ValueError(f"{path} has other layers than {paths[0]}: compare runs of one model and the same targets")
        if report["settings"].get("original", given) != given:
            raise ValueError(f"{path} was pruned from other weights than the model has: compare runs of one model")
    settings = reports[0]["settings"]
    used, back = split(batches_of(loader, settings["samples"]), settings["holdout"])
    batches = head(back or used, SAMPLES)
    original = copy.deepcopy(model)
    if reports[0]["folded"]:
        fold_batch_norm(original, *arguments(batches[0]))
    layers = []
    with evaluating(original):
        for row in reports[0]["layers"]:
            module: Any = original.get_submodule(row["name"])
            own = {name: p.detach() for name, p in module.named_parameters(recurse=False)}
            calls = [x for batch in batches for x in observe(original, [module], arguments(batch), "inputs")[0]]
            inputs = [torch.from_numpy(x).to(own["weight"]) for x in calls]
            measure = _Measure(module, inputs, row["kind"].endswith("ReLU"))
            counts = sorted({max(1, round(fraction * own["weight"].numel())) for fraction in FRACTIONS})
            prefix = f"{row['name']}." if row["name"] else ""
            pruned = [{name: state[prefix + name].to(p) for name, p in own.items()} for state in states]
            layers.append(
                LayerComparison(
                    row["name"],
                    _columns(own["weight"]),
                    _columns(pruned[0]["weight"]),
                    getattr(module, "groups", 1),
                    [count / own["weight"].numel() for count in counts],
                    [measure(own | {"weight": _largest(own["weight"], count)}) for count in counts],
                    [(float((p["weight"] != 0).double().mean()), measure(p)) for p in pruned],
                )
            )
    return Comparison(list(reports), layers, sum(map(length, batches)), bool(back))


class _Measure:
    """Relative error of a module's outputs with other parameters."""

    def __init__(self, module: nn.Module, inputs: list[torch.Tensor], relu: bool):
        self.module, self.inputs, self.relu = module, inputs, relu
        self.outputs = [self._run(x, {}) for x in inputs]
        self.size = float(sum(y.double().square().sum() for y in self.outputs)) ** 0.5

    def _run(self, x: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        y = functional_call(self.module, parameters, (x,))
        return y.clamp_min(0) if self.relu else y

    def __call__(self, parameters: dict[str, torch.Tensor]) -> float:
        squares = sum(
            float((self._run(x, parameters) - y).double().square().sum())
            for x, y in zip(self.inputs, self.outputs, strict=True)
        )
        return squares**0.5 / (self.size or 1.0)


def _largest(weight: torch.Tensor, count: int) -> torch.Tensor:
    """The largest entries, and zeros."""
    kept = torch.zeros_like(weight).flatten()
    chosen = weight.abs().flatten().topk(count).indices
    kept[chosen] = weight.flatten()[chosen]
    return kept.view_as(weight)


def _columns(weight: torch.Tensor) -> np.ndarray:
    return weight.detach().flatten(1).T.float().cpu().numpy()
