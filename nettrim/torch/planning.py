"""What `nettrim.torch.prune` will take, counted from one batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import nn

from nettrim.layer import Layer
from nettrim.planning import LayerPlan, NetworkPlan, plan_layer
from nettrim.torch.capture import (
    Arguments,
    arguments_of,
    batches_of,
    check_arguments,
    evaluating,
    length,
    observe,
    split,
)
from nettrim.torch.fold import fold_batch_norm
from nettrim.torch.graph import Target, find_targets, layer_of
from nettrim.units import to_bytes

__all__ = ["plan", "plan_of"]


def plan(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    targets: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
    arguments: Arguments = arguments_of,
    samples: int | None = None,
    holdout: float = 0.1,
    fold: bool = True,
    memory: str | float = "4GB",
    n_threads: int | None = None,
) -> NetworkPlan:
    """Bytes and rough seconds of each layer that `prune` would solve with these arguments.

    The model runs on one batch; sizes on the others are taken to be alike. Seconds follow from the speed of products on
    this machine, which is measured, and a count of passes: they are of the right order, not more.

    Parameters
    ----------
    model, loader, targets, ignore, arguments, samples, holdout, fold, memory
        As for `prune`.
    n_threads : int, optional
        As in `Settings`.

    Returns
    -------
    NetworkPlan
        ``print(plan.table())`` shows it.

    Raises
    ------
    TypeError, ValueError
        As `prune`.
    """
    check_arguments(model, holdout, targets)
    budget = to_bytes(memory)
    calibration, held_out = split(batches_of(loader, samples), holdout)
    original = copy.deepcopy(model)
    args, kwargs = arguments(calibration[0])
    if fold:
        fold_batch_norm(original, args, kwargs)
    found = find_targets(original, args, kwargs, targets, ignore)
    return plan_of(original, found, calibration, held_out, arguments, budget, n_threads)


def plan_of(
    model: nn.Module,
    found: list[Target],
    calibration: list[Any],
    held_out: list[Any],
    arguments: Arguments,
    budget: float,
    n_threads: int | None = None,
) -> NetworkPlan:
    """The plan of layers that are found already."""
    first, count = length(calibration[0]), sum(map(length, calibration))
    with evaluating(model):
        seen = observe(model, [model.get_submodule(t.name) for t in found], arguments(calibration[0]), "inputs")
    layers: list[LayerPlan] = []
    for target, calls in zip(found, seen, strict=True):
        layer = layer_of(target)
        windows = sum(_windows(layer, inputs) for inputs in calls)
        held = sum(inputs.nbytes for inputs in calls)
        layers.append(plan_layer(layer, round(windows * count / first), round(held * count / first), budget, n_threads))
    return NetworkPlan(layers, count, sum(map(length, held_out)))


def _windows(layer: Layer, inputs: np.ndarray) -> int:
    """Samples of a layer's problem that these inputs give."""
    if layer.geometry is None:
        return inputs.size // inputs.shape[-1]
    return len(inputs) * math.prod(layer.geometry.output_shape(inputs.shape[2:]))
