"""What a PyTorch model is made of: its layers in the order of their run, and whether a ReLU follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.modules.conv import _ConvNd

from nettrim.geometry import Geometry
from nettrim.layer import Layer
from nettrim.torch.modules import fits, is_plain, is_unsupported, names_of, sharing_of, trouble_of, tying
from nettrim.torch.watch import RELU, watched

__all__ = ["Target", "find_targets", "layer_of"]


@dataclass(frozen=True)
class Target:
    """A layer that can be pruned, as it stands in a model.

    Parameters
    ----------
    name : str
        Dotted, as in `named_modules`; of a module with several names, the first.
    module : torch.nn.Module
        A Linear, Conv1d or Conv2d, or of a subclass that computes the same.
    relu : bool
        Whether a ReLU is all that ever uses its outputs.
    calls : int
        How often it runs in one forward pass.
    """

    name: str
    module: torch.nn.Module
    relu: bool
    calls: int


def find_targets(
    model: torch.nn.Module,
    example: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    targets: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
) -> list[Target]:
    """Layers of a model that fit the patterns, in order of their first run on the example.

    The model runs once in eval mode. A layer counts as followed by a ReLU if, in each of its calls, its output is used
    once, and by a ReLU, with nothing between but reshapes and what is the identity in eval mode; everything else
    (other activations, sums, several uses, an output that the model returns or keeps in an attribute) counts as linear.
    A batch norm between the two is something else: see `fold_batch_norm`.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was: modes, hooks, buffers and random numbers, also after an error.
    example : tuple
        Positional arguments of a forward pass.
    kwargs : dict, optional
        Its keyword arguments.
    targets, ignore : sequence of str
        Patterns of names, see `nettrim.patterns.matches`. Layers that only the pattern "*" fits are left out if they
        do not run.

    Returns
    -------
    list of Target

    Raises
    ------
    TypeError
        `example` is not a tuple, or patterns are a string.
    ValueError
        No layers; a pattern that fits nothing; a layer that was asked for and does not run, or that cannot be pruned:
        a kind or padding that is not supported, weights that are not plain parameters of its own. A model with
        uninitialised parameters.
    """
    for what, patterns in (("targets", targets), ("ignore", ignore)):
        if isinstance(patterns, str):
            raise TypeError(f"{what} must be a list of patterns; got the string {patterns!r}")
    names = names_of(model)
    candidates = {module: known for module, known in names.items() if is_plain(module) or is_unsupported(module)}
    if not candidates:
        raise ValueError("model has no Linear, Conv1d or Conv2d module, which are the layers that can be pruned")
    listed = ", ".join(repr(known[0]) for known in candidates.values())
    for pattern in targets:
        if not any(fits(known, [pattern]) for known in candidates.values()):
            raise ValueError(f"targets has the pattern {pattern!r}, which fits no layer; there are: {listed}")
    for pattern in ignore:
        if not any(fits(known, [pattern]) for known in names.values()):
            raise ValueError(f"ignore has the pattern {pattern!r}, which fits no module; the layers are: {listed}")
    chosen = [m for m, known in candidates.items() if fits(known, targets) and not fits(known, ignore)]
    if not chosen:
        raise ValueError(f"targets {list(targets)} without ignore {list(ignore)} leave no layer of: {listed}")

    watch, _ = watched(model, example, kwargs)
    explicit = [pattern for pattern in targets if pattern != "*"]
    sharing = sharing_of(names)
    found = []
    for module in chosen:
        name, count = names[module][0], watch.counts[module]
        if count == 0:
            if fits(names[module], explicit):
                raise ValueError(
                    f"layer {name!r} never runs on the example (attention reads the weights of its out_proj and does "
                    "not call it); give an example on which it does, or add it to `ignore`"
                )
            continue
        trouble = trouble_of(module) or tying(module, sharing, watch)
        if trouble:
            raise ValueError(f"layer {name!r} {trouble}, or add it to `ignore`")
        followers = [call.follower for call in watch.calls if call.module is module]
        found.append(Target(name, module, all(f is RELU for f in followers), count))
    if not found:
        raise ValueError(f"no layer runs on the example; there are: {listed}")
    first = {module: k for k, module in reversed(list(enumerate(call.module for call in watch.calls)))}
    return sorted(found, key=lambda target: first[target.module])


def layer_of(target: Target) -> Layer:
    """The layer as arrays, which are copies on the host: float64 stays, everything else becomes float32.

    Parameters
    ----------
    target : Target

    Returns
    -------
    Layer

    Raises
    ------
    ValueError
        The module cannot be pruned: a kind or padding that is not supported, or weights that are not plain parameters.
    """
    module: Any = target.module
    trouble = trouble_of(module) if is_plain(module) or is_unsupported(module) else "is no plain Linear or convolution"
    if trouble:
        raise ValueError(f"layer {target.name!r} {trouble}")
    geometry, groups = None, 1
    if isinstance(module, _ConvNd):
        padding: Any = module.padding if isinstance(module.padding, str) else tuple(module.padding)
        geometry = Geometry(tuple(module.kernel_size), tuple(module.stride), padding, tuple(module.dilation))
        groups = module.groups
    bias = None if module.bias is None else _array(module.bias)
    return Layer(_array(module.weight), bias, target.relu, geometry, groups, target.name)


def _array(tensor: torch.Tensor) -> np.ndarray:
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    # a contiguous copy, also of a tensor that is on the host and in this dtype
    return np.array(tensor.detach().to("cpu", dtype).numpy(), order="C")
