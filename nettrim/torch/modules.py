"""Which modules of a model can be pruned, under which names, and what stands in the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from nettrim.patterns import matches

if TYPE_CHECKING:
    from nettrim.torch.watch import Watch

__all__ = [
    "fits",
    "is_plain",
    "is_unsupported",
    "names_of",
    "own_tensors",
    "sharing_of",
    "trouble_of",
    "tying",
    "weight_trouble",
]

_KINDS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def names_of(model: torch.nn.Module) -> dict[torch.nn.Module, list[str]]:
    """All names of each module; a model with uninitialised ones is refused, since a run would initialise them."""
    names: dict[torch.nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
        if any(is_lazy(tensor) for tensor in own_tensors(module)):
            raise ValueError(f"{name!r} has uninitialised parameters: run the model once on a batch before")
    return names


def fits(names: list[str], patterns: Sequence[str]) -> bool:
    """Whether one of a module's names fits one of the patterns."""
    return any(matches(name, patterns) for name in names)


def own_tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers of a module without those of its parts."""
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def is_plain(module: torch.nn.Module) -> bool:
    """Whether it computes what a Linear, Conv1d or Conv2d does."""
    return any(
        isinstance(module, kind)
        and all(
            getattr(type(module), method, None) is getattr(kind, method, None) and method not in vars(module)
            for method in ("forward", "_conv_forward")
        )
        for kind in _KINDS
    )


def _is_quantised(module: torch.nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith("torch.ao.nn.") and ("Linear" in kind.__name__ or "Conv" in kind.__name__)


def is_unsupported(module: torch.nn.Module) -> bool:
    """Whether it is a layer with weights that one might expect to be pruned."""
    return isinstance(module, (_ConvTransposeNd, torch.nn.Conv3d)) or _is_quantised(module)


def trouble_of(module: torch.nn.Module) -> str:
    """Why a layer cannot be pruned, and what to do; empty if it can."""
    if isinstance(module, _ConvTransposeNd):
        return "is a transposed convolution, which cannot be pruned: replace it"
    if isinstance(module, torch.nn.Conv3d):
        return "is a convolution in three dimensions, which cannot be pruned: replace it"
    if _is_quantised(module):
        return "is quantised: prune the model before it is quantised"
    trouble = weight_trouble(module)
    if not trouble and isinstance(module, _ConvNd) and module.padding_mode != "zeros":
        trouble = f"pads with {module.padding_mode!r}: set its padding_mode to 'zeros' and train on"
    return trouble


def weight_trouble(module: Any) -> str:
    """Why a layer's weights cannot be replaced."""
    if parametrize.is_parametrized(module):
        return (
            "is parametrised: make its weights plain with torch.nn.utils.parametrize.remove_parametrizations(module, "
            f"{next(iter(module.parametrizations))!r})"
        )
    for name in ("weight", "bias"):
        if name not in module._parameters:
            if f"{name}_mask" in module._buffers:
                remedy = f"torch.nn.utils.prune.remove(module, {name!r})"
            elif f"{name}_g" in module._parameters:
                remedy = "torch.nn.utils.remove_weight_norm(module)"
            else:
                remedy = "what undoes it (for spectral norm, torch.nn.utils.remove_spectral_norm)"
            return f"computes its {name} before every call: make it a plain parameter with {remedy}"
        tensor = module._parameters[name]
        if tensor is None:
            continue
        if is_lazy(tensor):
            return "has uninitialised parameters: run the model once on a batch before"
        if type(tensor) is not torch.nn.Parameter:
            return f"has a {name} of type {type(tensor).__name__}: make it a plain torch.nn.Parameter"
        if tensor.dtype not in _DTYPES:
            return f"has a {name} of dtype {tensor.dtype}: convert it to float16, bfloat16, float32 or float64"
    return ""


def sharing_of(names: dict[torch.nn.Module, list[str]]) -> dict[Any, list[tuple[torch.nn.Module, str]]]:
    """By place in memory, the modules with a parameter or buffer there, and their names for it."""
    places: dict[Any, list[tuple[torch.nn.Module, str]]] = {}
    for module, known in names.items():
        for what in (*module._parameters, *module._buffers):
            tensor = getattr(module, what)
            if tensor is not None:
                places.setdefault(_place(tensor), []).append((module, f"{known[0]}.{what}".lstrip(".")))
    return places


def _place(tensor: torch.Tensor) -> Any:
    # equal addresses, and not the same Parameter only: two Parameters can be made of one tensor
    try:
        address = tensor.data_ptr()
    except RuntimeError:
        address = 0
    return (tensor.device, address) if address else id(tensor)


def tying(module: torch.nn.Module, sharing: dict[Any, list[tuple[torch.nn.Module, str]]], watch: Watch) -> str:
    """With whom a layer shares its parameters, and what to do; empty if with nobody."""
    for what, parameter in module._parameters.items():
        if parameter is None:
            continue
        others = [name for other, name in sharing[_place(parameter)] if other is not module]
        if others:
            return f"shares its {what} with {', '.join(map(repr, others))} (weight tying): give it a copy of its own"
    if module in watch.outside:
        return "has parameters that are also used outside of its calls (weight tying): give it a copy of its own"
    return ""
