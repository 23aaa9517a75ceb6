"""What a layer makes of images, and what its weights let through.

Let K be the weights of a linear or a convolution layer as a matrix, one row an output. A mismatch r of the outputs is
explained by inputs a with ``K a = r``, the smallest of which has ``||a||^2 = r^T (K K^T)^+ r``. `whitening` is a root
of that pseudo-inverse: after it, distances of outputs are distances of inputs, as far as the weights that are left tell
them. Outputs without weights drop out, and outputs with few or small weights count as much as the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Passage", "evaluation", "module_of", "passage", "represent", "whitening"]

#: eigenvalues below this share of the largest are of directions that the layer does not let through
_RANK = 1e-6


@dataclass(frozen=True)
class Passage:
    """What the weights of a linear or convolution layer let through.

    Attributes
    ----------
    outputs, alive : int
        Outputs (channels), and those of them that have a weight which is not zero.
    inputs, used : int
        Inputs of an output (of a kernel), and those of them that any output uses.
    rank : int
        Of the weights as a matrix: independent numbers of the input that pass, at each position of a convolution.
    """

    outputs: int
    alive: int
    inputs: int
    used: int
    rank: int


class _Reached(Exception):
    """The layer has been run: nothing after it is needed."""


def represent(model: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    """What a layer makes of images: its output, when it is called for the first time.

    Parameters
    ----------
    model : nn.Module
        Run in the mode that it is in, as far as the layer.
    layer : str
        Name of a module, as in ``named_modules()``.
    images : (B, C, H, W) tensor

    Returns
    -------
    (B, ...) tensor

    Raises
    ------
    ValueError
        There is no such layer, or the model does not call it.
    TypeError
        Its output is not a floating tensor with a row for each image.
    """
    found: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        found.append(output)
        raise _Reached

    handle = module_of(model, layer).register_forward_hook(keep)
    try:
        with suppress(_Reached):
            model(images)
    finally:
        handle.remove()
    if not found:
        raise ValueError(f"layer: the model does not call {layer!r}")
    output = found[0]
    if not isinstance(output, torch.Tensor) or not output.is_floating_point() or output.shape[:1] != images.shape[:1]:
        raise TypeError(f"layer: the output of {layer!r} must be a floating tensor with a row for each image")
    return output


def passage(model: nn.Module, layer: str) -> Passage:
    """What the weights of a layer let through.

    Parameters
    ----------
    model : nn.Module
    layer : str
        Name of a linear or a convolution module.

    Returns
    -------
    Passage

    Raises
    ------
    ValueError
        There is no such layer.
    TypeError
        It is of another kind, or a convolution in groups.
    """
    K = _kernels(model, layer)
    used, alive = (int((K != 0).any(axis).sum()) for axis in (0, 1))
    return Passage(len(K), alive, K.shape[1], used, int((_spectrum(K)[1] > 0).sum()))


def whitening(model: nn.Module, layer: str) -> torch.Tensor:
    """A matrix S with ``||S r||^2 = r^T (K K^T)^+ r`` for all r = K a, K the layer's weights, a row an output.

    Rows are brought to the same norm first, by a diagonal matrix D: ``D K a = D r`` has the solutions of ``K a = r``,
    and what counts as zero does not depend on how large the weights of an output are.

    Parameters
    ----------
    model : nn.Module
    layer : str
        Name of a linear or a convolution module.

    Returns
    -------
    (outputs, outputs) tensor
        ``(D K K^T D)^(+1/2) D``, in the dtype of the weights. Zero if all weights are.

    Raises
    ------
    ValueError, TypeError
        As `passage`.
    """
    scale, values, vectors = _spectrum(_kernels(model, layer))
    roots = torch.where(values > 0, values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0.0)
    return ((vectors * roots) @ vectors.T * scale).to(model.get_parameter(f"{layer}.weight").dtype)


def module_of(model: nn.Module, layer: str) -> nn.Module:
    """The module of a name.

    Raises
    ------
    ValueError
        There is none; the message lists them.
    """
    modules = dict(model.named_modules())
    if layer not in modules or layer == "":
        raise ValueError(f"layer must be one of {', '.join(name for name in modules if name)}; got {layer!r}")
    return modules[layer]


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Context in which a model is in evaluation mode; each module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _kernels(model: nn.Module, layer: str) -> torch.Tensor:
    """The weights of a layer in float64, a row an output."""
    module = module_of(model, layer)
    if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) or getattr(module, "groups", 1) != 1:
        raise TypeError(
            f"layer: {layer!r} must be a linear layer or a convolution in one group; got {type(module).__name__}"
        )
    return module.weight.detach().double().flatten(1)


def _spectrum(K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """D, one over the norms of the rows of K; eigenvalues of D K K^T D, 0 where nothing passes, and its vectors."""
    norms = K.norm(dim=1)
    scale = torch.where(norms > 0, 1 / norms, 0.0)
    unit = scale[:, None] * K
    values, vectors = torch.linalg.eigh(unit @ unit.T)
    return scale, torch.where(values > _RANK * values[-1].clamp_min(_RANK), values, 0.0), vectors
