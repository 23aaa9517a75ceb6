"""Batch norms folded into the layers that they follow, and the folding checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from nettrim.torch.modules import is_plain, names_of, sharing_of, tying, weight_trouble
from nettrim.torch.watch import Watch, copied, tensors_in, undisturbed, watched

__all__ = ["fold_batch_norm", "tolerance_of", "worst_difference"]

#: deviation of the model's outputs that folding may make, relative to the largest entry of each: rounding of the folded
#: weights, a few units in the last place, with room for what a deep network makes of it
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@torch.no_grad()
def fold_batch_norm(
    model: torch.nn.Module, example: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> list[tuple[str, str]]:
    """Fold batch norms into the layers that they follow, in place.

    A BatchNorm1d or 2d with running statistics, which runs once and is all that uses the output of a layer that runs
    once, multiplies each of the layer's outputs by a number and adds another: both go into the layer's weights and
    bias, which is made if there is none, and an Identity takes the place of the batch norm. The model then computes
    what it computes in eval mode; that is checked on the example.

    Parameters
    ----------
    model : torch.nn.Module
        Changed; modes, hooks, other buffers and random numbers are left as they were.
    example : tuple
        Positional arguments of a forward pass.
    kwargs : dict, optional
        Its keyword arguments.

    Returns
    -------
    list of (str, str)
        Names of layer and batch norm of each pair.

    Raises
    ------
    TypeError
        `example` is not a tuple.
    ValueError
        The outputs hold no tensors, so that nothing could be checked, or parameters are uninitialised.
    RuntimeError
        The outputs changed by more than 1e-4 of their largest entry (1e-9 if model and outputs are in float64, 1e-2 and
        5e-2 if anything is in float16 and bfloat16), or the model no longer runs. It is then as it was before.
    """
    names = names_of(model)
    with _full_precision():
        watch, before = watched(model, example, kwargs)
        pairs = _foldable(names, watch)
        if not pairs:
            return []
        if not before:
            raise ValueError("the model's outputs hold no tensors, so that folding could not be checked")
        tolerance = tolerance_of([*model.parameters(), *before])
        # what a fold changes: entries of the weights, bias (entries, or the parameter), and places of the batch norm
        weights = [(layer.weight, layer.weight.clone()) for layer, _ in pairs]
        biases = [(layer, layer.bias, None if layer.bias is None else layer.bias.clone()) for layer, _ in pairs]
        try:
            for layer, norm in pairs:
                _fold(layer, norm)
                for name in names[norm]:
                    _put(model, name, torch.nn.Identity().train(norm.training))
            with undisturbed(model):
                args, keywords = copied(example, kwargs)
                worst = worst_difference(before, tensors_in(model(*args, **keywords)))
            if not worst <= tolerance:
                raise RuntimeError(f"its outputs change by {worst:.1e} of the largest entry, more than {tolerance:.0e}")
        except BaseException as error:
            for weight, values in weights:
                weight.copy_(values)
            for layer, bias, values in biases:
                layer.bias = bias
                if bias is not None:
                    bias.copy_(values)
            for _, norm in pairs:
                for name in names[norm]:
                    _put(model, name, norm)
            if isinstance(error, Exception):
                raise RuntimeError(f"batch norms cannot be folded, the model is as it was: {error}") from error
            raise
    return [(names[layer][0], names[norm][0]) for layer, norm in pairs]


def _foldable(names: dict[torch.nn.Module, list[str]], watch: Watch) -> list[tuple[Any, Any]]:
    """Pairs of layer and batch norm, in order."""
    sharing = sharing_of(names)
    pairs = []
    for call in watch.calls:
        layer, norm = call.module, call.follower
        if not isinstance(norm, _BatchNorm) or not _is_foldable(norm) or norm in watch.outside:
            continue
        if not is_plain(layer) or weight_trouble(layer) or tying(layer, sharing, watch):
            continue
        # the batch norm's channels are dimension 1, and must be the layer's outputs
        channels = 2 + len(layer.kernel_size) if isinstance(layer, _ConvNd) else 2
        if watch.counts[layer] == watch.counts[norm] == 1 and call.ndim == channels:
            pairs.append((layer, norm))
    return pairs


def _is_foldable(norm: torch.nn.Module) -> bool:
    return (
        isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))
        and type(norm).forward is _BatchNorm.forward
        and "forward" not in vars(norm)
        and not parametrize.is_parametrized(norm)
        and norm.running_mean is not None
        and norm.running_var is not None
    )


def _fold(layer: Any, norm: Any) -> None:
    """(z - mean) / sqrt(var + eps) * gamma + beta of z = W x + b is W' x + b'; in float64, rounded once."""
    weight = layer.weight
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    bias = shift * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight.copy_(weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1)))
    if layer.bias is None:
        layer.bias = torch.nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)
    else:
        layer.bias.copy_(bias)


def _put(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Put a module where another is."""
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = module


def tolerance_of(tensors: list[torch.Tensor]) -> float:
    """Deviation that rounding may make of a model's outputs, relative to the largest entry, by the coarsest dtype."""
    return max(_TOLERANCES.get(t.dtype, 0) for t in tensors) or _TOLERANCES[torch.float32]


def worst_difference(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """Relative to the largest entry of each tensor; of integers and bools, the fraction that differs counts.

    Raises
    ------
    RuntimeError
        The shapes are not the same.
    """
    if [t.shape for t in before] != [t.shape for t in after]:
        raise RuntimeError("its outputs have other shapes")
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if old.numel() == 0:
            continue
        if not (old.is_floating_point() or old.is_complex()):
            worst = max(worst, float((old != new).double().mean()))
            continue
        old, new = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (old, new))
        same = (old == new) | (old.isnan() & new.isnan())
        difference = torch.where(same, 0, (old - new).abs()).nan_to_num(nan=torch.inf)
        size = torch.where(old.isfinite(), old.abs(), 0).max()
        worst = max(worst, float(difference.max() / torch.where(size > 0, size, 1)))
    return worst


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32, whose rounding alone is larger than the tolerance in float32."""
    backends: Any = torch.backends
    switches = (backends.cudnn.conv, backends.cuda.matmul)
    found = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, value in zip(switches, found, strict=True):
            switch.fp32_precision = value
