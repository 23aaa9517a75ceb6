"""How many weights each layer of a torch model should keep, for one count of the whole."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from nettrim.budget import GRID, Allocation, best_densities, check_grid, pruner_of
from nettrim.layer import solve_groups
from nettrim.path import FIRST
from nettrim.torch.capture import Arguments, arguments_of, batches_of, check_arguments, evaluating, split
from nettrim.torch.fold import fold_batch_norm
from nettrim.torch.graph import find_targets, layer_of
from nettrim.torch.programs import Programs
from nettrim.torch.watch import tensors_in
from nettrim.units import to_bytes

__all__ = ["allocate"]


def allocate(
    model: nn.Module,
    loader: Iterable[Any],
    density: float,
    *,
    targets: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
    arguments: Arguments = arguments_of,
    method: str = "alps",
    grid: Sequence[float] = GRID,
    samples: int | None = None,
    holdout: float = 0.5,
    fold: bool = True,
    memory: str | float = "4GB",
) -> Allocation:
    """Densities of a model's layers for one density of the whole, chosen by the error at its end.

    Every layer is pruned alone at several densities, and the distance of the model's outputs from its own is measured
    on samples that the pruning has not seen; see `nettrim.allocate`. What is returned is the `density` of `prune`.

    Parameters
    ----------
    model, loader, targets, ignore, arguments, samples, fold, memory
        As for `prune`. All floating tensors of the model's outputs count.
    density : float
        Of the weights of all the layers that are to be pruned together, without their biases.
    method : {"alps", "l0", "magnitude", "wanda", "sparsegpt", "random"}
        What layers are pruned by to draw the curves; the compared pruners with a least-squares refit.
    grid : sequence of float
        Densities to try.
    holdout : float
        Fraction of the samples that errors are measured on.

    Returns
    -------
    Allocation

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    tried, how = check_grid(density, grid), pruner_of(method)
    check_arguments(model, holdout, targets)
    calibration, others = split(batches_of(loader, samples), holdout)
    if not others:
        raise ValueError(f"holdout must leave samples to measure errors on; got {holdout}")
    original = copy.deepcopy(model)
    args, kwargs = arguments(calibration[0])
    if fold:
        fold_batch_norm(original, args, kwargs)
    found = find_targets(original, args, kwargs, targets, ignore)
    pruned = copy.deepcopy(original)
    programs = Programs(original, pruned, calibration, arguments, True, to_bytes(memory))
    with evaluating(original, pruned), torch.no_grad():
        ends = [_outputs(original, arguments(batch)) for batch in others]
        size = math.sqrt(sum(float(t.double().square().sum()) for end in ends for t in end)) or 1.0
        curves: dict[str, list[tuple[float, float]]] = {}
        weights: dict[str, int] = {}
        for target in found:
            module: Any = pruned.get_submodule(target.name)
            layer = layer_of(target)
            own = {name: p.clone() for name, p in module.named_parameters(recurse=False)}
            curve = []
            with programs.of(target, layer, FIRST, False, False) as made:
                problems = list(made)
                for d in tried:
                    found_layer = solve_groups(layer, problems, how=how, density=d).layer
                    module.weight.copy_(torch.from_numpy(found_layer.weight))
                    if found_layer.bias is not None:
                        module.bias.copy_(torch.from_numpy(found_layer.bias))
                    curve.append((d, _distance(pruned, others, arguments, ends) / size))
            for name, p in module.named_parameters(recurse=False):
                p.copy_(own[name])
            curves[target.name], weights[target.name] = curve, layer.weight.size
    return best_densities(curves, weights, density)


def _outputs(model: nn.Module, given: tuple[tuple[Any, ...], dict[str, Any]]) -> list[torch.Tensor]:
    args, kwargs = given
    found = [t for t in tensors_in(model(*args, **kwargs)) if t.is_floating_point()]
    if not found:
        raise ValueError("the model's outputs hold no floating tensors to measure errors on")
    return found


def _distance(model: nn.Module, batches: list[Any], arguments: Arguments, ends: list[list[torch.Tensor]]) -> float:
    """Frobenius distance of the model's outputs from those in `ends`."""
    total = 0.0
    for batch, end in zip(batches, ends, strict=True):
        for new, old in zip(_outputs(model, arguments(batch)), end, strict=True):
            total += float((new.double() - old.double()).square().sum())
    return math.sqrt(total)
